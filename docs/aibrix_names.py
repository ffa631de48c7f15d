"""Every name of aibrix's, and what it is here: whether it is there at all, the code says."""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
from opentelemetry.sdk import environment_variables
from prometheus_client.parser import text_string_to_metric_families

import pdrouter
from pdrouter.cluster import pod_config
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import WIRES
from pdrouter.load.ledger import Ledger
from pdrouter.load.scrape_stats import ScrapeStats
from pdrouter.openai.paths import ENDPOINTS, MODELS_PATH
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES
from pdrouter.settings import declarations
from pdrouter.settings.choices import CONNECTOR_NAMES, STRATEGY_NAMES
from pdrouter.telemetry.requests import RequestTelemetry

_PACKAGE = Path(pdrouter.__file__).parent
_DATA = Path(__file__).with_name("aibrix.toml")
ABSENT = "absent"
HERE = ("same", "better", "different")


@dataclass(frozen=True, slots=True)
class Row:
    """Names of aibrix's that have one thing to say about them.

    Attributes:
        names: the names.
        here: what they are here, where they are: one of `HERE`.
        note: what is better or different; may be nothing where all is the same.
        absent: why they are not, where they are not.
    """

    names: tuple[str, ...]
    here: str = "same"
    note: str = ""
    absent: str = ""


@cache
def read_rows() -> Mapping[str, tuple[Row, ...]]:
    """Return what is said of aibrix's names, by kind."""
    return {
        kind: tuple(Row(**{**row, "names": tuple(row["names"])}) for row in rows)
        for kind, rows in tomllib.loads(_DATA.read_text()).items()
    }


def is_there(kind: str, name: str) -> bool:
    """Return whether the code knows a name of aibrix's."""
    return _KNOWN[kind](name)


def list_metrics() -> frozenset[str]:
    """Return the names of all metrics of the router, as Prometheus has them."""
    telemetry = RequestTelemetry(PodCache(), Ledger(), scrapes=ScrapeStats())
    families = text_string_to_metric_families(telemetry.metrics.render().decode())
    return frozenset(
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    )


def _is_written(*places: str, inside: bool = False) -> Callable[[str], bool]:
    """Return what tells whether a name is a literal, or part of one, in these modules and rooms."""

    @cache
    def read() -> frozenset[str]:
        files = [
            file
            for place in places
            for file in (
                [_PACKAGE / place] if place.endswith(".py") else (_PACKAGE / place).rglob("*.py")
            )
        ]
        return frozenset(
            text for file in files for text in re.findall(r'"([^"\n]*)"', file.read_text())
        )

    if inside:
        return lambda name: any(name in text for text in read())
    return lambda name: name in read()


def _list_profile_members() -> frozenset[str]:
    structs = [
        each
        for each in vars(pod_config).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct)
    ]
    return frozenset(
        field.encode_name for struct in structs for field in msgspec.structs.fields(struct)
    )


def _is_read_by_sdk(name: str) -> bool:
    """Return whether it is a variable that says how OpenTelemetry's SDK exports traces."""
    return name.startswith("OTEL_EXPORTER_OTLP_")


_KNOWN: Mapping[str, Callable[[str], bool]] = {
    "algorithms": STRATEGY_NAMES.__contains__,
    "policies": {*PREFILL_POLICIES, *DECODE_POLICIES}.__contains__,
    "connectors": CONNECTOR_NAMES.__contains__,
    "engines": WIRES.__contains__,
    "labels": _is_written("cluster"),
    "profiles": _list_profile_members().__contains__,
    "request_headers": _is_written(
        "openai/headers.py", "openai/header_values.py", "settings/sessions.py", "users"
    ),
    "response_headers": _is_written(
        "openai/headers.py", "extproc/explanation.py", "serving/refusals.py"
    ),
    "variables": {
        *(each.variable for each in declarations().values()),
        *filter(_is_read_by_sdk, vars(environment_variables)),
    }.__contains__,
    "flags": frozenset[str]().__contains__,
    "paths": {*ENDPOINTS, MODELS_PATH}.__contains__,
    "redis_keys": _is_written("users", inside=True),
    "metrics": list_metrics().__contains__,
}

_TITLES = {
    "algorithms": "Strategies",
    "policies": "Score policies of `pd`",
    "connectors": "KV connectors",
    "engines": "Engines",
    "labels": "Labels, annotations and variables of pods",
    "profiles": "Members of the annotation `model.aibrix.ai/config`",
    "request_headers": "Headers of requests",
    "response_headers": "Headers of answers",
    "variables": "Variables of the plugin",
    "flags": "Options of the plugin",
    "paths": "Paths",
    "redis_keys": "Keys in Redis",
    "metrics": "Metrics",
}

_INTRODUCTION = """# aibrix's names, one by one

What each name of aibrix's gateway plugin (commit `e3e10f9e`, August 2026) is to pdrouter. *Same*: it means
what it meant. *Better*: the same, without what was wrong with it. *Different*: read what. *Absent*: it is not
there, and why; a variable of this kind may stay set, and a label may stay where it is.

How to change over is in [migrate-from-aibrix.md](migrate-from-aibrix.md). This page is made from the code and
from `docs/aibrix.toml`.
"""


def render() -> str:
    """Return `docs/aibrix-names.md`."""
    tables = [f"\n## {_TITLES[kind]}\n\n{_write_table(kind)}" for kind in read_rows()]
    return _INTRODUCTION + "".join(tables)


def _write_table(kind: str) -> str:
    lines = ["| Name | Here | |", "|---|---|---|"]
    for row in read_rows()[kind]:
        for names, here, text in _divide(kind, row):
            shown = ", ".join(f"`{name}`" for name in names)
            lines.append(f"| {shown} | {here} | {text} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _divide(kind: str, row: Row) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield the names of a row that are there, and those that are not."""
    there = tuple(name for name in row.names if is_there(kind, name))
    missing = tuple(name for name in row.names if name not in there)
    if there:
        yield there, row.here, row.note
    if missing:
        yield missing, ABSENT, row.absent
