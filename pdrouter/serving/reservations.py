"""How many tokens are taken of limits for a request, before anybody knows how many it uses."""

from collections.abc import Callable

from pdrouter.openai.coercion import as_integer, decode_scalar
from pdrouter.openai.media_bytes import measure_media
from pdrouter.openai.request import InferenceRequest

TOKENS_OF_MEDIA = 8192
"""The most that is taken for the media of a prompt, whose bytes say little of their tokens."""

_SIGNS = (b"base64", b'"input_', b'_embeds"', b'"image', b'"file', b'"mask"', b'"ref_audio"')
"""Without one of these, a prompt has no media in it, but links to them at the most."""
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


def limit_output(request: InferenceRequest, expected: int) -> int:
    """Return how many tokens the answer to a request is to have, where its model's have so many."""
    if not request.endpoint.limits:
        return 0
    limit = request.max_output_tokens
    return expected if limit is None else min(limit, expected)


def reserve_tokens(
    request: InferenceRequest, prompt: int, answer: int, estimate: Callable[[int], int]
) -> tuple[int, int]:
    """Return the tokens that are taken for a prompt, and for the answers to it.

    Args:
        request: the request.
        prompt: how many tokens its prompt is thought to have.
        answer: how many each answer is expected to have.
        estimate: gives the tokens of so many bytes of text.
    """
    if request.endpoint.path in _FREE:
        return 0, 0
    written = (request.sampling or request.body).raw("n")
    answers = 1 if written is None else as_integer(decode_scalar(written)) or 1
    return _reserve_prompt(request, prompt, estimate), answer * max(1, answers)


def _reserve_prompt(request: InferenceRequest, tokens: int, estimate: Callable[[int], int]) -> int:
    """Return the tokens that are taken for a prompt: all of its text, and some for its media."""
    if tokens <= TOKENS_OF_MEDIA:
        return tokens
    data = request.body.data
    if not any(sign in data for sign in _SIGNS):
        return tokens
    media = measure_media(request.body, request.prompt_name)
    if not media:
        return tokens
    text = (len(request.prompt) or len(data)) - media
    return min(tokens, estimate(text) + min(estimate(media), TOKENS_OF_MEDIA))
