"""The output of a simulated model: words that show which prompt they answer."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pdrouter.tools.simulation.api_requests import GenerationRequest
from pdrouter.tools.simulation.config import EngineConfig

FinishReason = Literal["length", "stop", "tool_calls"]

_DIGEST_LENGTH = 8
_VOCABULARY = 32_000


@dataclass(frozen=True, slots=True)
class Generation:
    """What the engine answers to one request.

    Attributes:
        request_id: The request's id, without the prefix its API adds.
        created: Unix time in seconds.
        request: The request answered.
        words: The tokens of each choice, as text.
        token_ids: The same tokens, as numbers.
        finish_reason: `length` if the client's limit ended it; if the model did, `tool_calls` if
            it wrote the arguments of a call, and else `stop`.
        cached_tokens: Prompt tokens that came from another engine.
        kv_transfer_params: The handle that goes with the answer, on a prefill leg.
    """

    request_id: str
    created: int
    request: GenerationRequest
    words: tuple[str, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    cached_tokens: int = 0
    kv_transfer_params: Mapping[str, Any] | None = None

    @property
    def choices(self) -> int:
        """How many choices the answer has."""
        return self.request.prompts * self.request.n

    @property
    def text(self) -> str:
        """The text of each choice."""
        return "".join(self.words)

    @property
    def completion_tokens(self) -> int:
        """Output tokens of all choices."""
        return len(self.words) * self.choices


def generate(
    request: GenerationRequest, config: EngineConfig, request_id: str, created: int
) -> Generation:
    """Generate the whole output of a request: the same for the same prompt on any engine.

    A request with a limit gets that many tokens, or fewer if what it wants is complete before.
    Without one the model stops by itself after the configured number, or `min_tokens` if that is
    more.
    """
    words, finish_reason = _write(request, config)
    return Generation(
        request_id=request_id,
        created=created,
        request=request,
        words=words,
        token_ids=tuple(_token_id(request.digest, index) for index in range(len(words))),
        finish_reason=finish_reason,
    )


def _write(
    request: GenerationRequest, config: EngineConfig
) -> tuple[tuple[str, ...], FinishReason]:
    plan, limit = request.plan, request.limit
    room = max(1, config.max_model_len - request.prompt_tokens)
    if plan.tokens:
        most = room if limit is None else limit
        if len(plan.tokens) > most:
            return plan.tokens[:most], "length"
        return plan.tokens, "stop" if plan.tool is None else "tool_calls"
    wanted = max(config.default_max_tokens, request.min_tokens)
    length = min(wanted, room) if limit is None else limit
    words = tuple(word(request.digest, index) for index in range(length))
    return words, "stop" if limit is None else "length"


def word(digest: str, index: int) -> str:
    """Give the text of one output token: the prompt's digest, shortened, and its place."""
    separator = " " if index else ""
    return f"{separator}{digest[:_DIGEST_LENGTH]}-{index}"


def _token_id(digest: str, index: int) -> int:
    seed = hashlib.sha256(f"{digest}:{index}".encode()).digest()
    return int.from_bytes(seed[:4], "big") % _VOCABULARY
