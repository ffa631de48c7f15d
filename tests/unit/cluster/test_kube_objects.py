"""What labels, annotations and status of a pod mean."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from pdrouter.cluster.kubernetes.containers import (
    Container,
    ContainerPort,
    ContainerStatus,
    find_engine,
)
from pdrouter.cluster.kubernetes.objects import KubeModelAdapter, KubePod, PodRules, read_adapter
from pdrouter.cluster.model_namespaces import ModelNamespaces
from pdrouter.cluster.pods import UNSAID_PORT, Claim, Pod, Role

RULES = PodRules({"vllm": ("nixl", "shfs", "neuron-legacy")})
READY = [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "True"}]
MODEL = {"model.aibrix.ai/name": "m"}


def read(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    *,
    ip: str = "10.0.0.1",
    conditions: Any = READY,
    status: dict[str, Any] | None = None,
    rules: PodRules = RULES,
    spec: dict[str, Any] | None = None,
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
        "spec": {"containers": [{"name": "c"}]} if spec is None else spec,
        "status": {"podIP": ip, "conditions": conditions, "phase": "Running", **(status or {})},
    }
    return rules.read(msgspec.json.decode(msgspec.json.encode(raw), type=KubePod))


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


def unready_since(time: str | None) -> list[dict[str, Any]]:
    other = {"type": "Custom", "status": "False", "lastTransitionTime": None}
    return [other, {"type": "Ready", "status": "False", "lastTransitionTime": time}]


START = {"startTime": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        pytest.param({}, Claim.MAKES, id="ready"),
        pytest.param({"conditions": []}, Claim.HOLDS, id="new"),
        pytest.param(
            {"conditions": unready_since("2026-01-01T00:00:02Z"), "status": START},
            Claim.HOLDS,
            id="starting",
        ),
        pytest.param(
            {"conditions": unready_since("2026-01-01T01:00:00Z"), "status": START},
            Claim.MAKES,
            id="was ready",
        ),
        pytest.param(
            {"conditions": unready_since(None), "status": {"startTime": None}},
            Claim.HOLDS,
            id="no times",
        ),
        pytest.param(
            {"conditions": unready_since("yesterday"), "status": START}, Claim.HOLDS, id="no time"
        ),
        pytest.param(
            {"conditions": unready_since("2026-01-01T01:00:00"), "status": START},
            Claim.HOLDS,
            id="no zone",
        ),
        pytest.param({"ip": ""}, Claim.HOLDS, id="no address"),
        pytest.param({"deletionTimestamp": "2026-01-01T01:00:00Z"}, Claim.MAKES, id="terminating"),
        pytest.param({"status": {"phase": "Failed"}}, Claim.NONE, id="failed"),
        pytest.param({"status": {"phase": "Succeeded"}}, Claim.NONE, id="succeeded"),
        pytest.param(
            {
                "labels": {**MODEL, "role-name": "decode"},
                "annotations": {"model.aibrix.ai/engine": "other"},
            },
            Claim.NONE,
            id="no engine",
        ),
        pytest.param({"annotations": {"model.aibrix.ai/port": "0"}}, Claim.NONE, id="no port"),
        pytest.param(
            {"labels": {**MODEL, "stormservice.orchestration.aibrix.ai/pod-group-index": "1"}},
            Claim.NONE,
            id="no head",
        ),
    ],
)
def test_a_pod_that_is_or_was_ready_claims_its_models_name(
    changes: dict[str, Any], claim: Claim
) -> None:
    assert read_known(**changes).claim is claim


@pytest.mark.parametrize(
    ("ip", "reason"),
    [
        ("127.0.0.1", "address 127.0.0.1 is a loopback address"),
        ("169.254.169.254", "address 169.254.169.254 is a link-local address"),
        ("::ffff:127.0.0.1", "address ::ffff:127.0.0.1 is an IPv4 address in disguise"),
        ("metadata.internal", "address 'metadata.internal' is no IP address"),
    ],
)
def test_an_address_that_is_no_pods_refuses_the_pod(ip: str, reason: str) -> None:
    pod = read_known(ip=ip)
    assert (pod.ready, pod.refused, pod.state, pod.obstacle) == (False, True, "refused", reason)


def test_a_namespace_that_may_not_serve_a_model_has_no_pods_of_it() -> None:
    rules = PodRules({"vllm": ()}, model_namespaces=ModelNamespaces((("m", ("prod",)),)))
    assert read_known(namespace="prod", rules=rules).ready
    pod = read_known(namespace="evil", rules=rules)
    assert (pod.ready, pod.refused) == (False, True)
    assert pod.obstacle == "namespace evil may not serve model 'm'"


def test_a_name_that_is_too_long_for_a_label_of_metrics_is_refused() -> None:
    pod = read_known({}, {"model.aibrix.ai/name": "m" * 100_000})
    assert pod.refused
    assert len(pod.model) == 512
    assert "longer than 512" in pod.obstacle
    pod = read_known(MODEL, {"model.aibrix.ai/engine": "e" * 100_000})
    assert len(pod.obstacle) < 120


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
        ("encode", Role.ENCODE),
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
            {"labels": MODEL | {"ray.io/node-type": "worker"}},
            "unready",
            "a worker of its Ray cluster, not the head",
        ),
        (
            {"labels": MODEL | {"role-name": "decode", "model.aibrix.ai/engine": "sglang"}},
            "unsupported",
            "engine 'sglang' is not supported: it is none of vllm",
        ),
        (
            {
                "labels": MODEL
                | {"role-name": "prefill", "model.aibrix.ai/kv-connector-type": "mooncake"}
            },
            "unsupported",
            "KV connector 'mooncake' is not supported: it is none of nixl, shfs, neuron-legacy",
        ),
    ],
)
def test_a_pod_that_gets_no_requests_says_why(
    change: dict[str, Any], state: str, obstacle: str
) -> None:
    pod = read_known(**change)
    assert (pod.ready, pod.state, pod.obstacle) == (False, state, obstacle)


@pytest.mark.parametrize("role", [{}, {"role-name": "all"}])
@pytest.mark.parametrize(
    "labels",
    [{"model.aibrix.ai/engine": "tgi"}, {"model.aibrix.ai/kv-connector-type": "lmcache"}],
)
def test_who_serves_whole_requests_needs_no_wire(
    role: dict[str, str], labels: dict[str, str]
) -> None:
    """aibrix's strategies for one pod do not look at the engine."""
    pod = read_known(MODEL | role | labels)
    assert (pod.state, pod.unsupported, pod.claim) == ("ready", "", Claim.MAKES)


@pytest.mark.parametrize(
    "labels",
    [
        {"stormservice.orchestration.aibrix.ai/pod-group-index": "0"},
        {"ray.io/node-type": "head"},
        {"model.aibrix.ai/engine": "VLLM"},
        {"model.aibrix.ai/kv-connector-type": "SHFS"},
    ],
)
def test_spellings_that_aibrix_accepts_are_accepted(labels: dict[str, str]) -> None:
    assert read_known(MODEL | labels).state == "ready"


@pytest.mark.parametrize(
    ("text", "said"), [("true", True), ("false", False), ("", None), ("yes", None), (None, None)]
)
@pytest.mark.parametrize("annotated", [True, False])
def test_a_pod_may_say_whether_it_computes_prompts(
    text: str | None, said: bool | None, annotated: bool
) -> None:
    names = {} if text is None else {"pdrouter/computes-prompts": text}
    pod = read_known(MODEL, names) if annotated else read_known({**MODEL, **names})
    assert pod.computes_prompts is said


@pytest.mark.parametrize(
    ("resources", "neuron"),
    [
        ({}, False),
        ({"limits": {"nvidia.com/gpu": "8", "memory": 5}}, False),
        ({"limits": {"memory": "1Gi", "aws.amazon.com/neuron": 16}}, True),
        ({"limits": {"aws.amazon.com/neuroncore": "2"}, "requests": {}}, True),
        ({"requests": {"memory": "1Gi"}}, False),
    ],
    ids=str,
)
def test_a_pod_with_neuron_devices_is_known_by_them(
    resources: dict[str, Any], neuron: bool
) -> None:
    sidecar = {"name": "sidecar", "resources": {"limits": {"cpu": "1"}}}
    spec = {"containers": [sidecar, {"name": "engine", "resources": resources}]}
    assert read_known(spec=spec).neuron is neuron


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


def describe_container(name: str, number: int, restarts: int = 0) -> dict[str, Any]:
    return {"name": name, "containerID": f"containerd://{number}", "restartCount": restarts}


def test_each_start_of_the_engines_container_is_told_from_others() -> None:
    starts = [
        read_known(status={"containerStatuses": [describe_container("c", *start)]}).started
        for start in ((1, 0), (2, 1), (2, 1))
    ]
    assert starts == ["0/containerd://1", "1/containerd://2", "1/containerd://2"]
    assert read_known().started == ""
    assert read_known(status={"containerStatuses": [{"name": "c"}]}).started == ""


@pytest.mark.parametrize(
    ("containers", "engine"),
    [
        ([("proxy", 9000), ("vllm", 8000)], "vllm"),
        ([("vllm", 8000), ("proxy", 9000)], "vllm"),
        ([("vllm", None), ("proxy", 9000)], "vllm"),
        ([("proxy", 9000), ("vllm", None)], "proxy"),
        ([], "proxy"),
    ],
)
def test_the_engines_container_is_the_one_that_declares_its_port_or_the_first(
    containers: list[tuple[str, int | None]], engine: str
) -> None:
    spec = [
        Container(name, [] if port is None else [ContainerPort(port)]) for name, port in containers
    ]
    statuses = [ContainerStatus("proxy"), ContainerStatus("vllm")]
    found = find_engine(spec, statuses, 8000)
    assert found is not None
    assert found.name == engine
    assert find_engine(spec, [], 8000) is None


@pytest.mark.parametrize(
    ("labels", "revision"),
    [
        ({}, ""),
        ({"disaggregatedset.x-k8s.io/revision": "7f9c"}, "7f9c"),
        (
            {
                "disaggregatedset.x-k8s.io/revision": "7f9c",
                "llm-d.ai/compatibility-revision": "2",
            },
            "2",
        ),
        ({"llm-d.ai/compatibility-revision": "2", "pdrouter/revision": "mine"}, "mine"),
        ({"pdrouter/revision": "", "llm-d.ai/compatibility-revision": "2"}, "2"),
    ],
    ids=str,
)
def test_the_most_deliberate_label_says_the_revision(labels: dict[str, str], revision: str) -> None:
    pod = read_known({**MODEL, **labels})
    assert (pod.revision, pod.pairing.revision) == (revision, revision)
    off = read_known({**MODEL, **labels}, rules=replace(RULES, match_revisions=False))
    assert (off.revision, off.pairing.revision) == ("", "")


DIGEST = "sha256:" + "a" * 64
ENGINE_PORT = [{"containerPort": 9000, "name": "http"}]


@pytest.mark.parametrize(
    "image_id",
    [
        f"registry.example/vllm@{DIGEST}",
        f"docker-pullable://registry.example:5000/vllm@{DIGEST}",
        f"docker://{DIGEST}",
        DIGEST,
    ],
)
def test_images_are_known_by_their_digest_whatever_they_are_called(image_id: str) -> None:
    status = {"containerStatuses": [{"name": "c", "imageID": image_id, "ready": True}]}
    assert read_known(status=status).image == DIGEST
    assert read_known(status=status, rules=replace(RULES, match_revisions=False)).image == ""


@pytest.mark.parametrize(
    ("containers", "annotations", "engine"),
    [
        ([{"name": "proxy", "ports": [{"containerPort": 1}]}, {"name": "engine"}], {}, "proxy"),
        ([{"name": "proxy"}, {"name": "engine", "ports": ENGINE_PORT}], {}, "engine"),
        (
            [{"name": "proxy"}, {"name": "engine"}],
            {"kubectl.kubernetes.io/default-container": "engine"},
            "engine",
        ),
    ],
    ids=["the first", "the one that has the port", "the one that is said to be the main one"],
)
def test_the_image_is_that_of_the_container_that_the_engine_is_in(
    containers: list[dict[str, Any]], annotations: dict[str, str], engine: str
) -> None:
    statuses = [
        {"name": each["name"], "imageID": f"x@sha256:{each['name']}"} for each in containers
    ]
    pod = read_known(
        None,
        {"model.aibrix.ai/port": "9000", **annotations},
        spec={"containers": containers},
        status={"containerStatuses": [*reversed(statuses)]},
    )
    assert pod.image == f"sha256:{engine}"


@pytest.mark.parametrize("statuses", [[], [{"name": "c", "imageID": ""}], [{"name": "other"}]])
def test_an_image_that_is_still_pulled_is_not_known(statuses: list[dict[str, Any]]) -> None:
    assert read_known(status={"containerStatuses": statuses}).image == ""


def test_a_pod_is_on_its_node_and_where_its_labels_say() -> None:
    rules = replace(RULES, topology_labels=("rack", "topology.kubernetes.io/zone"))
    labels = {**MODEL, "topology.kubernetes.io/zone": "eu-1a", "other": "x"}
    spec = {"containers": [{"name": "c"}], "nodeName": "n1"}
    assert read_known(labels, rules=rules, spec=spec).places == ("n1", "", "eu-1a")
    assert read_known(rules=rules).places == ("", "", "")


@pytest.mark.parametrize(
    ("labels", "selector", "hardware"),
    [
        ({}, {}, ""),
        ({"type": "trn2"}, {}, "trn2"),
        ({}, {"type": "trn2"}, "trn2"),
        ({"type": "trn2"}, {"type": "p5"}, "trn2"),
        ({"gpu": "h100"}, {"type": "p5"}, "p5"),
        ({"gpu": "h100"}, {"type": ""}, "h100"),
    ],
)
def test_a_pod_runs_on_what_it_says_or_asks_for(
    labels: dict[str, str], selector: dict[str, str], hardware: str
) -> None:
    rules = replace(RULES, hardware_labels=("type", "gpu"))
    spec = {"nodeSelector": selector}
    assert read_known({**MODEL, **labels}, rules=rules, spec=spec).hardware == hardware
    assert read_known({**MODEL, **labels}, spec=spec).hardware == ""


def read_ranks(annotations: dict[str, str]) -> tuple[Pod, ...]:
    metadata = {"name": "p", "namespace": "ns", "uid": "u", "labels": MODEL}
    raw = {
        "metadata": {**metadata, "annotations": annotations},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"podIP": "10.0.0.1", "conditions": READY, "phase": "Running"},
    }
    return RULES.read_ranks(msgspec.json.decode(msgspec.json.encode(raw), type=KubePod))


def test_a_pod_is_one_for_each_of_its_ranks() -> None:
    assert [pod.uid for pod in read_ranks({})] == ["u"]
    assert [pod.number for pod in read_ranks({"pdrouter/data-parallel-size": "2"})] == [0, 1]
    ports = read_ranks({"pdrouter/data-parallel-ports": "8000,9000"})
    assert [pod.address for pod in ports] == ["10.0.0.1:8000", "10.0.0.1:9000"]
    (one,) = read_ranks({"pdrouter/data-parallel-ports": "9000"})
    assert (one.uid, one.address) == ("u", "10.0.0.1:9000")
    (flawed,) = read_ranks({"pdrouter/data-parallel-size": "many"})
    assert not flawed.ready
    assert "'many'" in flawed.obstacle


@pytest.mark.parametrize(
    ("text", "port"),
    [
        (None, UNSAID_PORT),
        ("9000", 9000),
        ("null", None),
        # As in aibrix, what is no port says nothing.
        ("", UNSAID_PORT),
        ("0", UNSAID_PORT),
        ("65536", UNSAID_PORT),
        ("http", UNSAID_PORT),
    ],
)
@pytest.mark.parametrize("place", ["labels", "annotations"])
def test_the_bootstrap_port_is_an_annotation_or_a_label(
    text: str | None, port: int | None, place: str
) -> None:
    said = {} if text is None else {"model.aibrix.ai/sglang-bootstrap-port": text}
    places = {"labels": {**MODEL}, "annotations": {}}
    places[place] |= said
    assert read_known(places["labels"], places["annotations"]).bootstrap_port == port
