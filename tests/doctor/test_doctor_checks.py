"""Each check: silent on healthy installations, and heard on one that is broken in its way."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from setups import (
    Case,
    Change,
    Documents,
    add,
    codes,
    drop,
    endpoint_override,
    examine,
    original_dst,
    put,
    setting,
)

EXT_PROC = "spec extProc 0"
PATCHED_CLUSTER = "spec jsonPatches 0 operation value"
PATCHED_ROUTE = "spec jsonPatches 1 operation value"
LABELS = "spec template metadata labels"
ANNOTATIONS = "spec template metadata annotations"
POD = "spec template spec"
CONTAINER = f"{POD} containers 0"
NIXL_HOST = f"{CONTAINER} env 0"
ENCODER = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: encode}
spec:
  replicas: 2
  selector: {matchLabels: {role-name: encode}}
  template:
    metadata:
      labels: {role-name: encode, model.aibrix.ai/name: llama, %s}
      annotations: {model.aibrix.ai/port: "8000"}
    spec:
      containers:
      - name: vllm
        image: registry.example/vllm:1
        ports:
        - {name: http, containerPort: 8000}
"""
TRTLLM = [
    *(
        put(f"Deployment/{role}", f"{LABELS} model.aibrix.ai/engine", "trtllm")
        for role in ("prefill", "decode")
    ),
    put(
        "Deployment/decode",
        f"{CONTAINER} args",
        ["echo 'internal_request_auth_key: k' >/c; trtllm-serve m --config /c"],
    ),
]
"""TensorRT-LLM engines, one of which is seen to have a key."""


def tier(connector: str, said: str, *changes: Change, option: str = "") -> list[Change]:
    """The prefill engine has a P2P tier of which its arguments say this."""
    tiers = f'"secondary_tiers": [{{"type": "p2p"{said}}}]'
    config = f'{{"kv_connector_extra_config": {{{tiers}}}}}'
    return [
        put("Deployment/prefill", f"{LABELS} model.aibrix.ai/kv-connector-type", connector),
        put("Deployment/decode", f"{LABELS} model.aibrix.ai/kv-connector-type", connector),
        put(
            "Deployment/prefill",
            f"{CONTAINER} args",
            [f"vllm serve m {option} --kv-transfer-config '{config}'"],
        ),
        *changes,
    ]


def p2p_port(value: str) -> Change:
    """The prefill engine's environment names a port for its P2P tier."""
    variable = {"name": "VLLM_P2P_SIDE_CHANNEL_PORT", "value": value}
    return put("Deployment/prefill", f"{CONTAINER} env 0", variable)


RAW_FILTER = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {name: raw}
spec:
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm}
  jsonPatches:
  - type: type.googleapis.com/envoy.config.listener.v3.Listener
    name: default/llm/http
    operation:
      op: add
      path: /default_filter_chain/filters/0/typed_config/http_filters/0
      value:
        name: envoy.filters.http.ext_proc
        typedConfig:
          "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
          processingMode: {requestTrailerMode: SEND}
          %s
"""

MODEL_ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: llama-router, namespace: aibrix-system}
spec:
  parentRefs: [{name: llm, namespace: default}]
  rules:
  - matches:
    - path: {type: PathPrefix, value: /v1}
      headers: [{name: model, value: llama}]
    timeouts: {request: 120s}
    backendRefs: [{name: llama, port: 8000}]
"""

STEERED_ROUTE = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {name: shortcut}
spec:
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm}
  jsonPatches:
  - type: type.googleapis.com/envoy.config.route.v3.RouteConfiguration
    name: default/llm/http
    operation:
      op: add
      path: /virtual_hosts/0/routes
      value:
      - match: {%s}
        route: {cluster: somewhere, timeout: 0s}
"""

PATCHED_IDLE_TIMEOUT = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {name: limits}
spec:
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm}
  jsonPatches:
  - type: type.googleapis.com/envoy.config.listener.v3.Listener
    name: default/llm/http
    operation:
      op: add
      path: /default_filter_chain/filters/0/typed_config/stream_idle_timeout
      value: %s
"""

EXTRA_ENGINE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: extra}
spec:
  selector: {matchLabels: {app: extra}}
  template:
    metadata: {labels: {app: extra, %s}}
    spec: {containers: [{name: vllm, ports: [{containerPort: 8000, name: http}]}]}
"""


REMOVE_MODEL = put(
    "ClientTrafficPolicy",
    "spec headers earlyRequestHeaders removeOnMatch",
    [{"type": "Exact", "value": "model"}],
)


BROKEN = [
    Case(
        "object-invalid",
        "Deployment default/router",
        [put("Deployment/router", f"{CONTAINER} env 1 value", 590)],
    ),
    Case(
        "object-invalid",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout", "ten minutes")],
    ),
    Case(
        "object-invalid",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec connection bufferLimit", "much")],
        also={"client-buffer-default", "control-headers-kept", "stream-idle-timeout-short"},
    ),
    Case(
        "request-body-not-buffered",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode request body", "Streamed")],
    ),
    Case(
        "request-body-not-buffered",
        "EnvoyExtensionPolicy default/router",
        [drop("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode request")],
    ),
    Case(
        "response-body-streamed",
        "EnvoyExtensionPolicy default/router",
        [
            put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode response body", "Streamed"),
            put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode allowModeOverride", False),
        ],
        also={"request-trailers-skipped"},
    ),
    Case(
        "fail-open",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} failOpen", True)],
    ),
    Case(
        "fail-open-steered",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} failOpen", True)],
        "original_dst",
    ),
    Case(
        "message-timeout-missing",
        "EnvoyExtensionPolicy default/router",
        [drop("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout")],
    ),
    Case(
        "message-timeout-missing",
        "EnvoyPatchPolicy default/raw",
        [add(RAW_FILTER % "failureModeAllow: false")],
    ),
    Case(
        "message-timeout-short",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout", "9m")],
    ),
    Case(
        "message-timeout-short",
        "EnvoyPatchPolicy default/raw",
        [add(RAW_FILTER % "messageTimeout: 60s")],
    ),
    Case(
        "message-timeout-tight",
        "EnvoyExtensionPolicy default/router",
        [setting("AIBRIX_PREFILL_REQUEST_TIMEOUT", "600")],
    ),
    Case(
        "max-message-timeout-useless",
        "EnvoyPatchPolicy default/raw",
        [add(RAW_FILTER % "messageTimeout: 60s\n          maxMessageTimeout: 600s")],
        also={"message-timeout-short"},
    ),
    Case(
        "stream-idle-timeout-short",
        "ClientTrafficPolicy default/llm",
        [drop("ClientTrafficPolicy", "spec timeout")],
    ),
    Case(
        "stream-idle-timeout-short",
        "BackendTrafficPolicy default/llm",
        [put("BackendTrafficPolicy", "spec timeout http streamIdleTimeout", "60s")],
    ),
    Case(
        "stream-idle-timeout-short",
        "EnvoyPatchPolicy default/limits",
        [add(PATCHED_IDLE_TIMEOUT % "100s")],
    ),
    Case(
        "route-timeout-default",
        "HTTPRoute default/llm",
        [
            drop("HTTPRoute", "spec rules 0 timeouts"),
            drop("BackendTrafficPolicy", "spec timeout http requestTimeout"),
        ],
    ),
    Case(
        "route-timeout-default",
        "EnvoyPatchPolicy default/router",
        [drop("EnvoyPatchPolicy", f"{PATCHED_ROUTE} route timeout")],
        "original_dst",
    ),
    Case(
        "response-limit",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 timeouts request", "600s")],
    ),
    Case(
        "response-limit",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 timeouts backendRequest", "600s")],
    ),
    Case(
        "response-limit",
        "BackendTrafficPolicy default/llm",
        [put("BackendTrafficPolicy", "spec timeout http requestTimeout", "600s")],
    ),
    Case(
        "response-limit",
        "BackendTrafficPolicy default/llm",
        [put("BackendTrafficPolicy", "spec timeout http maxStreamDuration", "600s")],
    ),
    Case(
        "response-limit",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec connection connectionLimit maxStreamDuration", "600s")],
    ),
    Case(
        "response-limit",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyPatchPolicy", f"{PATCHED_ROUTE} route timeout", "120s")],
        "original_dst",
    ),
    Case(
        "response-limit",
        "HTTPRoute aibrix-system/llama-router",
        [add(MODEL_ROUTE), REMOVE_MODEL, setting("ROUTING_ALGORITHM", "")],
        "original_dst",
        also={"routes-forbidden"},
    ),
    Case(
        "client-buffer-default",
        "ClientTrafficPolicy default/llm",
        [drop("ClientTrafficPolicy", "spec connection")],
    ),
    Case(
        "client-buffer-default",
        "Gateway default/llm",
        [drop("ClientTrafficPolicy")],
        also={"control-headers-kept", "stream-idle-timeout-short"},
    ),
    Case(
        "client-buffer-excessive",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec connection bufferLimit", "32Mi")],
    ),
    Case(
        "client-buffer-small",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec connection bufferLimit", "4194304")],
    ),
    Case(
        "http2-window-default",
        "ClientTrafficPolicy default/llm",
        [drop("ClientTrafficPolicy", "spec http2")],
    ),
    Case(
        "ext-proc-buffer-default",
        "EnvoyExtensionPolicy default/router",
        [drop("EnvoyExtensionPolicy", f"{EXT_PROC} backendSettings connection")],
    ),
    Case(
        "ext-proc-circuit-breaker",
        "EnvoyExtensionPolicy default/router",
        [drop("EnvoyExtensionPolicy", f"{EXT_PROC} backendSettings circuitBreaker")],
    ),
    Case(
        "ext-proc-circuit-breaker",
        "EnvoyExtensionPolicy default/router",
        [
            put(
                "EnvoyExtensionPolicy",
                f"{EXT_PROC} backendSettings circuitBreaker maxParallelRequests",
                1024,
            )
        ],
    ),
    Case(
        "model-circuit-breaker",
        "BackendTrafficPolicy default/llm",
        [drop("BackendTrafficPolicy", "spec circuitBreaker maxConnections")],
    ),
    Case(
        "model-circuit-breaker",
        "EnvoyPatchPolicy default/router",
        [drop("EnvoyPatchPolicy", f"{PATCHED_CLUSTER} circuit_breakers")],
        "original_dst",
    ),
    Case(
        "model-circuit-breaker",
        "HTTPRoute default/llm",
        [drop("BackendTrafficPolicy")],
        also={"pod-choice-ignored"},
    ),
    Case(
        "steering-header-kept",
        "ClientTrafficPolicy default/llm",
        [drop("ClientTrafficPolicy", "spec headers earlyRequestHeaders remove 0")],
        "original_dst",
    ),
    Case(
        "steering-header-kept",
        "Gateway default/llm",
        [drop("ClientTrafficPolicy")],
        "original_dst",
        also={"control-headers-kept", "stream-idle-timeout-short", "client-buffer-default"},
    ),
    Case(
        "control-headers-kept",
        "ClientTrafficPolicy default/llm",
        [drop("ClientTrafficPolicy", "spec headers")],
    ),
    Case(
        "control-header-changed",
        "HTTPRoute default/llm",
        [
            put(
                "HTTPRoute",
                "spec rules 0 filters",
                [
                    {
                        "type": "RequestHeaderModifier",
                        "requestHeaderModifier": {"remove": ["Target-Pod"]},
                    }
                ],
            )
        ],
    ),
    Case(
        "control-header-changed",
        "HTTPRoute default/llm",
        [
            put(
                "HTTPRoute",
                "spec rules 0 backendRefs 0 filters",
                [{"requestHeaderModifier": {"set": [{"name": "target-pod", "value": "x"}]}}],
            )
        ],
    ),
    Case(
        "control-header-changed",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyPatchPolicy", f"{PATCHED_ROUTE} requestHeadersToRemove", ["target-pod"])],
        "original_dst",
    ),
    *(
        Case(
            "path-not-covered",
            "HTTPRoute default/llm",
            [put("HTTPRoute", "spec rules 0 matches 0 path", {"type": kind, "value": value})],
        )
        for kind, value in (
            ("PathPrefix", "/v1"),
            ("Exact", "/v1/chat/completions"),
            ("RegularExpression", "/v1/.*"),
        )
    ),
    Case(
        "path-not-covered",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 matches 0 method", "POST")],
    ),
    Case(
        "route-without-router",
        "EnvoyPatchPolicy default/router",
        [drop("EnvoyPatchPolicy", f"{PATCHED_ROUTE} typed_per_filter_config")],
        "original_dst",
    ),
    Case(
        "route-without-router",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyExtensionPolicy", "metadata name", "renamed")],
        "original_dst",
        also={"patch-target-unknown"},
    ),
    *(
        Case(
            "route-without-router",
            "EnvoyPatchPolicy default/shortcut",
            [add(STEERED_ROUTE % match)],
        )
        for match in (
            "prefix: /v1",
            "path: /v1/chat/completions",
            "path_separated_prefix: /v1",
            "safe_regex: {regex: '/v1/.*'}",
        )
    ),
    Case(
        "pod-choice-ignored",
        "BackendTrafficPolicy default/llm",
        [drop("BackendTrafficPolicy", "spec loadBalancer endpointOverride")],
    ),
    Case(
        "pod-choice-ignored",
        "BackendTrafficPolicy default/llm",
        [
            put(
                "BackendTrafficPolicy",
                "spec loadBalancer endpointOverride extractFrom",
                [{"header": "x-destination"}],
            )
        ],
    ),
    Case(
        "pod-choice-ignored",
        "EnvoyProxy default/llm",
        [put("EnvoyProxy", "spec routingType", "Service")],
    ),
    Case(
        "pod-choice-ignored",
        "BackendTrafficPolicy default/llm",
        [put("BackendTrafficPolicy", "spec routingType", "Service")],
    ),
    Case(
        "pod-choice-ignored",
        "EnvoyPatchPolicy default/router",
        [drop("EnvoyPatchPolicy", f"{PATCHED_CLUSTER} original_dst_lb_config http_header_name")],
        "original_dst",
    ),
    Case(
        "pod-choice-ignored",
        "EnvoyPatchPolicy default/router",
        [drop("EnvoyPatchPolicy", f"{PATCHED_CLUSTER} original_dst_lb_config")],
        "original_dst",
    ),
    Case(
        "fallback-reaches-prefill",
        "Service default/decode",
        [put("Service/decode", "spec selector", {"model.aibrix.ai/name": "llama"})],
    ),
    Case(
        "decode-pod-outside-service",
        "Deployment default/decode",
        [put("Service/decode", "spec selector", {"role-name": "decode", "app": "other"})],
    ),
    Case(
        "port-not-in-service",
        "Deployment default/decode",
        [put("Deployment/decode", f"{ANNOTATIONS} pdrouter/data-parallel-ports", "8000-8001")],
        words="let the route name a port of the Service for each rank's",
    ),
    Case(
        "port-not-in-service",
        "Deployment default/decode",
        [put("Service/decode", "spec ports 0 targetPort", 8080)],
    ),
    Case(
        "pod-without-model",
        "Deployment default/extra",
        [add(EXTRA_ENGINE % "role-name: decode")],
    ),
    Case(
        "pod-without-role",
        "Deployment default/extra",
        [add(EXTRA_ENGINE % "model.aibrix.ai/name: llama")],
    ),
    Case(
        "pod-refused",
        "Deployment default/prefill",
        [put("Deployment/prefill", f"{ANNOTATIONS} model.aibrix.ai/port", "http")],
    ),
    Case(
        "pod-refused",
        "Deployment default/extra",
        [
            add(
                EXTRA_ENGINE
                % "role-name: prefill, model.aibrix.ai/name: o, model.aibrix.ai/engine: homemade"
            )
        ],
        also={"roleset-half"},
    ),
    Case(
        "pod-refused",
        "Deployment default/prefill",
        [put("Deployment/prefill", f"{ANNOTATIONS} pdrouter/data-parallel-size", "many")],
    ),
    Case(
        "port-undeclared",
        "Deployment default/prefill",
        [put("Deployment/prefill", f"{ANNOTATIONS} model.aibrix.ai/port", "9000")],
    ),
    Case(
        "port-undeclared",
        "Deployment default/prefill",
        [
            drop("Deployment/prefill", ANNOTATIONS),
            put("Deployment/prefill", f"{CONTAINER} ports 0 containerPort", 9000),
        ],
    ),
    Case(
        "roleset-half",
        "Deployment default/prefill",
        [drop("Deployment/decode"), drop("ModelAdapter")],
        also={"service-without-pods"},
    ),
    Case(
        "roleset-half",
        "Deployment default/prefill",
        [put("Deployment/decode", "spec replicas", 0)],
    ),
    Case(
        "roleset-half",
        "Deployment default/decode, Deployment default/prefill",
        [put("Deployment/decode", f"{LABELS} roleset-name", "b")],
    ),
    Case(
        "engines-mixed",
        "Deployment default/prefill",
        [put("Deployment/decode", f"{LABELS} model.aibrix.ai/engine", "homemade")],
        also={"pod-refused"},
    ),
    Case(
        "connectors-mixed",
        "Deployment default/prefill",
        [
            put("Deployment/decode", f"{LABELS} model.aibrix.ai/kv-connector-type", "nixl"),
            setting("PDROUTER_NIXL_MEANS", "neuron-legacy"),
        ],
    ),
    Case(
        "revisions-apart",
        "Deployment default/prefill",
        [
            put("Deployment/prefill", f"{LABELS} pdrouter/revision", "two"),
            put("Deployment/decode", f"{LABELS} llm-d.ai/compatibility-revision", "one"),
        ],
        words="prefill pods have revision two, decode pods revision one",
    ),
    Case(
        "revisions-apart",
        "Deployment default/prefill",
        [put("Deployment/decode", f"{LABELS} pdrouter/revision", "two")],
        words="prefill pods have no revision, decode pods revision two",
    ),
    *(
        Case("nixl-host-local", "Deployment default/prefill", [change])
        for change in (
            drop("Deployment/prefill", NIXL_HOST),
            *(
                put(
                    "Deployment/prefill",
                    NIXL_HOST,
                    {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "value": host},
                )
                for host in ("0.0.0.0", "localhost", "127.0.0.1", "::")
            ),
        )
    ),
    Case(
        "nixl-host-unusable",
        "Deployment default/prefill",
        [
            drop("Deployment/prefill", NIXL_HOST),
            setting("PDROUTER_REWRITE_REMOTE_HOST", "never"),
        ],
    ),
    Case(
        "encoder-idle",
        "Deployment default/encode",
        [add(ENCODER % "roleset-name: another")],
        words="the same labels",
    ),
    Case(
        "encoder-idle",
        "Deployment default/encode",
        [add(ENCODER % "model.aibrix.ai/engine: trtllm")],
        words="its engine is trtllm",
    ),
    Case(
        "mm-embeds-missing",
        "Deployment default/decode",
        [
            add(ENCODER % "x: y"),
            put("Deployment/prefill", f"{CONTAINER} args", ["vllm serve m --enable-mm-embeds"]),
            put("Deployment/decode", f"{CONTAINER} args", ["vllm", "serve", "m"]),
        ],
        words="add --enable-mm-embeds",
    ),
    *(
        Case("p2p-tier-elsewhere", "Deployment default/prefill", changes, words=words)
        for changes, words in (
            (tier("p2p", ', "host": "$(IP)"'), "at port 5710, and other engines are sent to 7777"),
            (tier("offloading", ', "host": "$(IP)", "port": 7778'), "at port 7778"),
            (tier("offloading", ', "host": "$(IP)"', p2p_port("7000")), "at port 7000"),
            (tier("offloading", ', "port": 7777'), "localhost"),
            (tier("nixl-p2p", ', "port": 7777, "host": "0.0.0.0"'), "0.0.0.0"),
        )
    ),
    Case(
        "trtllm-key-missing",
        "Deployment default/decode",
        TRTLLM,
        words="PDROUTER_TRTLLM_AUTH_KEY_FILE",
    ),
    Case(
        "adapter-unserved",
        "ModelAdapter default/llama-sql",
        [put("ModelAdapter", "spec podSelector matchLabels", {"role-name": "embed"})],
    ),
    Case(
        "adapter-unserved",
        "ModelAdapter default/llama-sql",
        [
            put("ModelAdapter", "spec podSelector matchLabels", {"role-name": "prefill"}),
            drop("Deployment/decode"),
        ],
        also={"roleset-half", "service-without-pods"},
    ),
    Case(
        "adapter-without-decode",
        "ModelAdapter default/llama-sql",
        [put("ModelAdapter", "spec podSelector matchLabels", {"role-name": "prefill"})],
    ),
    Case(
        "adapter-shadowed",
        "ModelAdapter default/llama",
        [put("ModelAdapter", "metadata name", "llama")],
    ),
    Case(
        "setting-refused",
        "Deployment default/router",
        [setting("ROUTING_ALGORITHM", "fastest")],
    ),
    Case(
        "setting-refused",
        "Deployment default/router",
        [setting("PDROUTER_PREFILL_RETRIES", "many")],
    ),
    Case(
        "setting-refused",
        "Deployment default/router",
        [setting("PDROUTER_TLS_KEY", "/tls.key")],
    ),
    Case(
        "routing-algorithm-misspelt",
        "Deployment default/router",
        [setting("AIBRIX_ROUTING_ALGORITHM", "pd")],
    ),
    Case(
        "setting-unknown",
        "Deployment default/router",
        [setting("PDROUTER_PREFIL_RETRIES", "2")],
    ),
    Case(
        "termination-grace-short",
        "Deployment default/router",
        [drop("Deployment/router", f"{POD} terminationGracePeriodSeconds")],
    ),
    Case(
        "probe-missing",
        "Deployment default/router",
        [drop("Deployment/router", f"{CONTAINER} readinessProbe")],
    ),
    Case(
        "probe-missing",
        "Deployment default/router",
        [drop("Deployment/router", f"{CONTAINER} livenessProbe")],
    ),
    Case(
        "disruption-budget-missing",
        "Deployment default/router",
        [drop("PodDisruptionBudget")],
    ),
    Case(
        "limits-not-shared",
        "Deployment default/router",
        [setting("PDROUTER_API_KEYS_FILE", "/etc/pdrouter/users/users.yaml")],
    ),
    Case(
        "limits-not-shared",
        "Deployment default/router",
        [setting("PDROUTER_USERS", "header")],
    ),
    Case("pods-forbidden", "Deployment default/router", [put("Role", "rules 0 verbs", ["list"])]),
    Case(
        "pods-forbidden",
        "Deployment default/router",
        [drop("RoleBinding")],
        also={"adapters-forbidden"},
    ),
    Case(
        "pods-forbidden",
        "Deployment default/router",
        [
            put(
                "Deployment/router",
                f"{CONTAINER} env 2",
                {"name": "PDROUTER_NAMESPACES", "value": "*"},
            )
        ],
        also={"adapters-forbidden"},
    ),
    Case(
        "pods-forbidden",
        "Deployment default/router",
        [drop("Deployment/router", f"{POD} serviceAccountName")],
        also={"adapters-forbidden"},
    ),
    Case(
        "engine-unwatched",
        "Deployment default/decode, Deployment default/prefill",
        [
            put(
                "Deployment/router",
                f"{CONTAINER} env 2",
                {"name": "PDROUTER_NAMESPACES", "value": "elsewhere"},
            )
        ],
        also={"pods-forbidden", "adapters-forbidden"},
    ),
    Case("adapters-forbidden", "Deployment default/router", [drop("Role", "rules 1")]),
    Case(
        "routes-forbidden",
        "Deployment default/router",
        [setting("ROUTING_ALGORITHM", "")],
    ),
]


@pytest.mark.parametrize("create", [endpoint_override, original_dst])
def test_nothing_is_found_in_a_healthy_installation(create: Callable[[], Documents]) -> None:
    diagnosis = examine(create())

    assert diagnosis.findings == ()
    assert diagnosis.notes == ()


@pytest.mark.parametrize("case", BROKEN, ids=[case.code for case in BROKEN])
def test_a_broken_installation_is_found_out(case: Case) -> None:
    assert case.judge() == case.expected


GATEWAY_TARGET = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "llm"}

TIERS: dict[str, list[Change]] = {
    "a tier where others look for it": tier("p2p", ', "host": "$(IP)", "port": 7777'),
    "a tier where its environment says": tier("offloading", ', "host": "$(IP)"', p2p_port("7777")),
    "a tier where its label says": tier(
        "offloading",
        ', "host": "$(IP)", "port": 5710',
        put("Deployment/prefill", f"{LABELS} model.aibrix.ai/sglang-bootstrap-port", "5710"),
    ),
    "a tier of later ranks": tier(
        "p2p", ', "host": "$(IP)", "port": 7773', option="--data-parallel-start-rank 4"
    ),
    "a tier that nobody asks": tier("nixl", ""),
    "a tier that cannot be read": tier("p2p", ', "port": "$(PORT)"'),
}
HARMLESS: dict[str, tuple[str, list[Change]]] = {
    **{name: ("endpoint_override", changes) for name, changes in TIERS.items()},
    "a limit on silent streams that a patch sets": (
        "endpoint_override",
        [
            drop("ClientTrafficPolicy", "spec timeout http streamIdleTimeout"),
            add(PATCHED_IDLE_TIMEOUT % "900s"),
        ],
    ),
    "a policy for the whole gateway": (
        "endpoint_override",
        [
            put("EnvoyExtensionPolicy", "spec targetRefs 0", GATEWAY_TARGET),
            put("BackendTrafficPolicy", "spec targetRefs 0", GATEWAY_TARGET),
        ],
    ),
    "policies that are merged": (
        "endpoint_override",
        [
            drop("BackendTrafficPolicy", "spec circuitBreaker"),
            put("BackendTrafficPolicy", "spec mergeType", "StrategicMerge"),
            add(
                """
                apiVersion: gateway.envoyproxy.io/v1alpha1
                kind: BackendTrafficPolicy
                metadata: {name: all}
                spec:
                  targetRefs: [{kind: Gateway, name: llm}]
                  circuitBreaker:
                    maxConnections: 9999
                    maxParallelRequests: 9999
                    maxPendingRequests: 9999
                """
            ),
        ],
    ),
    "the older targetRef": (
        "endpoint_override",
        [
            drop("ClientTrafficPolicy", "spec targetRefs"),
            put("ClientTrafficPolicy", "spec targetRef", GATEWAY_TARGET),
        ],
    ),
    "targets by label": (
        "endpoint_override",
        [
            drop("BackendTrafficPolicy", "spec targetRefs"),
            put(
                "BackendTrafficPolicy",
                "spec targetSelectors",
                [{"kind": "HTTPRoute", "matchLabels": {"app": "llm"}}],
            ),
            drop("ClientTrafficPolicy", "spec targetRefs"),
            put(
                "ClientTrafficPolicy",
                "spec targetSelectors",
                [
                    {
                        "kind": "Gateway",
                        "matchExpressions": [{"key": "app", "operator": "In", "values": ["llm"]}],
                        "namespaces": {"from": "All"},
                    }
                ],
            ),
        ],
    ),
    "headers removed by pattern": (
        "original_dst",
        [
            put("ClientTrafficPolicy", "spec headers earlyRequestHeaders remove", ["target-pod"]),
            put(
                "ClientTrafficPolicy",
                "spec headers earlyRequestHeaders removeOnMatch",
                [
                    {"type": "Prefix", "value": "X-"},
                    {"type": "Suffix", "value": "-pod"},
                    {"type": "RegularExpression", "value": "x-data-parallel-.*"},
                ],
            ),
        ],
    ),
    "a timeout of the route set by the policy alone": (
        "endpoint_override",
        [drop("HTTPRoute", "spec rules 0 timeouts")],
    ),
    "limits of a route that routed requests do not take": (
        "original_dst",
        [put("HTTPRoute", "spec rules 0 timeouts request", "60s")],
    ),
    "a model's route while a strategy is set": (
        "endpoint_override",
        [add(MODEL_ROUTE), REMOVE_MODEL],
    ),
    "a response body that the router may turn off": (
        "endpoint_override",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode response body", "Streamed")],
    ),
    "another ext_proc server": (
        "endpoint_override",
        [
            add(
                """
                apiVersion: gateway.envoyproxy.io/v1alpha1
                kind: EnvoyExtensionPolicy
                metadata: {name: firewall}
                spec:
                  targetRefs: [{kind: Gateway, name: llm}]
                  extProc: [{backendRefs: [{name: firewall, port: 9000}], failOpen: true}]
                ---
                apiVersion: v1
                kind: Service
                metadata: {name: firewall}
                spec: {ports: [{port: 9000}]}
                """
            )
        ],
    ),
    "a patched route to something else": (
        "endpoint_override",
        [add(STEERED_ROUTE % "prefix: /grafana")],
    ),
    "patches of another gateway": (
        "endpoint_override",
        [
            add(STEERED_ROUTE % "prefix: /"),
            put("EnvoyPatchPolicy", "spec targetRef name", "other"),
            put("EnvoyPatchPolicy", "spec jsonPatches 0 name", "default/other/web"),
            add(
                """
                apiVersion: gateway.networking.k8s.io/v1
                kind: Gateway
                metadata: {name: other}
                spec:
                  gatewayClassName: llm
                  listeners: [{name: web, protocol: HTTP, port: 80}]
                """
            ),
        ],
    ),
    "JSON names in patches": (
        "original_dst",
        [
            drop("EnvoyPatchPolicy", f"{PATCHED_CLUSTER} original_dst_lb_config"),
            put(
                "EnvoyPatchPolicy",
                f"{PATCHED_CLUSTER} originalDstLbConfig",
                {"useHttpHeader": True, "httpHeaderName": "target-pod"},
            ),
        ],
    ),
    "a setting as an option": (
        "endpoint_override",
        [
            drop("Deployment/router", f"{CONTAINER} env 1"),
            put("Deployment/router", f"{CONTAINER} env 1 name", "HOME_NAMESPACE"),
            put(
                "Deployment/router",
                f"{CONTAINER} args",
                [
                    "serve",
                    "--kubernetes",
                    "--prefill-timeout=590",
                    "--namespaces",
                    "$(HOME_NAMESPACE)",
                ],
            ),
        ],
    ),
    "no strategy, with the right to see routes": (
        "endpoint_override",
        [
            setting("ROUTING_ALGORITHM", ""),
            setting("PDROUTER_HTTPROUTE_NAMESPACE", "default"),
            put("Role", "rules 0 apiGroups", ["", "gateway.networking.k8s.io"]),
            put("Role", "rules 0 resources", ["pods", "httproutes"]),
            put("Role", "rules 0 verbs", ["get", "list", "watch"]),
        ],
    ),
    "rights in the whole cluster": (
        "endpoint_override",
        [
            setting("PDROUTER_NAMESPACES", "*"),
            add(
                """
                apiVersion: rbac.authorization.k8s.io/v1
                kind: ClusterRole
                metadata: {name: router}
                rules: [{apiGroups: ["*"], resources: ["*"], verbs: ["*"]}]
                ---
                apiVersion: rbac.authorization.k8s.io/v1
                kind: ClusterRoleBinding
                metadata: {name: router}
                roleRef: {kind: ClusterRole, name: router}
                subjects: [{kind: Group, name: "system:serviceaccounts:default"}]
                """
            ),
        ],
    ),
    "a role that is kept elsewhere": ("endpoint_override", [drop("Role")]),
    "a router that reads a file": (
        "endpoint_override",
        [
            drop("RoleBinding"),
            put("Deployment/router", f"{CONTAINER} args", ["serve", "--endpoints", "/pods.yaml"]),
        ],
    ),
    "engines of several nodes": (
        "endpoint_override",
        [
            add(
                EXTRA_ENGINE
                % "role-name: decode, stormservice.orchestration.aibrix.ai/pod-group-index: '1'"
            )
        ],
    ),
    "a decode pod that leaves the connector to prefill": (
        "endpoint_override",
        [
            setting("PDROUTER_NIXL_MEANS", "neuron-legacy"),
            put("Deployment/prefill", f"{LABELS} model.aibrix.ai/kv-connector-type", "nixl"),
            drop("Deployment/prefill", NIXL_HOST),
        ],
    ),
    "one replica without a budget": (
        "endpoint_override",
        [drop("PodDisruptionBudget"), put("Deployment/router", "spec replicas", 1)],
    ),
    "limits that replicas share": (
        "endpoint_override",
        [
            setting("PDROUTER_API_KEYS_FILE", "/etc/pdrouter/users/users.yaml"),
            setting("PDROUTER_REDIS_URL", "redis://redis"),
        ],
    ),
    "limits that replicas share in aibrix's Redis": (
        "endpoint_override",
        [setting("REDIS_HOST", "aibrix-redis-master")],
    ),
    "limits of one replica": (
        "endpoint_override",
        [
            setting("PDROUTER_API_KEYS_FILE", "/etc/pdrouter/users/users.yaml"),
            put("Deployment/router", "spec replicas", 1),
        ],
    ),
    "an exact pattern for a header": (
        "original_dst",
        [
            drop("ClientTrafficPolicy", "spec headers earlyRequestHeaders remove 0"),
            put(
                "ClientTrafficPolicy",
                "spec headers earlyRequestHeaders removeOnMatch",
                [{"value": "Target-Pod"}],
            ),
        ],
    ),
    "paths by regular expression": (
        "endpoint_override",
        [
            put(
                "HTTPRoute",
                "spec rules 0 matches 0 path",
                {"type": "RegularExpression", "value": "/.*"},
            )
        ],
    ),
    "a regular expression of RE2": (
        "endpoint_override",
        [
            put(
                "HTTPRoute",
                "spec rules 0 matches 0 path",
                {"type": "RegularExpression", "value": r"/\pL.*"},
            )
        ],
    ),
    "a backend that is no Service": (
        "endpoint_override",
        [
            put("HTTPRoute", "spec rules 0 backendRefs 0 kind", "Backend"),
            drop("Service/decode"),
        ],
    ),
    "engines with variables from elsewhere": (
        "endpoint_override",
        [
            drop("Deployment/prefill", NIXL_HOST),
            put("Deployment/prefill", f"{CONTAINER} envFrom", [{"configMapRef": {"name": "nixl"}}]),
        ],
    ),
    "signed hand-overs": (
        "endpoint_override",
        [*TRTLLM, setting("PDROUTER_TRTLLM_AUTH_KEY_FILE", "/etc/pdrouter/trtllm/key")],
    ),
    "TensorRT-LLM engines without a key": ("endpoint_override", TRTLLM[:2]),
    "a simulated engine": (
        "endpoint_override",
        [
            put("Deployment/decode", f"{CONTAINER} image", "pdrouter:1"),
            put("Deployment/decode", f"{CONTAINER} args", ["engine", "--role", "decode"]),
        ],
    ),
    "members that are null": (
        "endpoint_override",
        [put("Deployment/router", f"{CONTAINER} command", None)],
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_not_found(name: str) -> None:
    setup, changes = HARMLESS[name]
    documents = original_dst() if setup == "original_dst" else endpoint_override()

    assert codes(examine(documents, *changes)) == set()


def test_what_comes_from_a_config_map_is_not_judged_but_noted() -> None:
    diagnosis = examine(
        endpoint_override(),
        put(
            "Deployment/router",
            f"{CONTAINER} env 1",
            {
                "name": "AIBRIX_PREFILL_REQUEST_TIMEOUT",
                "valueFrom": {"configMapKeyRef": {"name": "router", "key": "timeout"}},
            },
        ),
        put("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout", "1s"),
    )

    assert diagnosis.findings == ()
    assert diagnosis.notes == (
        "Deployment default/router: not known from the objects: AIBRIX_PREFILL_REQUEST_TIMEOUT",
    )


def test_a_router_with_settings_from_elsewhere_is_judged_by_what_is_known() -> None:
    diagnosis = examine(
        endpoint_override(),
        put("Deployment/router", f"{CONTAINER} envFrom", [{"configMapRef": {"name": "router"}}]),
        drop("Deployment/router", f"{CONTAINER} env 1"),
        drop("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout"),
        drop("ClientTrafficPolicy", "spec connection"),
        drop("Deployment/router", f"{POD} terminationGracePeriodSeconds"),
    )

    assert codes(diagnosis) == {"message-timeout-missing", "client-buffer-default"}


def test_the_router_is_known_by_the_policy_that_leads_to_it() -> None:
    diagnosis = examine(
        endpoint_override(),
        put("Deployment/router", f"{CONTAINER} image", "registry.example/gateway:1"),
        put("Deployment/router", f"{CONTAINER} env", []),
        put("EnvoyExtensionPolicy", f"{EXT_PROC} messageTimeout", "30s"),
    )

    assert "message-timeout-short" in codes(diagnosis)


def test_what_is_missing_from_the_manifests_is_noted() -> None:
    diagnosis = examine([])

    assert diagnosis.findings == ()
    assert len(diagnosis.notes) == 2


def test_errors_come_before_warnings() -> None:
    diagnosis = examine(
        endpoint_override(),
        drop("PodDisruptionBudget"),
        drop("RoleBinding"),
        drop("ClientTrafficPolicy"),
    )

    severities = [finding.check.severity for finding in diagnosis.findings]
    assert severities == sorted(severities)
    assert len(set(severities)) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "[", "1s", "16Mi"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "op", "@type", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def list_places(thing: Any) -> list[tuple[Any, Any]]:
    """Every member of an object: what holds it, and under which key."""
    places: list[tuple[Any, Any]] = []
    if isinstance(thing, dict | list):
        for key in list(thing) if isinstance(thing, dict) else range(len(thing)):
            places += [(thing, key), *list_places(thing[key])]
    return places


@pytest.mark.parametrize("create", [endpoint_override, original_dst])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_nothing_in_a_manifest_makes_the_doctor_fail(
    create: Callable[[], Documents], data: st.DataObject
) -> None:
    documents = create()
    places = [place for document in documents for place in list_places(document)]
    parent, key = data.draw(st.sampled_from(places), label="place")
    parent[key] = data.draw(JSON, label="value")

    examine(documents)


@pytest.mark.parametrize("filters", [True, [None], "all", {1: {}}, None])
def test_filters_that_are_no_object_do_not_make_the_doctor_fail(filters: object) -> None:
    documents = original_dst()
    places = [place for document in documents for place in list_places(document)]
    found = [parent for parent, key in places if key == "typed_per_filter_config"]
    assert found
    for parent in found:
        parent["typed_per_filter_config"] = filters
    examine(documents)


def test_revisions_that_are_not_looked_at_may_differ() -> None:
    label = put("Deployment/decode", f"{LABELS} pdrouter/revision", "two")
    off = setting("PDROUTER_MATCH_REVISIONS", "false")
    assert not codes(examine(endpoint_override(), label, off))
