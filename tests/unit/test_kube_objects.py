"""What labels, annotations and status of a pod mean."""

from typing import Any

import msgspec
import pytest

from pdrouter.cluster.kube_objects import KubeModelAdapter, KubePod, PodRules, read_adapter
from pdrouter.cluster.pods import Pod, Role

RULES = PodRules(("vllm",), ("nixl", "shfs", "neuron-legacy"))
READY = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
MODEL = {"model.aibrix.ai/name": "m"}


def read(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    *,
    ip: str = "10.0.0.1",
    conditions: Any = READY,
    **metadata: Any,
) -> Pod | None:
    raw = {
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "ns",
            "uid": "u",
            "labels": MODEL if labels is None else labels,
            "annotations": annotations or {},
            "managedFields": [{"manager": "kubelet"}],
            **metadata,
        },
        "spec": {"containers": [{"name": "c"}]},
        "status": {"podIP": ip, "conditions": conditions, "phase": "Running"},
    }
    return RULES.read(msgspec.json.decode(msgspec.json.encode(raw), type=KubePod))


def read_known(*args: Any, **kwargs: Any) -> Pod:
    pod = read(*args, **kwargs)
    assert pod is not None
    return pod


def test_the_pods_of_the_setup_guide_are_understood() -> None:
    pod = read_known(
        {"role-name": "prefill", "model.aibrix.ai/name": "llama31-8b"},
        {"model.aibrix.ai/port": "8001"},
    )
    assert (pod.model, pod.role, pod.port, pod.roleset) == ("llama31-8b", Role.PREFILL, 8001, "")
    assert (pod.uid, pod.name, pod.namespace) == ("u", "p", "ns")
    assert (pod.engine, pod.kv_connector, pod.ready) == ("vllm", None, True)


def test_a_pod_that_names_no_model_is_none_of_ours() -> None:
    assert read({"role-name": "prefill"}) is None


def test_a_model_name_that_is_no_label_may_be_an_annotation() -> None:
    assert read_known({}, {"model.aibrix.ai/name": "Qwen/Qwen3-8B"}).model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("labels", "annotations", "port"),
    [
        ({}, {}, 8000),
        ({"model.aibrix.ai/port": "9000"}, {}, 9000),
        ({}, {"model.aibrix.ai/port": "9001"}, 9001),
        ({"model.aibrix.ai/port": "9000"}, {"model.aibrix.ai/port": "9001"}, 9000),
    ],
)
def test_the_port_is_a_label_or_an_annotation(
    labels: dict[str, str], annotations: dict[str, str], port: int
) -> None:
    pod = read_known(MODEL | labels, annotations)
    assert (pod.port, pod.obstacle) == (port, "")


@pytest.mark.parametrize(
    ("labels", "annotations", "port"),
    [
        ({}, {}, 8000),
        ({"model.aibrix.ai/port": "9000"}, {}, 9000),
        ({"model.aibrix.ai/metric-port": "9100"}, {}, 9100),
        ({"model.aibrix.ai/port": "9000"}, {"model.aibrix.ai/metric-port": "9101"}, 9101),
        ({"model.aibrix.ai/port": "9000", "model.aibrix.ai/metric-port": "none"}, {}, 9000),
    ],
)
def test_metrics_are_on_the_serving_port_unless_they_have_one(
    labels: dict[str, str], annotations: dict[str, str], port: int
) -> None:
    pod = read_known(MODEL | labels, annotations)
    assert (pod.metrics_port, pod.obstacle) == (port, "")


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "8000 ", "\uff11"])
def test_an_invalid_port_takes_the_pod_out_and_says_so(port: str) -> None:
    pod = read_known(MODEL, {"model.aibrix.ai/port": port})
    assert not pod.ready
    assert "port" in pod.obstacle
    assert port in pod.obstacle


def test_an_endless_port_is_invalid_too() -> None:
    pod = read_known(MODEL, {"model.aibrix.ai/port": "9" * 5000})
    assert not pod.ready
    assert len(pod.obstacle) < 200


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (None, Role.BOTH),
        ("prefill", Role.PREFILL),
        ("decode", Role.DECODE),
        ("sglang-router", Role.OTHER),
        ("both", Role.OTHER),
    ],
)
def test_the_role_is_a_label(name: str | None, role: Role) -> None:
    labels = MODEL if name is None else MODEL | {"role-name": name}
    assert read_known(labels).role is role


@pytest.mark.parametrize(
    ("change", "state", "obstacle"),
    [
        ({"ip": ""}, "unready", "no address"),
        ({"conditions": []}, "unready", "not ready"),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, "unready", "not ready"),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, "terminating", "terminating"),
        (
            {"labels": MODEL | {"stormservice.orchestration.aibrix.ai/pod-group-index": "1"}},
            "unready",
            "not the head of its group",
        ),
        (
            {"labels": MODEL | {"stormservice.orchestration.aibrix.ai/pod-group-index": ""}},
            "unready",
            "not the head of its group",
        ),
        (
            {"labels": MODEL | {"model.aibrix.ai/engine": "sglang"}},
            "unready",
            "engine 'sglang' is not supported",
        ),
        (
            {"labels": MODEL | {"model.aibrix.ai/kv-connector-type": "mooncake"}},
            "unready",
            "KV connector 'mooncake' is not supported",
        ),
    ],
)
def test_a_pod_that_gets_no_requests_says_why(
    change: dict[str, Any], state: str, obstacle: str
) -> None:
    pod = read_known(**change)
    assert (pod.ready, pod.state, pod.obstacle) == (False, state, obstacle)


@pytest.mark.parametrize(
    "labels",
    [
        {"stormservice.orchestration.aibrix.ai/pod-group-index": "0"},
        {"model.aibrix.ai/engine": "VLLM"},
        {"model.aibrix.ai/kv-connector-type": "SHFS"},
    ],
)
def test_spellings_that_aibrix_accepts_are_accepted(labels: dict[str, str]) -> None:
    assert read_known(MODEL | labels).state == "ready"


def test_an_ipv6_pod_has_its_address_in_brackets() -> None:
    assert read_known(ip="fd00::1").address == "[fd00::1]:8000"


def test_the_roleset_is_part_of_what_a_pair_must_share() -> None:
    first = read_known(MODEL | {"roleset-name": "a"})
    second = read_known(MODEL | {"roleset-name": "b"})
    assert first.pairing != second.pairing


@pytest.mark.parametrize(
    ("raw", "base", "instances"),
    [
        ({"metadata": {"name": "a"}}, "", set()),
        (
            {
                "metadata": {"name": "a", "labels": MODEL},
                "spec": {"artifactURL": "x"},
                "status": {"instances": ["p", "q"], "phase": "Running"},
            },
            "m",
            {"p", "q"},
        ),
        ({"metadata": {"name": "a"}, "spec": {"baseModel": "b"}, "status": {}}, "b", set()),
    ],
)
def test_an_adapter_names_its_base_model_and_pods(
    raw: dict[str, Any], base: str, instances: set[str]
) -> None:
    adapter = read_adapter(msgspec.convert(raw, KubeModelAdapter))
    assert (adapter.base_model, set(adapter.instances)) == (base, instances)
