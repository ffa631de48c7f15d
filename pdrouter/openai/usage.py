"""What an engine's answer says of the tokens that it has used."""

import msgspec


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a prompt.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them the engine had cached; None if it does not say.
    """

    prompt_tokens: int
    cached_tokens: int | None

    def count_computed(self) -> int | None:
        """Return how many tokens the engine has computed; None if it does not say."""
        if self.cached_tokens is None:
            return None
        return max(1, self.prompt_tokens - self.cached_tokens)


_MOST_TOKENS = 10**9
_decode = msgspec.json.Decoder(_Answer).decode


def read_usage(answer: bytes) -> Usage | None:
    """Return the `usage` of an answer that is not streamed; None if there is none.

    The OpenAI and the Anthropic names are both read.
    """
    try:
        usage = _decode(answer).usage
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if usage is None:
        return None
    prompt = usage.prompt_tokens or usage.input_tokens
    if not prompt or not 0 < prompt <= _MOST_TOKENS:
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = usage.cache_read_input_tokens if details is None else details.cached_tokens
    return Usage(prompt, None if cached is None else min(max(0, cached), prompt))
