"""The examples scale the other examples' pods by a metric that the router has."""

import json
import re

import jsonschema
import promql_parser
import pytest
import yaml
from factories import make_pod
from guides import DOCS
from manifests import DEPLOY, Object, build, find

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import PodCache
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.samples import EngineSample
from pdrouter.telemetry.requests import RequestTelemetry

EXAMPLES = DEPLOY / "examples"
ROLES = ("prefill", "decode")
WHOLE = {"type": "integer", "minimum": 1}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {name: {"type": "string"} for name in ("apiVersion", "kind", "name")},
        },
        "minReplicaCount": WHOLE,
        "maxReplicaCount": WHOLE,
        "pollingInterval": WHOLE,
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"const": "prometheus"},
                    "metricType": {"enum": ["Value", "AverageValue"]},
                    "metadata": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["serverAddress", "query", "threshold"],
                        # All of them texts, numbers and truths too.
                        "properties": {
                            name: {"type": "string"}
                            for name in ("serverAddress", "query", "threshold", "ignoreNullValues")
                        },
                    },
                },
            },
        },
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "horizontalPodAutoscalerConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"behavior": {"type": "object"}},
                }
            },
        },
    },
}
"""What KEDA's CRD says of the fields that the examples use."""


def scalers(kind: str) -> list[Object]:
    return build(EXAMPLES / "autoscaling" / kind)


def known_labels() -> dict[str, set[str]]:
    """The labels of `pdrouter_pods_wanted`, with the values of those that are fixed."""
    cache, pod = PodCache(), make_pod("d", Role.DECODE)
    cache.replace((pod,))
    samples = {pod.uid: EngineSample(0.0, kv_usage=0.0, kv_capacity_tokens=1)}
    ledger = Ledger()
    wanted = PodsWanted(ledger, samples)
    page = RequestTelemetry(cache, ledger, wanted=wanted).metrics.render().decode()
    (labels,) = re.findall(r"^pdrouter_pods_wanted\{(.*)\}", page, re.MULTILINE)
    return {name: set() for name in re.findall(r"(\w+)=", labels)} | {"role": set(Role)}


@pytest.mark.parametrize("role", ROLES)
class TestKeda:
    def test_the_object_is_one_of_keda(self, role: str) -> None:
        jsonschema.validate(find(scalers("keda"), "ScaledObject", role)["spec"], SCALED_OBJECT)

    def test_it_asks_for_what_all_routers_want_of_its_pods(self, role: str) -> None:
        scaled = find(scalers("keda"), "ScaledObject", role)
        (trigger,) = scaled["spec"]["triggers"]
        query = promql_parser.parse(trigger["metadata"]["query"])
        assert isinstance(query, promql_parser.AggregateExpr)
        assert str(query.op) == "sum"
        selector = query.expr
        assert isinstance(selector, promql_parser.VectorSelector)
        asked = {matcher.name: matcher.value for matcher in selector.matchers.matchers}

        assert selector.name == "pdrouter_pods_wanted"
        expect_labels(asked, role, scaled["metadata"]["namespace"])
        # The sum over 1, rounded up.
        assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "1")
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert scaled["spec"]["scaleTargetRef"]["name"] == role
        assert 1 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]


@pytest.mark.parametrize("role", ROLES)
def test_the_autoscaler_asks_for_the_same(role: str) -> None:
    scaler = find(scalers("hpa"), "HorizontalPodAutoscaler", role)
    spec = scaler["spec"]
    (metric,) = spec["metrics"]
    labels = metric["external"]["metric"]["selector"]["matchLabels"]
    keda = find(scalers("keda"), "ScaledObject", role)["spec"]

    assert metric["external"]["metric"]["name"] == "pdrouter_pods_wanted"
    expect_labels({**labels, "namespace": scaler["metadata"]["namespace"]}, role, "default")
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (
        keda["minReplicaCount"],
        keda["maxReplicaCount"],
    )
    assert spec["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": role}


def expect_labels(asked: dict[str, str], role: str, namespace: str) -> None:
    """Of the pods of the other examples."""
    known = known_labels()
    deployment = find(build(EXAMPLES / "gpu"), "Deployment", role)
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert asked.keys() <= known.keys()
    assert asked["role"] in known["role"]
    assert asked == {
        "namespace": namespace,
        "model": labels["model.aibrix.ai/name"],
        "role": labels["role-name"],
    }
    assert deployment["metadata"]["namespace"] == namespace


def test_the_adapters_rule_gives_the_labels_that_are_asked_for() -> None:
    page = (DOCS / "autoscaling.md").read_text()
    ((rule,),) = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    ]
    grouped = re.search(r"by \((.*?)\)", rule["metricsQuery"])
    assert grouped is not None

    assert set(grouped[1].split(", ")) | {"namespace"} == known_labels().keys()
    assert rule["seriesQuery"] == 'pdrouter_pods_wanted{namespace!=""}'
    assert json.dumps(rule["resources"]).count("namespace") == 2
