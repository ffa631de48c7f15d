"""What may be chosen: the enumerations and names that settings, labels and endpoints files know.

Rooms above take the enumerations from here. Where they keep a registry by such names, a test holds
it to these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from pdrouter.settings.controls import POD_HEADERS, RETRY_HEADERS

ALGORITHM_NAMES = (
    "random",
    "least-request",
    "least-busy-time",
    "least-gpu-cache",
    "least-kv-cache",
    "least-utilization",
    "least-latency",
    "throughput",
    "power-of-two",
    "prefix-cache",
    "prefix-cache-preble",
    "vtc-basic",
    "session-affinity",
    "slo",
    "slo-pack-load",
    "slo-least-load",
    "slo-least-load-pulling",
)
"""Algorithms that choose one pod: for a whole request, or for a leg of `pd`."""

UNLISTED_ALGORITHMS = frozenset(
    {
        *("random", "power-of-two"),
        *("slo", "slo-pack-load", "slo-least-load", "slo-least-load-pulling"),
    }
)
"""Those of them that stand alone: they give no scores that could be added to others'."""

STRATEGY_NAMES = ("pd", *ALGORITHM_NAMES)
"""Values of `ROUTING_ALGORITHM` and of the `routing-strategy` header; lists are values, too."""

PREFILL_POLICY_NAMES = ("ttft", "prefix_cache", "least_request", "conductor")
"""Values of `AIBRIX_PREFILL_SCORE_POLICY` and of `prefillScorePolicy` in a profile, beside the
algorithms."""

DECODE_POLICY_NAMES = ("kv_capacity", "load_balancing", "least_request", "conductor")
"""Values of `AIBRIX_DECODE_SCORE_POLICY` and of `decodeScorePolicy` in a profile, beside the
algorithms."""

# A policy of the same name goes before an algorithm: it is aibrix's for this leg.
PREFILL_ALGORITHM_NAMES = tuple(
    name for name in ALGORITHM_NAMES if name.replace("-", "_") not in PREFILL_POLICY_NAMES
)
"""Algorithms that may rank prefill pods, beside the policies."""

DECODE_ALGORITHM_NAMES = tuple(
    name for name in ALGORITHM_NAMES if name.replace("-", "_") not in DECODE_POLICY_NAMES
)
"""Algorithms that may rank decode pods, beside the policies."""

PREBLE_GPUS = ("V100", "A6000")
"""Values of `AIBRIX_ROUTER_PREBLE_TARGET_GPU`."""

VTC_UNITS_S: Mapping[str, float] = MappingProxyType(
    {"minutes": 60.0, "seconds": 1.0, "milliseconds": 0.001}
)
"""Values of `AIBRIX_ROUTER_VTC_TOKEN_TRACKER_TIME_UNIT`, with the seconds of each."""

CONNECTOR_NAMES = (
    "nixl",
    "shfs",
    "nixl-push",
    "neuron-write",
    "mooncake",
    "offloading",
    "p2p",
    "nixl-p2p",
    "neuron-legacy",
)
"""Names of KV connectors that settings, labels and endpoints files may use."""

ENCODE_ENGINES = frozenset({"vllm"})
"""Engines of which some may encode what is no text for the others."""

SPLIT_ONLY_ENGINES = frozenset({"sglang"})
"""Engines whose decode pods compute no prompts: they cannot serve a request whole."""

WHOLE_ONLY_ENGINES = ("xdit", "xllm")
"""Engines of which no wire is known: each of their pods serves whole requests, whatever role it is
said to have."""

NIXL_MEANINGS = ("nixl", "neuron-legacy")
"""What the name `nixl` can mean: the upstream NIXL wire, or what aibrix calls by that name."""

NEVER_FORWARDED = frozenset(
    {
        *(header.name for header in (*POD_HEADERS, *RETRY_HEADERS)),
        "routing-strategy",
        "x-client-routing-strategy",
        "model",
        "x-request-id",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""What must not be sent to prefill pods as the client wrote it: it steers the request, or frames a
message or a connection that is another one there."""


class EngineEncryption(StrEnum):
    """How engines are spoken to."""

    OFF = "off"
    """In plain text."""
    ON = "on"
    """In TLS, with certificates that are checked."""
    INSECURE = "insecure"
    """In TLS, with whoever answers."""


class Transport(StrEnum):
    """What carries the ext_proc streams."""

    GRPCIO = "grpcio"
    """gRPC's own server."""
    HTTP2 = "http2"
    """Our own HTTP/2 server."""


class Aggregation(StrEnum):
    """When a decode pod may serve a request whole that has two legs."""

    NEVER = "never"
    """Never: without a ready prefill pod, requests are refused."""
    FALLBACK = "fallback"
    """If there is no ready prefill pod."""
    WHEN_FASTER = "when-faster"
    """Then, and if it is predicted to be faster."""


class FailurePolicy(StrEnum):
    """What becomes of a request whose prefill leg gives nothing to hand over."""

    FAIL = "fail"
    """The client gets an error."""
    AGGREGATE = "aggregate"
    """The decode pod serves the request whole."""


class RemoteHostRewrite(StrEnum):
    """When `remote_host` becomes the prefill pod's address.

    Engines fill it from `VLLM_NIXL_SIDE_CHANNEL_HOST`, whose default is `localhost`; Neuron's
    tutorials set `0.0.0.0`. Neither leads anywhere from another node.
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class LegOrder(StrEnum):
    """When the last leg is sent where engines take both at once."""

    AUTO = "auto"
    """At once: it saves the way back of the prefill leg's answer."""
    SERIAL = "serial"
    """Once the prefill leg is answered: then it can be tried on another pod, or the request be
    served whole, whatever has gone wrong."""


class UserSource(StrEnum):
    """How users are known whose requests have no key of their own."""

    KEYS = "keys"
    """Not at all."""
    HEADER = "header"
    """By the header `user`."""
    AIBRIX = "aibrix"
    """By that header, which names a user whom aibrix's metadata service keeps in Redis."""


class OnFailure(StrEnum):
    """What becomes of requests whose limits cannot be checked."""

    OPEN = "open"
    """They pass."""
    CLOSED = "closed"
    """They are refused."""


class TokenIds(StrEnum):
    """Whether decode engines get the ids of a prompt's tokens."""

    AUTO = "auto"
    """If the prefill engine says them where it is asked to."""
    OFF = "off"
    """They are not asked for: the decode engine tokenises the prompt again."""


class TrtllmOrder(StrEnum):
    """Which leg of a TensorRT-LLM request is sent first."""

    CONTEXT_FIRST = "context-first"
    """The context leg: the generation leg brings its answer."""
    GENERATION_FIRST = "generation-first"
    """The generation leg does not wait for it: they meet by an id."""


class Priority(StrEnum):
    """Whether engines are told when a request's first token is due."""

    OFF = "off"
    """Never: a client's own priority reaches engines as it is."""
    AUTO = "auto"
    """Those that are known to take it: they are asked, and what they say is remembered."""
    ON = "on"
    """All but those that have refused it."""


class SessionAffinity(StrEnum):
    """Whether the requests of a session go to the same pod."""

    OFF = "off"
    """Only where a strategy or a policy of that name is asked for."""
    SOFT = "soft"
    """As long as that pod has not much more to do than the others."""
    STRICT = "strict"
    """As long as it is there."""


class Fairness(StrEnum):
    """Whether users take turns while pods have enough to do."""

    OFF = "off"
    """Never: every request goes to a pod as it comes."""
    TOKENS = "tokens"
    """By the tokens that each was served."""


class BlockRelease(StrEnum):
    """Whether engines are told of blocks that nobody will fetch."""

    AUTO = "auto"
    """Where the wire has a way."""
    OFF = "off"
    """Never: the end of their lease frees them."""


class Routing(StrEnum):
    """How Envoy reaches the pod that the router chose.

    Both variants read a header that the router sets on every routed request.
    """

    ORIGINAL_DST = "original-dst"
    """`target-pod` may name any address: nothing to keep up to date, no health, no fallback."""

    OVERRIDE_HOST = "override-host"
    """`x-gateway-destination-endpoint` selects among the decode endpoints known to Envoy, the
    second that it names if it cannot connect to the first; a request without a known choice goes to
    any of them."""


@dataclass(frozen=True, slots=True)
class TokenObservation:
    """Who tells when the first token of an answer came, and who counts the tokens.

    Attributes:
        access_log: whether Envoy tells of each request that has ended, in its access log.
        counts: whether the tokens count that it tells.
        share: the share of requests whose answers pass through the router to be counted.
    """

    access_log: bool = False
    counts: bool = False
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "TokenObservation":
        """Read `off`, `first-token`, `access-log`, `all` or `sampled:SHARE`.

        Raises:
            ValueError: it is none of them.
        """
        match text.partition(":"):
            case ("off", "", ""):
                return cls()
            case ("first-token", "", ""):
                return FIRST_TOKEN
            case ("access-log", "", ""):
                return cls(access_log=True, counts=True)
            case ("all", "", ""):
                return cls(access_log=True, share=1.0)
            case ("sampled", ":", share) if 0 < float(share) <= 1:
                return cls(access_log=True, share=float(share))
            case _:
                raise ValueError(text)

    def __str__(self) -> str:
        if self.share:
            return "all" if self.share == 1 else f"sampled:{self.share:g}"
        if self.counts:
            return "access-log"
        return "first-token" if self.access_log else "off"


NO_OBSERVATION = TokenObservation()
FIRST_TOKEN = TokenObservation(access_log=True)
"""Envoy tells when the first token came, if it is configured to; nobody counts the others."""
