"""What Envoy Gateway makes of the objects: routes around the router, patches, retries, TLS."""

import pytest
from setups import (
    Case,
    Change,
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
SETTINGS = f"{EXT_PROC} backendSettings"
REMOVED = "spec headers earlyRequestHeaders removeOnMatch"

ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own}
spec:
  parentRefs: [{name: llm}]
  %s
  rules:
  - matches: [%s]
    %s
    backendRefs: [{name: %s}]
"""

ROUTER_TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: router}
spec:
  targetRefs: [{group: "", kind: Service, name: router}]
  validation: {hostname: router}
"""

PATCH = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {name: own}
spec:
  type: JSONPatch
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm}
  jsonPatches:
  - type: type.googleapis.com/envoy.config.%s
    name: %s
    operation: {op: add, path: /a, value: {%s}}
"""

HEADER = "{path: {value: /v1}, headers: [{name: Model, value: llama}]}"
SPEAKS_TLS: list[Change] = [
    add(ROUTER_TLS),
    setting("PDROUTER_TLS_CERTIFICATE", "/tls.crt"),
    setting("PDROUTER_TLS_KEY", "/tls.key"),
]


def own_route(match: str, spec: str = "", rule: str = "", backend: str = "elsewhere") -> Change:
    """Add a route of another owner; `elsewhere` is a Service that selects nothing known."""
    elsewhere = "{apiVersion: v1, kind: Service, metadata: {name: elsewhere}}"
    return add(f"{ROUTE % (spec, match, rule, backend)}---\n{elsewhere}")


def name_routes(kind: str) -> Change:
    """Let a policy name the own route beside the router's."""
    group = "gateway.networking.k8s.io"
    return put(
        kind,
        "spec targetRefs",
        [{"group": group, "kind": "HTTPRoute", "name": name} for name in ("llm", "own")],
    )


BROKEN = [
    Case(
        "route-around-router",
        "HTTPRoute default/own",
        [own_route(HEADER, backend="decode")],
        words="with the header Model takes this route at Gateway default/llm",
    ),
    Case(
        "route-around-router",
        "HTTPRoute default/own",
        [own_route(HEADER), put("ClientTrafficPolicy", REMOVED, [{"value": "x-model"}])],
    ),
    *(
        Case("route-around-router", "HTTPRoute default/own", [own_route(match, spec)])
        for match, spec in (
            ("{queryParams: [{name: a, value: b}]}", ""),
            ("{method: POST}", ""),
            ("{path: {type: Exact, value: /v1/completions}}", ""),
            ("{path: {type: RegularExpression, value: '/v1/.*'}}", ""),
            ("{path: {value: /}}", "hostnames: [llm.example]"),
            ("{headers: [{name: routing-strategy, value: x, type: RegularExpression}]}", ""),
        )
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [add(PATCH % ("listener.v3.Listener", "default/llm/htp", ""))],
        words="did you mean default/llm/http?",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [add(PATCH % ("route.v3.RouteConfiguration", "llm", ""))],
        words="name it default/llm/http",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [add(PATCH % ("cluster.v3.Cluster", "httproute/default/lm/rule/0", ""))],
        words="there is no HTTPRoute default/lm",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [add(PATCH % ("cluster.v3.Cluster", "httproute/default/llm/rule/1", ""))],
        words="HTTPRoute default/llm has no rule 1",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/router",
        [put("EnvoyPatchPolicy", "spec jsonPatches 1 name", "other/llm/http")],
        "original_dst",
        words="default/llm/http",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [
            add(
                PATCH
                % (
                    "route.v3.RouteConfiguration",
                    "default/llm/http",
                    (
                        "match: {prefix: /grafana}, route: {cluster: x}, typed_per_filter_config: {"
                        "envoy.filters.http.ext_proc/envoyextensionpolicy/other/router/extproc/0: {"
                        "}}"
                    ),
                )
            )
        ],
        words="the names end in default/router/extproc/0",
    ),
    Case(
        "request-trailers-skipped",
        "EnvoyPatchPolicy default/own",
        [
            add(
                PATCH
                % (
                    "listener.v3.Listener",
                    "default/llm/http",
                    (
                        '"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.'
                        "ExternalProcessor, message_timeout: 600s"
                    ),
                )
            )
        ],
        words="it is not set: SKIP set it to SEND",
    ),
    *(
        Case("router-retry-missing", "EnvoyExtensionPolicy default/router", [change], words=words)
        for change, words in (
            (drop("EnvoyExtensionPolicy", f"{SETTINGS} retry"), "it is not set"),
            (put("EnvoyExtensionPolicy", f"{SETTINGS} retry numRetries", 0), "numRetries is 0"),
            (
                put("EnvoyExtensionPolicy", f"{SETTINGS} retry retryOn triggers", ["5xx"]),
                "no connect-failure",
            ),
        )
    ),
    Case(
        "router-alpn-missing",
        "EnvoyProxy default/llm",
        SPEAKS_TLS,
        words="set it to [h2]",
    ),
    Case(
        "router-alpn-missing",
        "Gateway default/llm",
        [*SPEAKS_TLS, drop("EnvoyProxy"), drop("GatewayClass")],
        words="set it to [h2]",
    ),
    Case(
        "router-alpn-missing",
        "EnvoyProxy default/llm",
        [*SPEAKS_TLS, put("EnvoyProxy", "spec backendTLS", {"alpnProtocols": ["http/1.1"]})],
        words="it is http/1.1",
    ),
    Case(
        "router-tls-mismatch",
        "EnvoyExtensionPolicy default/router",
        SPEAKS_TLS[1:],
        words="no BackendTLSPolicy has its Service",
    ),
    Case(
        "router-tls-mismatch",
        "BackendTLSPolicy default/router",
        [
            add(ROUTER_TLS),
            put("EnvoyProxy", "spec backendTLS", {"alpnProtocols": ["h2"]}),
        ],
        words="has no PDROUTER_TLS_CERTIFICATE",
    ),
]


LISTENER_PATCH = """
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyPatchPolicy
metadata: {name: own}
spec:
  type: JSONPatch
  targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: llm}
  jsonPatches:
  - type: type.googleapis.com/envoy.config.listener.v3.Listener
    name: default/llm/http
    operation:
      op: add
      path: /default_filter_chain/filters/0/typed_config/common_http_protocol_options/%s
      value: %s
  - type: type.googleapis.com/envoy.config.listener.v3.Listener
    name: default/llm/http
    operation:
      op: add
      jsonPath: $..http_filters[?(@.name=='envoy.filters.http.ext_proc/%s')].typed_config
      path: processing_mode/request_trailer_mode
      value: %s
"""
FILTER = "envoyextensionpolicy/default/router/extproc/0"

BROKEN += [
    *(
        Case(
            "header-limit-low",
            "EnvoyPatchPolicy default/own",
            [add(LISTENER_PATCH % (member, value, FILTER, "SEND"))],
            words="Envoy allows 50 headers, the router 100",
        )
        for member, value in (("max_headers_count", "50"), ("x", "{maxHeadersCount: 50}"))
    ),
    Case(
        "header-limit-low",
        "ClientTrafficPolicy default/llm",
        [put("ClientTrafficPolicy", "spec headers maxRequestHeaderLimit", "8Ki")],
        words="Envoy allows 8Ki of headers, the router 60Ki",
    ),
    Case(
        "header-limit-low",
        "Deployment default/router",
        [setting("PDROUTER_MAX_HEADERS", "200")],
        words="the router allows 200 headers, Envoy 100, its default",
    ),
    Case(
        "header-limit-low",
        "EnvoyPatchPolicy default/own",
        [add(LISTENER_PATCH % ("max_request_headers_kb", "8", FILTER, "SEND"))],
        words="Envoy allows 8Ki of headers, the router 60Ki",
    ),
    Case(
        "header-limit-low",
        "Gateway default/llm",
        [setting("PDROUTER_MAX_HEADER_BYTES", "98304")],
        words="Envoy allows 60Ki of headers, the router 96Ki",
    ),
    Case(
        "patch-target-unknown",
        "EnvoyPatchPolicy default/own",
        [
            add(
                LISTENER_PATCH
                % ("max_headers_count", "200", FILTER.replace("default", "other"), "SEND")
            )
        ],
        words="the names end in default/router/extproc/0",
    ),
    Case(
        "request-trailers-skipped",
        "EnvoyExtensionPolicy default/router",
        [
            put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode allowModeOverride", False),
            add(LISTENER_PATCH % ("max_headers_count", "200", FILTER, "SKIP")),
        ],
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=[case.code for case in BROKEN])
def test_what_envoy_gateway_makes_of_the_objects_is_found(case: Case) -> None:
    assert case.judge() == case.expected


HARMLESS: dict[str, tuple[str, list[Change]]] = {
    "a route by a header that no client can send": (
        "endpoint_override",
        [own_route(HEADER), put("ClientTrafficPolicy", REMOVED, [{"value": "MODEL"}])],
    ),
    "a route that the router's policy names too": (
        "endpoint_override",
        [
            own_route(HEADER, rule="timeouts: {request: 0s}", backend="decode"),
            name_routes("EnvoyExtensionPolicy"),
            name_routes("BackendTrafficPolicy"),
        ],
    ),
    "a route to something else": (
        "endpoint_override",
        [own_route("{path: {type: Exact, value: /v1/completions}}", backend="router")],
    ),
    "a route of other paths": ("endpoint_override", [own_route("{path: {value: /grafana}}")]),
    "a route that the router's own goes before": (
        "endpoint_override",
        [
            own_route("{headers: [{name: model, value: m}]}"),
            put(
                "HTTPRoute/llm",
                "spec rules 0 matches",
                [{"path": {"type": "PathPrefix", "value": "/v1/chat/completions"}}],
            ),
        ],
    ),
    "a route of other hosts": (
        "endpoint_override",
        [
            own_route(HEADER, "hostnames: [a.example]"),
            put("HTTPRoute/llm", "spec hostnames", ["b.example"]),
        ],
    ),
    "a filter that a further patch turns on": (
        "original_dst",
        [
            drop("EnvoyPatchPolicy", "spec jsonPatches 1 operation value typed_per_filter_config"),
            put(
                "EnvoyPatchPolicy",
                "spec jsonPatches 2",
                {
                    "type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
                    "name": "default/llm/http",
                    "operation": {
                        "op": "add",
                        "path": "/virtual_hosts/0/routes/0/typedPerFilterConfig/"
                        "envoy.filters.http.ext_proc~1envoyextensionpolicy~1default~1router~1"
                        "extproc~10",
                        "value": {"config": {}},
                    },
                },
            ),
        ],
    ),
    "trailers that a patch lets Envoy send": (
        "endpoint_override",
        [
            put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode allowModeOverride", False),
            add(LISTENER_PATCH % ("max_headers_count", "200", FILTER, "SEND")),
        ],
    ),
    "a size of headers that a patch raises": (
        "endpoint_override",
        [
            setting("PDROUTER_MAX_HEADER_BYTES", "96Ki"),
            add(LISTENER_PATCH % ("max_request_headers_kb", "96", FILTER, "SEND")),
        ],
    ),
    "limits on headers that are raised on both sides": (
        "endpoint_override",
        [
            setting("PDROUTER_MAX_HEADERS", "200"),
            setting("PDROUTER_MAX_HEADER_BYTES", "96Ki"),
            put("ClientTrafficPolicy", "spec headers maxRequestHeaderLimit", "96Ki"),
            add(LISTENER_PATCH % ("max_headers_count", "256", FILTER, "SEND")),
        ],
    ),
    "trailers that lead to no engine": (
        "original_dst",
        [
            put("EnvoyExtensionPolicy", f"{EXT_PROC} processingMode allowModeOverride", False),
            put("HTTPRoute", "spec rules 0 backendRefs 0", {"name": "router", "port": 50052}),
        ],
    ),
    "health checks over TLS that offer HTTP/2": (
        "endpoint_override",
        [*SPEAKS_TLS, put("EnvoyProxy", "spec backendTLS", {"alpnProtocols": ["h2"]})],
    ),
    "TLS without health checks": (
        "endpoint_override",
        [*SPEAKS_TLS, drop("EnvoyExtensionPolicy", f"{SETTINGS} healthCheck")],
    ),
    "retries on what Envoy Gateway retries by itself": (
        "endpoint_override",
        [put("EnvoyExtensionPolicy", f"{SETTINGS} retry", {"numRetries": 2})],
    ),
    "names of the scheme by port": (
        "endpoint_override",
        [add(PATCH % ("listener.v3.Listener", "tcp-80", ""))],
    ),
    "patches of clusters that others make": (
        "endpoint_override",
        [add(PATCH % ("cluster.v3.Cluster", "xds_cluster", ""))],
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_not_found(name: str) -> None:
    setup, changes = HARMLESS[name]
    documents = original_dst() if setup == "original_dst" else endpoint_override()

    assert codes(examine(documents, *changes)) <= {"path-not-covered"}
