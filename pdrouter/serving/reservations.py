"""How many tokens are taken of limits for a request, before anybody knows how many it uses."""

from pdrouter.openai.request import InferenceRequest

TOKENS_WITH_MEDIA = 8192
"""The most that is taken for a prompt with a medium in it, whose bytes say little of its tokens."""

_SIGNS = (b";base64,", b'"input_audio"', b'"prompt_embeds"')


def reserve_prompt(request: InferenceRequest, tokens: int) -> int:
    """Return how many tokens are taken for a prompt that is thought to be this long."""
    if tokens <= TOKENS_WITH_MEDIA:
        return tokens
    data = request.body.data
    return TOKENS_WITH_MEDIA if any(sign in data for sign in _SIGNS) else tokens
