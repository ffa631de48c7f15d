"""Names of HTTP headers, and which of a client's headers go where."""

TARGET_POD = "target-pod"
DESTINATION_ENDPOINT = "x-gateway-destination-endpoint"
ROUTING_STRATEGY = "routing-strategy"
CLIENT_STRATEGY = "x-client-routing-strategy"
CONFIG_PROFILE = "config-profile"
CHOSEN_PROFILE = "x-aibrix-config-profile"
EXTERNAL_FILTER = "external-filter"
REQUEST_ID = "x-request-id"
CLIENT_REQUEST_ID = "x-client-request-id"
MODEL = "model"
DECISION = "x-pd-decision"
DECISION_DETAIL = "x-pd-decision-detail"

CONTROL_HEADERS = (
    TARGET_POD,
    DESTINATION_ENDPOINT,
    "target-pod-ip",
    "prefill-target-pod",
    "prefill-target-pod-ip",
    "x-prefiller-host-port",
    "x-data-parallel-rank",
    "x-data-parallel-host-port",
)
"""Headers that steer a request behind the router: a client's never survive. Envoy can remove them
before any filter runs, since no client has a use for them."""

ROUTE_HEADERS = (ROUTING_STRATEGY, MODEL)
"""Headers by which Envoy chooses a route, where there are several: the router sets them. A client's
are removed before the first route is chosen; what it says in `routing-strategy` is kept under
`x-client-routing-strategy`."""

STRIPPED_HEADERS = (*CONTROL_HEADERS, *ROUTE_HEADERS, CLIENT_STRATEGY)
"""What the router removes from every request; a strategy that is asked for is read first."""

FORWARDED_TO_SIDE_LEGS = (
    "authorization",
    "content-type",
    "traceparent",
    "tracestate",
    "baggage",
    "x-session-id",
    "x-aibrix-session-key",
    "x-vllm-priority",
    "x-api-key",
    "anthropic-version",
    "anthropic-beta",
)
"""What an engine may need of a client's headers on the prefill leg."""
