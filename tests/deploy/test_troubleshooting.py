"""`docs/troubleshooting.md` speaks of what the router has, and of all of its errors."""

import re

from guides import DOCS
from manifests import ROOT, compose

from pdrouter.cluster.view import PodCache
from pdrouter.load.ledger import Ledger
from pdrouter.settings import declarations
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.tools.doctor.all_checks import CHECKS
from pdrouter.tools.doctor.checks.endpoints import ENDPOINT_CHECKS

TEXT = (DOCS / "troubleshooting.md").read_text()
REQUESTS = (DOCS / "requests.md").read_text()
SOURCES = [path.read_text() for path in sorted((ROOT / "pdrouter").rglob("*.py"))]


def test_every_error_of_the_router_has_a_row() -> None:
    pattern = re.compile(r'RequestRejected\(\s*\d{3},\s*"(\w+)"')
    codes = {code for source in SOURCES for code in pattern.findall(source)}
    for cell in re.findall(r"^\| \d{3} \| (.*?) \|", REQUESTS, re.MULTILINE):
        codes |= set(re.findall(r"`(\w+)`", cell))
    rows = re.findall(r"^\| \d{3} \| `(\w+)` \|", TEXT, re.MULTILINE)

    assert codes
    assert codes - set(rows) == set()
    assert len(rows) == len(set(rows))
    assert [code for code in rows if not any(f'"{code}"' in source for source in SOURCES)] == []


def test_the_findings_that_it_names_are_the_doctors() -> None:
    known = {check.code for check in CHECKS} | {check.code for check in ENDPOINT_CHECKS}
    mentions = re.findall(r"[Dd]octor:?((?:[ ,]+`[a-z-]+`(?: \(with `--probe`\))?)+)", TEXT)
    named = {code for mention in mentions for code in re.findall(r"`([a-z-]+)`", mention)}

    assert named - {"--probe"} <= known


def test_the_settings_that_it_names_exist() -> None:
    known = {declaration.variable for declaration in declarations().values()}

    # The misspelling that people copy from each other is named as one.
    named = set(re.findall(r"\b(?:PDROUTER|AIBRIX)_[A-Z_]+", TEXT)) - {"AIBRIX_ROUTING_ALGORITHM"}
    assert named <= known


def test_the_metrics_that_it_names_exist() -> None:
    page = RequestTelemetry(PodCache(), Ledger()).metrics.render().decode()
    known = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))

    assert set(re.findall(r"`(pdrouter_\w+)`", TEXT)) <= known


def test_the_log_lines_that_it_names_are_written() -> None:
    lines = re.findall(r"[Ll]og line `([^`]+)`", TEXT)

    assert lines
    for line in lines:
        words = re.split("…|\\d+", " ".join(line.split()))
        assert any(all(word.strip() in source for word in words) for source in SOURCES), line


def test_the_alerts_that_it_names_are_ours() -> None:
    (rules,) = [one for one in compose(["monitoring"]) if one["kind"] == "PrometheusRule"]
    known = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}

    named = set(re.findall(r"`(Pdrouter\w+)`", TEXT))
    assert named
    assert named <= known
