"""Names that are almost right: labels and annotations of pods, variables of the router."""

import pytest
from setups import Case, add, codes, drop, endpoint_override, examine, put, setting

LABELS = "spec template metadata labels"
ANNOTATIONS = "spec template metadata annotations"

EXTRA = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: extra%s}
spec:
  selector: {matchLabels: {app: extra}}
  template:
    metadata:
      labels: {app: extra, %s}
      annotations: {%s}
    spec: {containers: [{name: vllm, ports: [{containerPort: 8000, name: http}]}]}
"""

BROKEN = [
    *(
        Case(
            "label-misspelt",
            "Deployment default/extra",
            [add(EXTRA % ("", f"{key}: x", ""))],
            words=f"did you mean {meant}?",
        )
        for key, meant in (
            ("model.aibrix.ai/nam", "model.aibrix.ai/name"),
            ("model.aibrix.io/name", "model.aibrix.ai/name"),
            ("model.aibrix.ai-name", "model.aibrix.ai/name"),
            ("role_name", "role-name"),
            ("rolename", "role-name"),
            ("Role-Name", "role-name"),
            ("rolset-name", "roleset-name"),
            ("model.aibrix.ai/kv-connector", "model.aibrix.ai/kv-connector-type"),
        )
    ),
    Case(
        "label-misspelt",
        "Deployment default/extra",
        [
            add(
                EXTRA
                % ("", "model.aibrix.ai/name: m, role-name: other", 'model.aibrix.ai/prot: "8000"')
            )
        ],
        words="did you mean model.aibrix.ai/port?",
    ),
    Case(
        "bootstrap-port-invalid",
        "Deployment default/extra",
        [
            add(
                EXTRA
                % (
                    "",
                    "model.aibrix.ai/name: m, role-name: other",
                    'model.aibrix.ai/sglang-bootstrap-port: "90000"',
                )
            )
        ],
        words="'90000' is no port, so that the usual one counts",
    ),
    *(
        Case(
            "engine-misspelt",
            "Deployment default/extra",
            [add(EXTRA % ("", f"model.aibrix.ai/name: m, model.aibrix.ai/engine: {engine}", ""))],
            words=f"did you mean {meant} in",
        )
        for engine, meant in (("vlllm", "vllm"), ("sg-lang", "sglang"), ("trt-llm", "trtllm"))
    ),
    *(
        Case(
            "role-misspelt",
            "Deployment default/extra",
            [add(EXTRA % ("", f"model.aibrix.ai/name: m, role-name: {role}", ""))],
            words=f"did you mean {meant}?",
        )
        for role, meant in (
            ("prefil", "prefill"),
            ("Prefill", "prefill"),
            ("decoder", "decode"),
            ("DECODE", "decode"),
        )
    ),
    Case(
        "label-misplaced",
        "Deployment default/extra",
        [add(EXTRA % ("", "model.aibrix.ai/name: m", "role-name: decode"))],
        words="move it to spec.template.metadata.labels",
    ),
    Case(
        "label-misplaced",
        "Deployment default/extra",
        [
            add(
                EXTRA
                % (
                    ", labels: {role-name: decode, model.aibrix.ai/name: m}",
                    "tier: serving",
                    "",
                )
            )
        ],
        words="its pods do not",
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=[case.code for case in BROKEN])
def test_a_name_that_is_almost_right_is_found(case: Case) -> None:
    assert case.judge() == case.expected


@pytest.mark.parametrize(
    "labels",
    [
        "model.aibrix.ai/name: m, role-name: router",
        "model.aibrix.ai/name: m, model.aibrix.ai/service-name: m",
        "app.kubernetes.io/name: m, node-name: a, role: decode",
        "model.aibrix.ai/name: m, stormservice.orchestration.aibrix.ai/role-replica-index: '0'",
    ],
)
def test_names_of_others_are_not_found(labels: str) -> None:
    assert codes(examine(endpoint_override(), add(EXTRA % ("", labels, "")))) == set()


def test_an_engine_that_is_almost_right_is_named() -> None:
    diagnosis = examine(
        endpoint_override(), put("Deployment/decode", f"{LABELS} model.aibrix.ai/engine", "vlllm")
    )

    (refused,) = [each for each in diagnosis.findings if each.check.code == "pod-refused"]
    assert "did you mean vllm" in refused.defect.fix


def test_a_side_channel_variable_that_is_almost_right_is_named() -> None:
    diagnosis = examine(
        endpoint_override(),
        put(
            "Deployment/prefill",
            "spec template spec containers 0 env 0 name",
            "VLLM_NIXL_SIDECHANNEL_HOST",
        ),
    )

    (finding,) = diagnosis.findings
    assert finding.check.code == "nixl-host-local"
    assert finding.defect.fix == ("call VLLM_NIXL_SIDECHANNEL_HOST VLLM_NIXL_SIDE_CHANNEL_HOST")


@pytest.mark.parametrize(
    ("connector", "expected"),
    [
        ("nixl", {"nixl-host-local"}),
        ("nixl-push", {"nixl-host-local"}),
        ("neuron-write", {"nixl-host-local"}),
        ("mooncake", set()),
    ],
)
def test_only_nixl_has_a_side_channel(connector: str, expected: set[str]) -> None:
    label = f"{LABELS} model.aibrix.ai/kv-connector-type"
    diagnosis = examine(
        endpoint_override(),
        put("Deployment/prefill", label, connector),
        put("Deployment/decode", label, connector),
        drop("Deployment/prefill", "spec template spec containers 0 env 0"),
    )
    assert codes(diagnosis) == expected


@pytest.mark.parametrize(
    ("name", "code", "fix"),
    [
        ("ROUTING_ALGORITM", "routing-algorithm-misspelt", "name it ROUTING_ALGORITHM"),
        ("AIBRIX_ROUTING_ALGORITHM", "routing-algorithm-misspelt", "name it ROUTING_ALGORITHM"),
        ("ROUTING-ALGORITHM", "routing-algorithm-misspelt", "name it ROUTING_ALGORITHM"),
        ("PDROUTER_PREFIL_RETRIES", "setting-unknown", "did you mean PDROUTER_PREFILL_RETRIES?"),
        (
            "AIBRIX_PREFIL_REQUEST_TIMEOUT",
            "setting-unknown",
            "did you mean AIBRIX_PREFILL_REQUEST_TIMEOUT?",
        ),
        ("PDROUTER_NOTHING_LIKE_IT", "setting-unknown", "see `pdrouter settings` for the names"),
    ],
)
def test_a_variable_that_is_almost_right_is_found(name: str, code: str, fix: str) -> None:
    (finding,) = examine(endpoint_override(), setting(name, "2")).findings

    assert (finding.check.code, finding.defect.fix) == (code, fix)
    assert finding.defect.field == f"spec.template.spec.containers[0].env[{name}]"


@pytest.mark.parametrize(
    "name", ["AIBRIX_TOKENIZER_REQUEST_TIMEOUT", "REDIS_HOST", "POD_NAMESPACE", "LOG_LEVEL"]
)
def test_variables_of_others_are_not_found(name: str) -> None:
    assert codes(examine(endpoint_override(), setting(name, "2"))) == set()


def test_a_router_is_known_by_a_variable_that_is_almost_right() -> None:
    container = "spec template spec containers 0"
    diagnosis = examine(
        endpoint_override(),
        put("Deployment/router", f"{container} image", "registry.example/gateway:1"),
        put("Deployment/router", f"{container} env", [{"name": "ROUTING_ALGORITM", "value": "pd"}]),
        drop("EnvoyExtensionPolicy"),
    )

    assert "routing-algorithm-misspelt" in codes(diagnosis)
