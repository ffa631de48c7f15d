"""How many tokens are taken of limits for a request, before anybody knows how many it uses."""

from pdrouter.openai.coercion import as_integer, decode_scalar
from pdrouter.openai.request import InferenceRequest

TOKENS_WITH_MEDIA = 8192
"""The most that is taken for a prompt with a medium in it, whose bytes say little of its tokens."""

_SIGNS = (b";base64,", b'"input_audio"', b'"prompt_embeds"')
_FREE = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/render",
        "/v1/completions/render",
    }
)
"""Paths on which no engine computes anything."""


def reserve_tokens(request: InferenceRequest, prompt: int, answer: int) -> tuple[int, int]:
    """Return the tokens that are taken for a prompt, and for the answers to it.

    Args:
        request: the request.
        prompt: how many tokens its prompt is thought to have.
        answer: how many each answer is expected to have.
    """
    if request.endpoint.path in _FREE:
        return 0, 0
    written = (request.sampling or request.body).raw("n")
    answers = 1 if written is None else as_integer(decode_scalar(written)) or 1
    return _reserve_prompt(request, prompt), answer * max(1, answers)


def _reserve_prompt(request: InferenceRequest, tokens: int) -> int:
    if tokens <= TOKENS_WITH_MEDIA:
        return tokens
    data = request.body.data
    return TOKENS_WITH_MEDIA if any(sign in data for sign in _SIGNS) else tokens
