"""What an engine's answer says of the tokens that it has used."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

_MOST_TOKENS = 10**9
_MOST_COLONS = 4_000
_SMALL = _MOST_COLONS * len(b'"":0,')
"""Bytes in which there are no more members."""
_TOKEN_ID = re.compile(rb"\[[ \t\r\n]*[0-9]")


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them the engine had cached; None if it does not say.
        output_tokens: length of the answer, of all choices together; None if it does not say.
    """

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int | None = None

    def count_computed(self) -> int | None:
        """Return how many tokens the engine has computed; None if it does not say."""
        if self.cached_tokens is None:
            return None
        return max(1, self.prompt_tokens - self.cached_tokens)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class UsageMembers(msgspec.Struct):
    """A `usage` object: each API has names of its own for the same things."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def update(self, later: "UsageMembers") -> None:
        """Take over what a later object says: Anthropic's streams say it in two parts."""
        for name, value in structs.asdict(later).items():
            if value is not None:
                setattr(self, name, value)

    def count(self) -> Usage | None:
        """Return the tokens; None if the prompt's length is not there, or makes no sense."""
        prompt = self.prompt_tokens or self.input_tokens
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = None if details is None else details.cached_tokens
        if details is None and self.cache_read_input_tokens is not None:
            # Anthropic counts cached tokens apart.
            cached = self.cache_read_input_tokens
            prompt = (prompt or 0) + cached + (self.cache_creation_input_tokens or 0)
        if not prompt or not 0 < prompt <= _MOST_TOKENS:
            return None
        output = self.output_tokens if self.completion_tokens is None else self.completion_tokens
        if output is not None and not 0 <= output <= _MOST_TOKENS:
            output = None
        return Usage(prompt, None if cached is None else min(max(0, cached), prompt), output)


_NULL = msgspec.Raw(b"null")


class AnswerInvalid(ValueError):
    """An answer is no JSON object, or has something else than a handle in the place of one."""


class AnswerTokens(msgspec.Struct, frozen=True):
    """What an engine's answer says of tokens, as it stands there."""

    usage: msgspec.Raw = _NULL
    prompt_token_ids: msgspec.Raw = _NULL

    def count(self) -> Usage | None:
        """Return the tokens; None if the answer does not say them.

        The OpenAI and the Anthropic names are both read. Without them, the ids of the prompt's
        tokens are counted, if it has them.
        """
        members = read_usage_members(self.usage)
        usage = None if members is None else members.count()
        if usage is None and _TOKEN_ID.match(self.prompt_token_ids) is not None:
            usage = Usage(bytes(self.prompt_token_ids).count(b",") + 1, None)
        return usage


class AnswerMembers(AnswerTokens, frozen=True):
    """What an engine's answer says beside the text; of a handle, each member as it stands there."""

    kv_transfer_params: dict[str, msgspec.Raw] | None = None


class _UnreadHandle(AnswerTokens, frozen=True):
    kv_transfer_params: msgspec.Raw = _NULL


_decode_answer = msgspec.json.Decoder(AnswerMembers).decode
_decode_dense = msgspec.json.Decoder(_UnreadHandle).decode
_decode_handle = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_decode_tokens = msgspec.json.Decoder(AnswerTokens).decode
_decode_members = msgspec.json.Decoder(UsageMembers).decode


def read_answer(answer: bytes) -> AnswerMembers:
    """Read the answer to a side leg.

    Raises:
        AnswerInvalid: it is no JSON object, or its handle is none.
    """
    try:
        if len(answer) <= _SMALL or answer.count(b":") <= _MOST_COLONS:
            return _decode_answer(answer)
        # Each member that is built has one: a handle has few, whatever stands around it.
        dense = _decode_dense(answer)
        handle = bytes(dense.kv_transfer_params)
        if handle.count(b":") > _MOST_COLONS:
            raise AnswerInvalid("its handle has too many members")
        return AnswerMembers(dense.usage, dense.prompt_token_ids, _decode_handle(handle))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise AnswerInvalid(str(error)) from None


def read_usage(answer: bytes) -> Usage | None:
    """Return the `usage` of an answer that is not streamed; None if there is none."""
    try:
        return _decode_tokens(answer).count()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def read_usage_members(text: str | bytes) -> UsageMembers | None:
    """Read a `usage` object from its JSON text; None if it is none."""
    try:
        return _decode_members(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def convert_usage_members(values: Mapping[str, Any]) -> UsageMembers | None:
    """Make a `usage` object of its members, nested as in JSON; None if one has a wrong type."""
    try:
        return msgspec.convert(values, UsageMembers)
    except msgspec.MsgspecError:
        return None
