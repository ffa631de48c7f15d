"""Objects that name others, and selectors: what is not there is found, with what may be meant."""

import pytest
from setups import Case, Change, add, codes, drop, endpoint_override, examine, original_dst, put

EXT_PROC = "spec extProc 0"
POD = "spec template spec"

OTHER_NAMESPACE = """
apiVersion: v1
kind: Service
metadata: {name: embed, namespace: engines}
spec:
  ports: [{port: 8000}]
"""

GRANT = """
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: routes, namespace: engines}
spec:
  from: [{group: gateway.networking.k8s.io, kind: %s, namespace: default}]
  to: [{group: "", kind: Service}]
"""

EMBED_BACKEND = put(
    "HTTPRoute",
    "spec rules 0 backendRefs 0",
    {"name": "embed", "namespace": "engines", "port": 8000},
)

BROKEN = [
    Case(
        "reference-broken",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 backendRefs 0 name", "decod")],
        words="did you mean decode?",
    ),
    Case(
        "reference-broken",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec rules 0 backendRefs 0 port", 80)],
        words="Service default/decode has no port 80 it has 8000",
    ),
    Case(
        "reference-broken",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec parentRefs 0 sectionName", "https")],
        words="has no listener https it has http",
    ),
    Case(
        "reference-broken",
        "HTTPRoute default/llm",
        [put("HTTPRoute", "spec parentRefs 0 name", "public")],
        words="there is no Gateway default/public create it, or name one that exists",
    ),
    Case(
        "reference-broken",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", "spec targetRefs 0 name", "ll")],
        words="there is no HTTPRoute default/ll",
    ),
    Case(
        "reference-broken",
        "EnvoyExtensionPolicy default/router",
        [put("EnvoyExtensionPolicy", f"{EXT_PROC} backendRefs 0 name", "routr")],
        words="did you mean router?",
    ),
    Case(
        "reference-broken",
        "BackendTrafficPolicy default/llm",
        [put("BackendTrafficPolicy", "spec targetRefs 0 name", "lm-route")],
        also={"pod-choice-ignored", "model-circuit-breaker"},
    ),
    Case(
        "reference-broken",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec targetRefs 0 sectionName", "https")],
        words="no listener https",
    ),
    Case(
        "reference-broken",
        "EnvoyPatchPolicy router-ns/router",
        [
            put("EnvoyPatchPolicy", "metadata namespace", "router-ns"),
            add(
                """
                apiVersion: gateway.networking.k8s.io/v1
                kind: Gateway
                metadata: {name: web, namespace: router-ns}
                spec:
                  gatewayClassName: llm
                  listeners: [{name: http, protocol: HTTP, port: 80}]
                """
            ),
        ],
        "original_dst",
        also={"pod-choice-ignored", "model-circuit-breaker", "patch-target-unknown"},
        words="there is one in namespace default",
    ),
    Case(
        "reference-broken",
        "Gateway default/llm",
        [put("Gateway", "spec gatewayClassName", "lmm")],
        words="there is no GatewayClass lmm",
    ),
    Case(
        "reference-broken",
        "GatewayClass llm",
        [put("GatewayClass", "spec parametersRef name", "lmm")],
        words="there is no EnvoyProxy default/lmm",
    ),
    Case(
        "reference-not-granted",
        "HTTPRoute default/llm",
        [add(OTHER_NAMESPACE), EMBED_BACKEND],
        also={"decode-pod-outside-service"},
        words="add a ReferenceGrant in namespace engines: from HTTPRoute of default, to Service",
    ),
    Case(
        "reference-not-granted",
        "HTTPRoute default/llm",
        [add(OTHER_NAMESPACE), EMBED_BACKEND, add(GRANT % "GRPCRoute")],
        also={"decode-pod-outside-service"},
    ),
    Case(
        "reference-not-granted",
        "EnvoyExtensionPolicy default/router",
        [
            add(OTHER_NAMESPACE),
            put(
                "EnvoyExtensionPolicy",
                f"{EXT_PROC} backendRefs 0",
                {"name": "embed", "namespace": "engines", "port": 8000},
            ),
        ],
    ),
    Case(
        "route-not-allowed",
        "HTTPRoute other/web",
        [
            put("Gateway", "spec listeners 0 allowedRoutes namespaces from", "Same"),
            add(
                """
                apiVersion: gateway.networking.k8s.io/v1
                kind: HTTPRoute
                metadata: {name: web, namespace: other}
                spec:
                  parentRefs: [{name: llm, namespace: default}]
                  rules: [{matches: [{path: {value: /web}}]}]
                """
            ),
        ],
        words="no listener of Gateway default/llm takes routes of namespace other",
    ),
    Case(
        "selector-mismatch",
        "Deployment default/prefill",
        [put("Deployment/prefill", "spec selector matchLabels", {"role-name": "decode"})],
        words="role-name=decode (the template has prefill)",
    ),
    Case(
        "selector-mismatch",
        "Deployment default/prefill",
        [put("Deployment/prefill", "spec selector matchLabels", {"role_name": "prefill"})],
        words="role_name=prefill (the template has role-name=prefill)",
    ),
    Case(
        "selector-mismatch",
        "Deployment default/prefill",
        [
            put(
                "Deployment/prefill",
                "spec selector",
                {"matchExpressions": [{"key": "role-name", "operator": "DoesNotExist"}]},
            )
        ],
    ),
    Case(
        "selector-mismatch",
        "Deployment default/decode",
        [drop("Deployment/decode", "spec selector")],
        words="there is none",
    ),
    Case(
        "service-without-pods",
        "Service default/router",
        [put("Service/router", "spec selector app", "routr")],
        words="no pod has app=routr pods have app=router",
    ),
    Case(
        "service-without-pods",
        "Service default/decode",
        [put("Service/decode", "spec selector", {"role_name": "decode"})],
        also={"decode-pod-outside-service"},
        words="pods have role-name=decode",
    ),
    Case(
        "target-port-unknown",
        "Service default/router",
        [put("Service/router", "spec ports 0 targetPort", "grcp")],
        words="Deployment default/router declares (grpc, http)",
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=[case.code for case in BROKEN])
def test_what_is_named_but_not_there_is_found(case: Case) -> None:
    assert case.judge() == case.expected


HARMLESS: dict[str, tuple[str, list[Change]]] = {
    "a Gateway that others install": (
        "endpoint_override",
        [drop("Gateway"), drop("GatewayClass"), drop("EnvoyProxy")],
    ),
    "engines that others install": (
        "original_dst",
        [drop("Deployment/prefill"), drop("Deployment/decode"), drop("ModelAdapter")],
    ),
    "a backend in another namespace that others install": (
        "original_dst",
        [EMBED_BACKEND],
    ),
    "a backend in another namespace that grants it": (
        "original_dst",
        [EMBED_BACKEND, add(OTHER_NAMESPACE), add(GRANT % "HTTPRoute")],
    ),
    "a Service outside the cluster": (
        "original_dst",
        [
            put(
                "Service/decode",
                "spec",
                {"type": "ExternalName", "externalName": "engines.example"},
            )
        ],
    ),
    "an object that is invalid, and so not read": (
        "original_dst",
        [put("Service/decode", "spec ports", "http")],
    ),
    "a selector by expressions": (
        "endpoint_override",
        [
            put(
                "Deployment/prefill",
                "spec selector",
                {
                    "matchExpressions": [
                        {"key": "role-name", "operator": "In", "values": ["prefill"]}
                    ]
                },
            )
        ],
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_others_may_install_is_not_missed(name: str) -> None:
    setup, changes = HARMLESS[name]
    documents = original_dst() if setup == "original_dst" else endpoint_override()

    assert codes(examine(documents, *changes)) <= {"object-invalid"}
