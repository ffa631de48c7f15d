"""What one simulated engine is: its role, its speeds and what it serves."""

import uuid
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

EngineRole = Literal["encode", "prefill", "decode", "both"]
KvConnector = Literal[
    "nixl", "nixl-push", "mooncake", "offloading", "neuron-legacy", "bootstrap", "trtllm", "none"
]

EngineRelease = Literal["new", "old"]
Priorities = Literal["ignored", "refused", "taken"]
_FIXED_ROLES = ("neuron-legacy", "bootstrap")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one simulated engine, checked when they are built.

    Attributes:
        role: What the engine is meant for. As in vLLM this is only configuration: a request of
            another kind is served, and counted. An `encode` engine serves nothing else.
        models: Names under which the model is served; the first is the base model.
        host: Address to bind to.
        port: Port to bind to; 0 takes a free one.
        kv_connector: How blocks go from prefill to decode. `neuron-legacy` has fixed roles, so
            it excludes `both`. With `bootstrap` the engine is an SGLang, whose roles are fixed too,
            and with `trtllm` a TensorRT-LLM. `offloading` is vLLM's OffloadingConnector with a P2P
            tier.
        p2p_pull: Whether an engine with `nixl` has a P2P tier beside it (MultiConnector), and so
            can have the beginning of a prompt from any other engine.
        ec_connector: Whether it fetches media from encode engines (vLLM's `ec_consumer`).
        mm_embeds: Whether chats may have parts that stand for encoded media (`--enable-mm-embeds`).
        data_parallel_size: Ranks behind the one port of the API. A P2P tier tells them apart, and
            what SGLang's rooms say.
        engine_id: The engine's identity in the handles it issues.
        prefill_tokens_per_s: Prompt tokens that the whole engine computes per second, one
            request after the other; 0 means that prefill takes no time.
        prefill_buckets: Prompt lengths that it is compiled for, ascending, as a Neuron engine is:
            it computes shorter prompts as if they had the next of these, longer ones in passes of
            the largest. Empty for an engine that takes any length.
        itl_ms: Time between two output tokens of one request, in milliseconds.
        slots: Requests that run at once; others wait in arrival order.
        priorities: What becomes of a request's `priority`: it is `ignored`, as by vLLM 0.10;
            `refused`, as by a vLLM without `--scheduling-policy priority`; or `taken`, so that the
            lowest goes first.
        kv_lease_s: Seconds during which the blocks of a finished prefill leg can be fetched.
        max_model_len: Longest prompt plus output, in tokens.
        block_size: Tokens in one KV block.
        kv_blocks: KV blocks the engine has; it only scales `vllm:kv_cache_usage_perc`.
        default_max_tokens: Output tokens of a request that sets no limit.
        release: `old` engines (before vLLM 0.13) hand out no `remote_request_id`, and no blocks
            for prompts shorter than one block. `new` ones (from 0.21 on) have the blocks of a
            decode leg freed that they refuse. `old` SGLangs let all choices of a prompt meet in one
            room, where they hang, and forget where legs meet on two of their paths.
        revision: Its version: blocks go only to engines that have the same.
        side_channel_host: The `remote_host` in issued handles; `None` is the engine's own
            address. `localhost` and `0.0.0.0` are what real engines put there by default.
        bootstrap_port: Port of a prefill engine's bootstrap server (SGLang, Mooncake), or of the
            first rank's P2P tier, those of others being next to it; 0 takes a free one.
        auth_key: Key with which a TensorRT-LLM's hand-offs are signed; empty for none.
        peer_timeout_s: Seconds for which one leg waits for the other where both run at once.
        tls_certificate: Certificate chain (PEM) of the API, where blocks and media are fetched,
            too; empty for plain text. Ports for bootstrapping stay plain.
        tls_key: Its private key.
        keepalive_timeout_s: Idle seconds after which the engine closes a connection.
        request_log_size: Received requests that are kept for inspection.

    Raises:
        ValueError: A setting is out of its range; the message names it.
    """

    role: EngineRole = "both"
    models: tuple[str, ...] = ("simulated-model",)
    host: str = "127.0.0.1"
    port: int = 0
    kv_connector: KvConnector = "nixl"
    p2p_pull: bool = False
    ec_connector: bool = False
    mm_embeds: bool = False
    data_parallel_size: int = 1
    engine_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    prefill_tokens_per_s: float = 1_000_000.0
    prefill_buckets: tuple[int, ...] = ()
    itl_ms: float = 5.0
    slots: int = 256
    priorities: Priorities = "ignored"
    kv_lease_s: float = 30.0
    max_model_len: int = 32_768
    block_size: int = 16
    kv_blocks: int = 16_384
    default_max_tokens: int = 16
    release: EngineRelease = "new"
    revision: str = ""
    side_channel_host: str | None = None
    bootstrap_port: int = 0
    auth_key: str = ""
    peer_timeout_s: float = 300.0
    tls_certificate: str = ""
    tls_key: str = ""
    keepalive_timeout_s: float = 75.0
    request_log_size: int = 1_000

    def __post_init__(self) -> None:
        for name, allowed in (
            ("role", EngineRole),
            ("kv_connector", KvConnector),
            ("release", EngineRelease),
            ("priorities", Priorities),
        ):
            if getattr(self, name) not in get_args(allowed):
                message = f"{name} must be one of {', '.join(get_args(allowed))}"
                raise ValueError(message)
        if self.kv_connector in _FIXED_ROLES and self.role == "both":
            message = f"role must be prefill or decode with the {self.kv_connector} connector"
            raise ValueError(message)
        if self.p2p_pull and self.kv_connector != "nixl":
            raise ValueError("p2p_pull goes with the nixl connector only")
        if not self.models or not all(self.models):
            raise ValueError("models must name at least one model")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("port", "bootstrap_port"):
            if not 0 <= getattr(self, name) <= 65_535:
                raise ValueError(f"{name} must be between 0 and 65535")
        for name in (
            "data_parallel_size",
            "slots",
            "max_model_len",
            "block_size",
            "kv_blocks",
            "default_max_tokens",
            "kv_lease_s",
            "peer_timeout_s",
            "keepalive_timeout_s",
            "request_log_size",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together")
        if any(low >= high for low, high in pairwise((0, *self.prefill_buckets))):
            raise ValueError("prefill_buckets must be ascending, each greater than 0")
        for name in ("prefill_tokens_per_s", "itl_ms"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")

    @property
    def engine(self) -> Literal["vllm", "sglang", "trtllm"]:
        """The software that it behaves like."""
        match self.kv_connector:
            case "bootstrap":
                return "sglang"
            case "trtllm":
                return "trtllm"
            case _:
                return "vllm"

    @property
    def scheme(self) -> Literal["http", "https"]:
        """What its API speaks, and that of all its peers."""
        return "https" if self.tls_certificate else "http"

    @property
    def has_bootstrap_server(self) -> bool:
        """Whether decode engines, or routers, ask it at another port than the API's."""
        if self.has_p2p_tier:
            return True
        return self.kv_connector in ("bootstrap", "mooncake") and self.role != "decode"

    @property
    def has_p2p_tier(self) -> bool:
        """Whether it can give, and be given, blocks out of main memory."""
        return self.kv_connector == "offloading" or self.p2p_pull

    @property
    def base_model(self) -> str:
        """The name that metrics and unnamed requests use."""
        return self.models[0]
