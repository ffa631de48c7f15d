"""`docs/aibrix-names.md` says of every name of aibrix's what it is here, as the code has it."""

import re
from collections import Counter
from pathlib import Path

import aibrix_names
import pytest
from aibrix_names import ABSENT, HERE, Row, is_there, list_metrics, read_rows

from pdrouter.settings import declarations
from pdrouter.settings.aibrix import UNUSED_AIBRIX_VARIABLES
from pdrouter.settings.choices import STRATEGY_NAMES

ROOT = Path(__file__).parents[2]
NAMES = ROOT / "tests" / "data" / "aibrix-names.txt"
REFERENCE = ROOT.parent / "shared" / "reference"

ROWS = [(kind, row) for kind, rows in read_rows().items() for row in rows]
LISTED = [(kind, name) for kind, row in ROWS for name in row.names]
SAID = {name for _, name in LISTED}


def test_every_name_has_one_row_and_no_other_has_one() -> None:
    known = [tuple(line.split(" ", 1)) for line in NAMES.read_text().splitlines()]

    assert [name for name, count in Counter(LISTED).items() if count > 1] == []
    assert sorted(LISTED) == sorted(known)


@pytest.mark.parametrize(("kind", "row"), ROWS, ids=lambda part: getattr(part, "names", [part])[0])
def test_a_row_says_what_there_is_to_say(kind: str, row: Row) -> None:
    missing = [name for name in row.names if not is_there(kind, name)]

    assert row.here in HERE
    assert row.here == "same" or row.note
    assert not missing or row.absent, f"{missing} are not there: say why"
    assert missing or not row.absent, f"all of {row.names} are there: there is no why"


def test_variables_that_are_passed_over_in_silence_are_those_that_are_absent() -> None:
    """Of all others the router says at its start that they have no effect."""
    absent = {
        name
        for kind, name in LISTED
        if kind == "variables" and name.startswith("AIBRIX_") and not is_there(kind, name)
    }

    assert absent == UNUSED_AIBRIX_VARIABLES


def test_all_that_the_code_has_of_aibrix_is_named() -> None:
    read = {each.variable for each in declarations().values()}

    assert {name for name in read if name.startswith("AIBRIX_")} <= SAID
    assert {name for name in list_metrics() if not name.startswith("pdrouter_")} <= SAID
    assert set(STRATEGY_NAMES) <= SAID


def test_what_it_names_of_ours_exists() -> None:
    text = aibrix_names.render()
    read = {each.variable for each in declarations().values()}

    assert set(re.findall(r"\bPDROUTER_[A-Z_]+", text)) <= read
    assert set(re.findall(r"`(pdrouter_[a-z_]+[a-z])`", text)) <= list_metrics()
    for family in re.findall(r"`(pdrouter_[a-z_]+_)\*`", text):
        assert any(name.startswith(family) for name in list_metrics())


def test_an_absent_name_is_shown_as_such() -> None:
    text = aibrix_names.render()
    rows = dict(re.findall(r"^\| (`.*?) \| (\w+) \|", text, re.MULTILINE))
    shown = {name: here for names, here in rows.items() for name in re.findall(r"`(.*?)`", names)}

    assert all((shown[name] == ABSENT) != is_there(kind, name) for kind, name in LISTED)


# Statements about names that aibrix itself never reads, and placeholders.
NOT_READ = {"AIBRIX_ROUTING_ALGORITHM", "AIBRIX_PREFIX_CACHE", "AIBRIX_SYNC", "AIBRIX_STATESYNC"}
PATTERNS = {
    "variables": r"^\| (AIBRIX_[A-Z0-9_]+[A-Z0-9])",
    "headers": r"\bx-(?:error|update|went)-[a-z-]+[a-z]\b",
    "labels": r"`((?:model|stormservice\.orchestration)\.aibrix\.ai/[a-z-]+)`",
    "strategies": r"^\| `([a-z][a-z-]+)` \| (?:yes|no) \|",
    "metrics": r"^\| ((?:gateway|pd_selected|aibrix|vtc)_[a-z0-9_]+[a-z0-9])\b",
}


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference at {REFERENCE}")
@pytest.mark.parametrize("kind", PATTERNS)
def test_what_is_known_of_aibrix_is_all_named(kind: str) -> None:
    # Those that are documented but never sent.
    never = {"x-error-invalid-routing-strategy", "x-error-no-model-in-request", "x-error-stream"}
    text = "".join(
        (REFERENCE / f"{page}.md").read_text() for page in ("aibrix", "aibrix-algorithms")
    )
    found = set(re.findall(PATTERNS[kind], text, re.MULTILINE)) - NOT_READ - never

    assert len(found) > 3
    assert {name for name in found if name not in SAID and f"{name}_total" not in SAID} == set()
