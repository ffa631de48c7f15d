"""Names of HTTP headers, and which of a client's headers go where."""

from collections.abc import Collection

from pdrouter.settings.controls import POD_HEADERS, RANK_PREFIX, RETRY_HEADERS

TARGET_POD = "target-pod"
DESTINATION_ENDPOINT = "x-gateway-destination-endpoint"
LB_NAMESPACE = "envoy.lb"
SERVED_ENDPOINT = f"{DESTINATION_ENDPOINT}-served"
"""What gateways of the Endpoint Picker Protocol say in this namespace of a request's metadata: the
pod that has answered."""

ROUTING_STRATEGY = "routing-strategy"
CLIENT_STRATEGY = "x-client-routing-strategy"
CONFIG_PROFILE = "config-profile"
CHOSEN_PROFILE = "x-aibrix-config-profile"
EXTERNAL_FILTER = "external-filter"
USER = "user"
SESSION_ID = "x-session-id"
TTFT_TARGET = "x-slo-ttft-ms"
REQUEST_CLASS = "x-priority"
VLLM_PRIORITY = "x-vllm-priority"
REQUEST_ID = "x-request-id"
CLIENT_REQUEST_ID = "x-client-request-id"
MODEL = "model"
MAX_RETRIES = "x-envoy-max-retries"
DECISION = "x-pd-decision"
DECISION_DETAIL = "x-pd-decision-detail"
TARGET_POD_IP = "target-pod-ip"
PREFILL_POD = "prefill-target-pod"
PREFILL_POD_IP = "prefill-target-pod-ip"

CONTROL_HEADERS = tuple(header.name for header in (*POD_HEADERS, *RETRY_HEADERS))
"""Headers that steer a request behind the router: a client's never survive. Envoy can remove them
before any filter runs, since no client has a use for them."""

EARLY_HEADERS = tuple(header.name for header in (*POD_HEADERS, *RETRY_HEADERS) if header.early)
"""Those that Envoy is to remove then in any case. With `ROUTE_HEADERS` they are 16, as many as the
Gateway API lets a filter remove."""

ROUTE_HEADERS = (ROUTING_STRATEGY, MODEL)
"""Headers by which Envoy chooses a route, where there are several: the router sets them. A client's
are removed before the first route is chosen; what it says in `routing-strategy` is kept under
`x-client-routing-strategy`."""

_ENVOY_PREFIX = "x-envoy-"
_ENVOYS_OWN = frozenset(name for name in CONTROL_HEADERS if name.startswith(_ENVOY_PREFIX))

STRIPPED_HEADERS = (
    *(name for name in CONTROL_HEADERS if name not in _ENVOYS_OWN),
    *ROUTE_HEADERS,
    CLIENT_STRATEGY,
)
"""What the router removes from every request; a strategy that is asked for is read first."""


def find_rare_controls(names: Collection[str]) -> tuple[str, ...]:
    """Return the control headers among these that are removed from requests that have them.

    Envoy's own: it lets a filter change them only where its `mutation_rules` say so, and counts
    each try. And whatever else engines may know to be about data-parallel ranks.
    """
    if _ENVOYS_OWN.isdisjoint(names) and RANK_PREFIX not in " ".join(names):
        return ()
    return tuple(
        name
        for name in names
        if (name in _ENVOYS_OWN or name.startswith(RANK_PREFIX)) and name not in STRIPPED_HEADERS
    )


RANK = f"{RANK_PREFIX}rank"
"""Which data-parallel rank behind one address a request is for."""

FORWARDED_TO_SIDE_LEGS = (
    "authorization",
    "content-type",
    "traceparent",
    "tracestate",
    "baggage",
    SESSION_ID,
    "x-correlation-id",
    "x-session-affinity",
    "x-multi-turn-session-id",
    "x-aibrix-session-key",
    VLLM_PRIORITY,
    "x-api-key",
    "anthropic-version",
    "anthropic-beta",
)
"""What an engine may need of a client's headers on the prefill leg."""

REPEATED_HEADERS = frozenset(
    {
        DECISION,
        DESTINATION_ENDPOINT,
        MAX_RETRIES,
        MODEL,
        PREFILL_POD,
        PREFILL_POD_IP,
        RANK,
        ROUTING_STRATEGY,
        TARGET_POD,
        TARGET_POD_IP,
    }
)
"""Headers that the router sets, with values that come again and again, since pods, models and
strategies are few. Those of all others are of one request, or of one client."""
