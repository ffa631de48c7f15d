"""What steers requests behind the router: members of bodies and headers that no client may set.

One table for everybody: bodies and headers are stripped by it, settings are held to it, and
`docs/requests.md` shows it.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """A member of a body or a header that is the router's to set, or nobody's.

    Attributes:
        name: the member, or the header in lower case.
        reader: who acts on it.
        reason: what a client could do with it.
        early: whether Envoy is to remove it before any filter runs even where it can remove few:
            it acts on it itself, or the header leads somewhere by whatever way it comes.
    """

    name: str
    reader: str
    reason: str
    early: bool = False


_READ_OTHERS = "read another request's KV blocks, connect the engine to any address, or crash it"
_MEET = "meet another request's transfer, or let one wait for ever"
_RANK = "take a rank that others are balanced over, or one that does not hold the blocks"
_ADDRESS = "go to any address"

CONTROL_MEMBERS = (
    Control("kv_transfer_params", "vLLM, Neuron", _READ_OTHERS),
    Control("ec_transfer_params", "vLLM, Neuron", "fetch what was encoded for another request"),
    Control("transfer_id", "vLLM (NIXL push, Mooncake)", _MEET),
    Control("remote_decoder", "vLLM (P2P tier)", _MEET),
    Control("remote_prefiller", "vLLM (P2P tier)", _READ_OTHERS),
    Control("remote_kv_source", "vLLM (P2P tier)", _READ_OTHERS),
    Control("disagg_prefill_resp", "Neuron before 2.31, aibrix's `nixl`", _READ_OTHERS),
    Control("disaggregated_params", "TensorRT-LLM", _READ_OTHERS),
    Control("bootstrap_host", "SGLang", "connect the engine to any address"),
    Control("bootstrap_port", "SGLang", "connect the engine to any port"),
    Control("bootstrap_room", "SGLang", f"{_MEET}; one room used twice crashes engines"),
    Control("bootstrap_pair_key", "SGLang", _MEET),
    Control("decode_tp_size", "SGLang", "have blocks written in a layout that is not there"),
    Control("routed_dp_rank", "SGLang", _RANK),
    Control("disagg_prefill_dp_rank", "SGLang", _RANK),
    Control("data_parallel_rank", "SGLang, older name", _RANK),
    Control("rid", "SGLang", "take, and so abort, another request's id"),
    Control("nvext", "Dynamo", "name workers, and token ids in place of the prompt"),
)
"""Members of bodies, wherever they hide: at the top, in `vllm_xargs` or in `extra_args`."""

POD_HEADERS = (
    Control("target-pod", "Envoy (ORIGINAL_DST)", _ADDRESS, early=True),
    Control(
        "x-gateway-destination-endpoint", "Envoy (override_host)", "choose the pod", early=True
    ),
    Control("target-pod-ip", "aibrix", "look like the router's word"),
    Control("prefill-target-pod", "aibrix", "look like the router's word"),
    Control("prefill-target-pod-ip", "aibrix", "look like the router's word"),
    Control(
        "x-prefiller-host-port", "llm-d's sidecar", "send the prompt to any address", early=True
    ),
    Control("x-encoder-hosts-ports", "llm-d's sidecar", "send media to any address", early=True),
    Control("x-kv-cache-source-host-port", "llm-d's sidecar", "fetch KV blocks from any address"),
    Control("x-data-parallel-host-port", "llm-d's sidecar", _ADDRESS, early=True),
    Control("x-data-parallel-rank", "vLLM, SGLang", _RANK, early=True),
    Control("epp-profile", "llm-d's endpoint picker", "choose what pods are chosen by"),
    Control("x-trtllm-disagg-auth", "TensorRT-LLM", "present a signed hand-over again"),
    Control(
        "x-envoy-original-dst-host", "Envoy (ORIGINAL_DST without a name)", _ADDRESS, early=True
    ),
)
"""Headers by which somebody behind the router chooses a pod, a rank or a transfer."""

RETRY_HEADERS = tuple(
    Control(name, "Envoy, for internal clients", "have a KV handle sent twice", early=True)
    for name in (
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-retriable-status-codes",
        "x-envoy-retriable-header-names",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-hedge-on-per-try-timeout",
    )
)
"""Headers by which Envoy sends a request again."""

RANK_PREFIX = "x-data-parallel-"
"""What the names of headers for data-parallel ranks begin with; newer engines may know more."""


def describe_controls() -> str:
    """Return the tables in Markdown."""
    ranks = Control(f"{RANK_PREFIX}*", "newer engines", _RANK)
    return "\n".join(
        [
            *_describe("Member of a body", CONTROL_MEMBERS),
            "",
            *_describe("Header", (*POD_HEADERS, ranks, *RETRY_HEADERS)),
            "",
        ]
    )


def _describe(title: str, controls: Iterable[Control]) -> list[str]:
    return [
        f"| {title} | Who acts on it | With it, a client could |",
        "|---|---|---|",
        *(f"| `{each.name}` | {each.reader} | {each.reason} |" for each in controls),
    ]
