"""The prefixes of a prompt, as hashes by which requests that share one can be told."""

from bisect import bisect_right
from itertools import accumulate, chain, repeat

import msgspec
import xxhash

from pdrouter.openai.request import InferenceRequest

_SIZES = tuple(chain(repeat(256, 256), repeat(2048, 480), repeat(16384, 448)))
"""Sizes of a prompt's blocks in bytes. They grow, so that 1 MB costs four times what 32 KB cost."""

_ENDS = tuple(accumulate(_SIZES))
_SMALL_BLOCKS = _ENDS[255]

_CONTEXT = (
    "tools",
    "system",
    "instructions",
    "tool_choice",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "cache_salt",
    "response_format",
)
"""Members that come before the messages in a rendered prompt, or keep caches apart."""


class PromptPrefix(msgspec.Struct, frozen=True):
    """The blocks of a prompt.

    Attributes:
        hashes: for each whole block, a hash of it and of all before it.
        ends: where each of them ends, in the unit of `size`.
        size: size of the whole prompt.
    """

    hashes: tuple[int, ...]
    ends: tuple[int, ...]
    size: int

    def share(self, blocks: int) -> float:
        """Return how much of the prompt the first so many blocks are, 0 to 1."""
        return self.ends[blocks - 1] / self.size if blocks else 0.0


NO_PREFIX = PromptPrefix((), (), 0)


def hash_prompt(request: InferenceRequest) -> PromptPrefix:
    """Return the blocks of a request's prompt.

    The bytes are hashed as the client wrote them: a conversation that grows keeps its beginning,
    and clients write the same messages in the same way.
    """
    body = request.body
    seed = xxhash.xxh3_64(request.model.encode())
    for name in _CONTEXT:
        value = body.raw(name)
        if value is not None:
            seed.update(name.encode())
            seed.update(value)
    prompt = request.prompt
    size = len(prompt)
    state = seed.intdigest()
    digest = xxhash.xxh3_64_intdigest
    hashes: list[int] = []
    # To copy a small block costs less than to make a view of it.
    text: bytes | memoryview = bytes(prompt[:_SMALL_BLOCKS])
    start = 0
    for end in _ENDS[: bisect_right(_ENDS, size)]:
        if end > _SMALL_BLOCKS:
            text = prompt
        state = digest(text[start:end], state)
        hashes.append(state)
        start = end
    return PromptPrefix(tuple(hashes), _ENDS[: len(hashes)], max(1, size))
