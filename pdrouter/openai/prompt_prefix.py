"""The prefixes of a prompt, as hashes by which requests that share one can be told."""

from bisect import bisect_right
from functools import cache
from itertools import accumulate, pairwise
from struct import Struct

import msgspec
import xxhash

from pdrouter.openai.request import InferenceRequest

_SIZES = (256,) * 16 + (512,) * 24 + (1024,) * 48 + (2048,) * 480 + (16384,) * 448
"""Sizes of a prompt's blocks in bytes. They grow, for what counts is the share of the prompt that
is cached, and a request with a long prompt should not cost much more to route: 32 KiB have 56
blocks, 1 MiB 568."""
_ENDS = tuple(accumulate(_SIZES))
_SMALL_BLOCKS = _SIZES.index(2048)
"""How many blocks are small enough that copying them costs less than looking at them in place."""

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
_SPREAD = 1.125
"""How much more, or less, of a prompt's bytes a part of its tokens may be than of its tokens."""


class PromptPrefix(msgspec.Struct, frozen=True):
    """The blocks of a prompt.

    Attributes:
        hashes: for each whole block, a hash of it and of all before it.
        ends: where each of them ends, in the unit of `size`.
        size: size of the whole prompt, at least 1.
    """

    hashes: tuple[int, ...]
    ends: tuple[int, ...]
    size: int

    def count_cached(self, cached: int, tokens: int) -> tuple[int, int]:
        """Return how many of the blocks are cached at the least, and at the most.

        Tokens are not spread evenly over the bytes of a prompt. The last of them is computed in any
        case, and with it the rest of the engine's own last block.

        Args:
            cached: how many of the prompt's tokens are cached.
            tokens: how many there are.
        """
        end, count = self.size * cached / tokens, len(self.hashes)
        most = bisect_right(self.ends, end * _SPREAD)
        return bisect_right(self.ends, end / _SPREAD), count if most >= count - 1 else most


NO_PREFIX = PromptPrefix((), (), 1)


def hash_prompt(request: InferenceRequest) -> PromptPrefix:
    """Return the blocks of a request's prompt.

    The bytes are hashed as the client wrote them: a conversation that grows keeps its beginning,
    and clients write the same messages in the same way.
    """
    body = request.body
    before: list[bytes | memoryview] = [request.model.encode()]
    if not body.names.isdisjoint(_CONTEXT):
        for name in _CONTEXT:
            before += (name.encode(), value) if (value := body.view(name)) is not None else ()
    prompt = request.prompt
    ends = _ENDS[: bisect_right(_ENDS, len(prompt))]
    digest = xxhash.xxh3_64_intdigest
    state = digest(b"".join(before))
    small = _cut_small_blocks(min(len(ends), _SMALL_BLOCKS)).unpack_from(prompt)
    hashes = [state := digest(block, state) for block in small]
    for start, end in pairwise(ends[_SMALL_BLOCKS - 1 :]):
        state = digest(prompt[start:end], state)
        hashes.append(state)
    return PromptPrefix(tuple(hashes), ends, max(1, len(prompt)))


@cache
def _cut_small_blocks(count: int) -> Struct:
    """Return what cuts off so many blocks in one call; to cut them one by one costs twice as much.

    There are few counts, so that all of them can be kept.
    """
    return Struct("".join(f"{size}s" for size in _SIZES[:count]))
