"""The settings of the prefill leg, and of what is handed over."""

from dataclasses import dataclass
from pathlib import Path

from pdrouter.settings.choices import (
    CONNECTOR_NAMES,
    NIXL_MEANINGS,
    BlockRelease,
    FailurePolicy,
    LegOrder,
    RemoteHostRewrite,
    Routing,
    TokenIds,
    TrtllmOrder,
)
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import (
    BOOLEAN,
    COUNT,
    HEADERS,
    PATH,
    choice,
    enumeration,
    number,
    seconds,
)


@dataclass(frozen=True)
class LegSettings:
    """Settings of the legs of a request."""

    prefill_timeout_s: float = declare(
        60.0,
        "AIBRIX_PREFILL_REQUEST_TIMEOUT",
        seconds(0, 86400, above=True),
        "Deadline of the prefill leg, all attempts together, and with what is encoded before it. "
        "Envoy's `messageTimeout` must be longer.",
        "--prefill-timeout",
    )
    prefill_connect_timeout_s: float = declare(
        3.0,
        "PDROUTER_PREFILL_CONNECT_TIMEOUT",
        seconds(0, 300, above=True),
        "Deadline to connect to a prefill pod.",
        advanced=True,
    )
    prefill_response_timeout_s: float | None = declare(
        None,
        "PDROUTER_PREFILL_RESPONSE_TIMEOUT",
        seconds(0, 86400, above=True),
        "Deadline for one attempt to answer. Unset: the deadline of the leg, so that a pod that "
        "hangs leaves no time for another.",
    )
    prefill_retries: int = declare(
        2,
        "PDROUTER_PREFILL_RETRIES",
        COUNT,
        "How many further prefill pods are tried after a transport error, a 5xx or a timeout: of "
        "the same roleset first, then of others, with their decode pods. Pods that say they are "
        "busy or lack the model are not counted, unless it is 0. As many further pods are tried to "
        "encode an item.",
    )
    retry_budget_share: float = declare(
        0.2,
        "PDROUTER_RETRY_BUDGET",
        number(float, "a share,", 0.0, 100.0),
        "How many of a model's requests of late may be tried again, as a share of them, so that a "
        "pool that is broken or busy is not asked many times more. Above it, the first failure is "
        "the last.",
    )
    retry_budget_per_second: float = declare(
        10.0,
        "PDROUTER_RETRY_BUDGET_PER_SECOND",
        number(float, "a number", 0.0, 100000.0),
        "How many may be tried again per second beside these, where there are few requests.",
        advanced=True,
    )
    retry_budget_window_s: float = declare(
        10.0,
        "PDROUTER_RETRY_BUDGET_WINDOW",
        seconds(0.1, 3600),
        "Time that requests and retries are counted over.",
        advanced=True,
    )
    on_prefill_failure: FailurePolicy = declare(
        FailurePolicy.FAIL,
        "PDROUTER_ON_PREFILL_FAILURE",
        enumeration(FailurePolicy, *FailurePolicy),
        "What to do when no prefill pod carries out the leg: `fail` gives the client an error "
        "(502, 503, 504), `aggregate` lets the decode pod serve the request whole.",
    )
    on_handoff_failure: FailurePolicy = declare(
        FailurePolicy.AGGREGATE,
        "PDROUTER_ON_HANDOFF_FAILURE",
        enumeration(FailurePolicy, *FailurePolicy),
        "What to do when a prefill answer holds no usable KV handle (engines give none for very "
        "short prompts): `aggregate` or `fail`, as above.",
    )
    forward_headers: tuple[str, ...] = declare(
        (),
        "PDROUTER_FORWARD_HEADERS",
        HEADERS,
        "Client headers to send to prefill pods beside the usual ones (authorization, traceparent, "
        "session headers).",
    )
    kv_connector: str = declare(
        "shfs",
        "AIBRIX_KV_CONNECTOR_TYPE",
        choice(*CONNECTOR_NAMES),
        "KV connector of pods that name none. `shfs` is aibrix's name for vLLM's NixlConnector; "
        "`nixl-push` is its push mode, which is also called `neuron-write`; `offloading`, or "
        "`p2p`, is its OffloadingConnector with a P2P tier, and `nixl-p2p` that tier beside "
        "NixlConnector.",
    )
    nixl_means: str = declare(
        "nixl",
        "PDROUTER_NIXL_MEANS",
        choice(*NIXL_MEANINGS),
        "What the connector name `nixl` stands for: vLLM's NixlConnector, or the older Neuron wire "
        "that aibrix calls by this name.",
    )
    leg_order: LegOrder = declare(
        LegOrder.AUTO,
        "PDROUTER_LEG_ORDER",
        enumeration(LegOrder, *LegOrder),
        "When the decode leg is sent where engines take both legs at once (NIXL push, Mooncake, "
        "P2P): `auto`, with the prefill leg, which saves a round trip; `serial`, when that is "
        "answered, so that a prefill leg that fails is tried on another pod whenever it fails.",
        advanced=True,
    )
    pass_token_ids: TokenIds = declare(
        TokenIds.OFF,
        "PDROUTER_PASS_TOKEN_IDS",
        enumeration(TokenIds, *TokenIds),
        "Whether decode gets the ids of a chat's tokens from prefill, so that it does not tokenise "
        "the prompt again (vLLM's NixlConnector): `auto`, where the prefill engine says them "
        "(`return_token_ids`), or `off`. For engines that read them "
        "(`kv_transfer_params.prompt_token_ids`, vLLM from July 2026 on): to older ones they are "
        "of no use, and may double the body.",
        advanced=True,
    )
    rewrite_remote_host: RemoteHostRewrite = declare(
        RemoteHostRewrite.AUTO,
        "PDROUTER_REWRITE_REMOTE_HOST",
        enumeration(RemoteHostRewrite, *RemoteHostRewrite),
        "When `remote_host` in a KV handle becomes the prefill pod's address, and `peer_host` the "
        "encode pod's; `auto`: when it is a loopback or wildcard address, or empty.",
    )
    trtllm_auth_key_file: Path | None = declare(
        None,
        "PDROUTER_TRTLLM_AUTH_KEY_FILE",
        PATH,
        "File with the key that TensorRT-LLM's workers have as `internal_request_auth_key` (a "
        "Secret, mounted): what is handed over is signed with it. Read at the start. Unset: not "
        "signed, which workers with a key refuse.",
        advanced=True,
    )
    trtllm_order: TrtllmOrder = declare(
        TrtllmOrder.CONTEXT_FIRST,
        "PDROUTER_TRTLLM_ORDER",
        enumeration(TrtllmOrder, *TrtllmOrder),
        "Which leg TensorRT-LLM engines get first: `context-first`, which all of them know, or "
        "`generation-first`, which saves a round trip where they know that `schedule_style`.",
        advanced=True,
    )
    trtllm_machine_id: int | None = declare(
        None,
        "AIBRIX_TRT_MACHINE_ID",
        number(int, "a whole number", 0, 1023),
        "Number of this router among those that use the same TensorRT-LLM engines: the upper bits "
        "of the ids that both legs have. Unset: they are drawn for each request.",
        advanced=True,
    )
    release: BlockRelease = declare(
        BlockRelease.AUTO,
        "PDROUTER_RELEASE",
        enumeration(BlockRelease, *BlockRelease),
        "Whether a decode engine is asked to have the blocks freed that nobody will fetch, because "
        "the decode pod could not be reached or the handle was not sent: `auto`, where the wire "
        "has a way (vLLM 0.21 and later), or `off`.",
    )
    release_timeout_s: float = declare(
        10.0,
        "PDROUTER_RELEASE_TIMEOUT",
        seconds(0, 300, above=True),
        "Deadline of a release. Later, the end of the blocks' lease frees them.",
        advanced=True,
    )
    trust_ec_locator: bool = declare(
        False,
        "PDROUTER_TRUST_EC_LOCATOR",
        BOOLEAN,
        "Whether `sampling_params.extra_args.kv_transfer_params.ec_locator` reaches engines, for a "
        "router in front that has media encoded (Neuron); such requests go whole to one pod. Who "
        "can set it makes engines connect to any address: nobody but that router may reach Envoy.",
        advanced=True,
    )
    kv_lease_s: float = declare(
        30.0,
        "PDROUTER_KV_LEASE",
        seconds(0, 86400, above=True),
        "Seconds for which prefill engines keep blocks that nobody has asked for: vLLM's "
        "`kv_lease_duration` (before 0.20: 480, by `VLLM_NIXL_ABORT_REQUEST_TIMEOUT`). A handle "
        "that has waited for nine tenths of it is not sent.",
        advanced=True,
    )
    pod_routing: Routing = declare(
        Routing.ORIGINAL_DST,
        "PDROUTER_POD_ROUTING",
        enumeration(Routing, *Routing),
        "How Envoy reaches the chosen pod. With `override-host` (Envoy Gateway's "
        "`endpointOverride`) `x-gateway-destination-endpoint` names a second pod too, for Envoy to "
        "take if it cannot connect to the first; an `original-dst` cluster understands one only.",
    )
    sglang_split_n: bool = declare(
        True,
        "PDROUTER_SGLANG_SPLIT_N",
        BOOLEAN,
        "Whether SGLang's engines get requests for several choices (`n`). Some releases give all "
        "choices of a prompt one room, and hang. If not, pods without a role serve them whole; "
        "without such, they are refused.",
        advanced=True,
    )
    encode_items: int = declare(
        64,
        "PDROUTER_ENCODE_ITEMS",
        number(int, "a whole number", 1, 10000),
        "How many images, sounds and videos a request may have where there are pods that encode "
        "them. One with more gets 400.",
        advanced=True,
    )
    encode_concurrency: int = declare(
        16,
        "PDROUTER_ENCODE_CONCURRENCY",
        number(int, "a whole number", 1, 10000),
        "How many of them are encoded at once.",
        advanced=True,
    )
    split_multimodal: bool = declare(
        False,
        "PDROUTER_SPLIT_MULTIMODAL",
        BOOLEAN,
        "Whether prompts with images, sound or files get two legs, each of which encodes them. "
        "Engines must support it. Where pods encode for the others, chats are split in any case.",
    )
