"""TensorRT-LLM, context first: the generation leg brings what the context leg has answered.

Source: TensorRT-LLM `openai_disagg_service.py`, `disagg_auth.py`. A context engine computes the
prompt and the first token, and says where the blocks are; the generation engine goes on from there,
with the prompt as tokens, and with that first token. Where the first token was the last one, there
is nothing to go on with: the context engine's answer is the client's.
"""

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from pdrouter.engines.leg_bodies import (
    TRANSFER_MEMBERS,
    limit_to_prefill,
    strip_transfer_members,
)
from pdrouter.engines.split import (
    PREFILL_DECODE,
    HandoffInvalid,
    Leg,
    Order,
    Placement,
    Release,
    SideAnswer,
    Split,
)
from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest

AUTH_HEADER = "x-trtllm-disagg-auth"
MACHINES = 1024

PARAMS = "disaggregated_params"
_TOKENS = "prompt_token_ids"
_OTHER_LIMIT = "max_completion_tokens"
PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
_UNFINISHED = (b"length", b"not_finished")
# Within a string, the closing quote of the name would have a backslash before it.
_FINISH = re.compile(rb'"finish_reason"[ \t\n\r]*:[ \t\n\r]*"(\w{1,32})"')
SIGNED = ("ctx_info_endpoint", "encoded_opaque_state")

_LEAST_ID = 2**42
_MACHINE_BITS, _REQUEST_BITS = 10, 53

_NULL = msgspec.Raw(b"null")
_NOTHING = (None, b"null")
_BESIDE_NUMBERS = b"0123456789, \t\n\r"


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    disaggregated_params: msgspec.Raw = _NULL


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class ContextFirst(Split):
    """The wire of `trtllm-serve` engines, which are disaggregated by another.

    Attributes:
        key: what hand-offs are signed with, as the workers' `internal_request_auth_key`; empty for
            no signatures.
        machine: number of this router among all that use the same engines, below `MACHINES`; None
            to draw it for each request.
    """

    key: bytes = field(default=b"", repr=False)
    machine: int | None = None
    name: str = "trtllm"
    legs: tuple[Leg, ...] = PREFILL_DECODE
    order: Order = Order.SERIAL
    fits: frozenset[str] = frozenset()
    paths: frozenset[str] = PATHS

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        """Return the client's body for one token, with the id that both legs have."""
        del leg  # There is one.
        number = number_request(placement.request_id, self.machine)
        asks = b'{"request_type":"context_only","disagg_request_id":%d}' % number
        return write_context(request, asks)

    def find_final_answer(self, answers: Sequence[SideAnswer]) -> bytes | None:
        """Return the context engine's answer, if its first token was the last one.

        Without what is between the engines, which no client may see.
        """
        body = answers[-1].body
        found = _FINISH.search(body)
        if found is not None and found[1] in _UNFINISHED:
            return None  # As nearly always: it need not be read for this.
        try:
            choice = _read_choice(_read(body))
        except HandoffInvalid:
            return None  # `last_body` says what is wrong.
        if choice.finish_reason is None or choice.finish_reason.encode() in _UNFINISHED:
            return None
        try:
            whole = Body(body)
            (item,) = _decode_items(whole.raw("choices") or b"[]")
            stripped = Body(bytes(item)).edit(remove={PARAMS})
        except BodyInvalid:
            return None  # As above.
        choices = Pieces((b"[", *stripped.parts, b"]"))
        return bytes(whole.edit({"choices": choices}, {_TOKENS}))

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        """Return the client's body with the context engine's word, and the prompt as its tokens."""
        answer = _read(answers[-1].body)
        choice = _read_choice(answer)
        if (choice.finish_reason or "").encode() not in _UNFINISHED:
            message = f"its finish_reason is {choice.finish_reason!r:.66}"
            raise HandoffInvalid("invalid-answer", f"the context answer goes on nowhere: {message}")
        number = number_request(placement.request_id, self.machine)
        replace = strip_transfer_members(request)
        replace[PARAMS] = _continue(_read_params(choice, number), answer.usage)
        replace["prompt" if request.endpoint.batches else _TOKENS] = _read_tokens(answer)
        return request.edit(replace, TRANSFER_MEMBERS)

    def last_headers(
        self, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Mapping[str, str]:
        """Return the signature of the hand-over, if there is a key."""
        del placement
        if not self.key:
            return {}
        params = _make_body(_read_choice(_read(answers[-1].body)))
        return sign(self.key, {name: params.raw(name) or b"null" for name in SIGNED})

    def find_expiry(self, answer: SideAnswer) -> float | None:
        """Return None: the answer does not say so."""

    def release(self, answer: SideAnswer) -> Release | None:
        """Return None: these engines cannot be told."""
        del answer
        return None


def write_context(request: InferenceRequest, asks: bytes) -> Pieces:
    """Return the client's body for one token, with what is asked of the context engine."""
    replace, remove = limit_to_prefill(request)
    # To the engine, it is another name of `max_tokens`: it refuses both.
    replace.pop(_OTHER_LIMIT, None)
    replace[PARAMS] = asks
    return request.edit(replace, remove | {_OTHER_LIMIT})


def sign(key: bytes, told: Mapping[str, bytes]) -> Mapping[str, str]:
    """Return the header with the signature of what the generation engine is told.

    HMAC-SHA256 of where the blocks are: so that the engine connects to no address but those that a
    router has got from a context engine.

    Args:
        key: the key of all workers.
        told: the members of `SIGNED`, as JSON.
    """
    values = {name: msgspec.json.decode(value) for name, value in told.items()}
    signed = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return {AUTH_HEADER: f"sha256={hmac.digest(key, signed, 'sha256').hex()}"}


def number_request(request_id: str, machine: int | None) -> int:
    """Return the number by which both engines know a request: from 2^42 up to 2^63 - 1.

    `x-request-id` is drawn anew for each request and has a suffix for each further attempt, so that
    its digest is as good as random. Of a million requests that one router has under way at once,
    two have the same number with a probability of 1 in 18,000; those of routers with different
    machine numbers, which are the upper bits, never do. Without a machine number these bits are
    drawn too: of a million requests of all routers, two have the same with one of 1 in 18 million.
    """
    drawn: int = int.from_bytes(blake2b(request_id.encode(), digest_size=8).digest(), "big")
    if machine is None:
        machine = drawn >> (64 - _MACHINE_BITS)
    # What is below 2^42 the engines count themselves.
    rest = _LEAST_ID + drawn % (2**_REQUEST_BITS - _LEAST_ID)
    return int(machine << _REQUEST_BITS | rest)


def _read(body: bytes) -> _Answer:
    """Return what a context engine has answered.

    Raises:
        HandoffInvalid: it is no such answer.
    """
    try:
        return _decode_answer(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HandoffInvalid("invalid-answer", f"the context answer: {error}") from None


def _read_choice(answer: _Answer) -> _Choice:
    if len(answer.choices) != 1:
        message = f"the context answer has {len(answer.choices)} choices"
        raise HandoffInvalid("invalid-answer", message)
    return answer.choices[0]


def _make_body(choice: _Choice) -> Body:
    raw = bytes(choice.disaggregated_params)
    if raw == b"null":
        raise HandoffInvalid("null-params", f"the context answer has no {PARAMS}")
    try:
        return Body(raw)
    except BodyInvalid as error:
        raise HandoffInvalid("invalid-params", f"{PARAMS}: {error}") from None


def _read_params(choice: _Choice, number: int) -> Body:
    """Return what the engines tell each other, once it is certain that it is all there.

    Raises:
        HandoffInvalid: the generation engine would fail, wait, or take another request's blocks.
    """
    params = _make_body(choice)
    for name in ("ctx_request_id", "disagg_request_id"):
        if not (params.raw(name) or b"").isdigit():
            raise HandoffInvalid("incomplete-params", f"{name} is missing or no number")
    if params.raw("disagg_request_id") != b"%d" % number:
        raise HandoffInvalid("other-request", "disagg_request_id is that of another request")
    if params.raw("first_gen_tokens") in (*_NOTHING, b"[]"):
        raise HandoffInvalid("incomplete-params", "first_gen_tokens is missing or empty")
    if all(params.raw(name) in _NOTHING for name in SIGNED):
        message = "neither encoded_opaque_state nor ctx_info_endpoint is there"
        raise HandoffInvalid("incomplete-params", message)
    return params


def _continue(params: Body, usage: msgspec.Raw) -> Pieces:
    """Return what the generation engine is told."""
    replace: dict[str, bytes | Pieces] = {"request_type": b'"generation_only"'}
    # Engines that do not know the member would refuse it.
    if params.raw("ctx_usage") == b"null" and bytes(usage).isascii():
        replace["ctx_usage"] = bytes(usage)
    return params.edit(replace)


def _read_tokens(answer: _Answer) -> Pieces:
    """Return the prompt's tokens as they stand in the answer, not copied.

    Raises:
        HandoffInvalid: they are not there.
    """
    raw = memoryview(answer.prompt_token_ids)
    text = bytes(raw)
    numbers = text.translate(None, _BESIDE_NUMBERS) == b"[]"
    if not numbers or not text.lstrip(b"[ \t\n\r")[:1].isdigit():
        raise HandoffInvalid("no-tokens", f"{_TOKENS} are not the tokens of a prompt")
    return Pieces((raw,))
