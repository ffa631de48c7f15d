"""Dashboard and alerts ask for metrics that the router has, and promtool finds nothing wrong."""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from guides import DOCS
from manifests import DEPLOY, Object, compose, find

from pdrouter.cluster.view import PodCache
from pdrouter.load.ledger import Ledger
from pdrouter.telemetry.metrics import Metrics

MONITORING = DEPLOY / "components" / "monitoring"
RULES_TEST = Path(__file__).with_name("rules_test.yaml")
# What Grafana puts in place of these before Prometheus sees them.
GRAFANA = {"$__rate_interval": "5m", "$namespace": ".*", "$model": ".*"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no promtool: rules are not tested (Debian: apt-get install prometheus)",
)


@functools.cache
def known_metrics() -> dict[str, set[str]]:
    """The labels of each sample that the router exposes, by its name."""
    registry = Metrics(PodCache(), Ledger(), lambda: 0, dict)._registry
    known: dict[str, set[str]] = {}
    for collector in set(registry._collector_to_names):
        own = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            labels = own | set(getattr(family, "_labelnames", ()))
            names = {
                "counter": [family.name + "_total"],
                "histogram": [family.name + end for end in ("_bucket", "_sum", "_count")],
            }.get(family.type, [family.name])
            known |= {
                name: labels | ({"le"} if name.endswith("_bucket") else set()) for name in names
            }
    return known


# What Prometheus adds when it scrapes.
TARGET_LABELS = {"instance", "job"}


def dashboard() -> Object:
    (text,) = find(compose(["monitoring"]), "ConfigMap")["data"].values()
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def panels() -> list[Object]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[Object]:
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    found = group["rules"]
    assert isinstance(found, list)
    return found


def queries() -> Iterator[Any]:
    for panel in panels():
        for target in panel["targets"]:
            yield pytest.param(target["expr"], target["legendFormat"], id=panel["title"])
    for rule in rules():
        text = " ".join(rule["annotations"].values())
        yield pytest.param(rule["expr"], text, id=rule["alert"])


def parse(query: str) -> promql_parser.Expr:
    for variable, value in GRAFANA.items():
        query = query.replace(variable, value)
    return promql_parser.parse(query)


def selectors(expression: Any) -> Iterator[promql_parser.VectorSelector]:
    """All selectors in an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(expression, name, None)
        if child is not None:
            yield from selectors(child)
    for argument in getattr(expression, "args", ()):
        yield from selectors(argument)


@pytest.mark.parametrize(("query", "text"), list(queries()))
class TestQueries:
    def test_metrics_and_their_labels_exist(self, query: str, text: str) -> None:
        del text
        found = list(selectors(parse(query)))

        assert found
        for selector in found:
            assert selector.name is not None
            assert selector.name in known_metrics()
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= known_metrics()[selector.name] | TARGET_LABELS

    def test_groups_and_legends_use_labels_that_are_there(self, query: str, text: str) -> None:
        there = TARGET_LABELS.union(
            *(known_metrics()[selector.name or ""] for selector in selectors(parse(query)))
        )
        there |= set(re.findall(r'label_replace\(.*?, "(\w+)"', query))
        grouped = re.findall(r"(?:by|on|group_left) \(([^)]*)\)", query)
        shown = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text)

        assert {name.strip() for names in grouped for name in names.split(",")} <= there
        assert set(shown) <= there


class TestDashboard:
    def test_every_metric_is_shown(self) -> None:
        shown = {
            selector.name
            for panel in panels()
            for target in panel["targets"]
            for selector in selectors(parse(target["expr"]))
        }
        known = {name for name in known_metrics() if not name.endswith(("_sum", "_count"))}

        assert known - shown == set()

    def test_panels_have_numbers_of_their_own_and_do_not_overlap(self) -> None:
        placed = dashboard()["panels"]

        assert len({panel["id"] for panel in placed}) == len(placed)
        for one, other in combinations([panel["gridPos"] for panel in placed], 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or apart
        assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in placed) <= 24

    def test_the_data_source_can_be_chosen(self) -> None:
        variables = {one["name"]: one for one in dashboard()["templating"]["list"]}

        assert variables["datasource"]["type"] == "datasource"
        assert {panel["datasource"]["uid"] for panel in panels()} == {"${datasource}"}
        assert set(variables) == {"datasource", "namespace", "model"}


class TestRules:
    def test_each_says_what_happens_and_what_to_do(self) -> None:
        for rule in rules():
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in {"critical", "warning"}

    def test_each_has_a_row_that_says_what_to_do(self) -> None:
        page = (DOCS / "troubleshooting.md").read_text()
        rows = re.findall(r"^\| `(Pdrouter\w+)` \| \S", page, re.MULTILINE)

        assert rows == [rule["alert"] for rule in rules()]

    def test_each_has_a_unit_test(self) -> None:
        tested = {
            case["alertname"]
            for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
            for case in test.get("alert_rule_test", ())
            if case.get("exp_alerts")
        }

        assert tested == {rule["alert"] for rule in rules()}

    @needs_promtool
    def test_promtool_accepts_them(self, tmp_path: Path) -> None:
        assert "SUCCESS" in run_promtool("check", "rules", str(write_rules(tmp_path)))

    @needs_promtool
    def test_they_fire_when_they_should_and_only_then(self, tmp_path: Path) -> None:
        write_rules(tmp_path)
        # What is expected of an alert are its labels: the texts are in the rules themselves.
        tests = yaml.safe_load(RULES_TEST.read_text())
        annotations = {rule["alert"]: rule["annotations"] for rule in rules()}
        for test in tests["tests"]:
            for case in test.get("alert_rule_test", ()):
                for alert in case.get("exp_alerts", ()):
                    alert["exp_annotations"] = {
                        name: render(text, alert["exp_labels"])
                        for name, text in annotations[case["alertname"]].items()
                    }
        (tmp_path / "test.yaml").write_text(yaml.safe_dump(tests))

        assert "SUCCESS" in run_promtool("test", "rules", str(tmp_path / "test.yaml"))


def render(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)


def write_rules(directory: Path) -> Path:
    """Write the rules as Prometheus reads them, without the operator's wrapping."""
    spec = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def run_promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
