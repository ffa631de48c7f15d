"""The KV memory of an engine, with a cache of prefixes."""

from collections.abc import Sequence

from benchmarks.routing.cluster.workload import BLOCK_TOKENS
from pdrouter.openai.prompt_prefix import PromptPrefix


class CachedBlocks:
    """Blocks that may serve again, those that requests hold and those that nobody holds.

    The least recently used of the latter go first when room is needed, the end of a prompt before
    its beginning.
    """

    __slots__ = ("_holders", "_idle")

    def __init__(self) -> None:
        # How many requests hold each block.
        self._holders: dict[int, int] = {}
        # Those that nobody holds, the least recently used first.
        self._idle: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def __contains__(self, block: int) -> bool:
        return block in self._holders

    @property
    def held(self) -> int:
        """Blocks that requests hold."""
        return len(self._holders) - len(self._idle)

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many blocks, from the first on, are there."""
        holders = self._holders
        for index, block in enumerate(hashes):
            if block not in holders:
                return index
        return len(hashes)

    def match_prompt(self, prompt: PromptPrefix) -> int:
        """Return how many blocks of a prompt need not be computed.

        The last token is computed in any case: it gives the first token of the answer.
        """
        matched = self.match(prompt.hashes)
        return matched - 1 if matched * BLOCK_TOKENS >= prompt.size else matched

    def count_idle(self, hashes: Sequence[int]) -> int:
        """Return how many of these blocks are there, and held by nobody."""
        idle = self._idle
        return sum(block in idle for block in hashes)

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold blocks for a request, those that are there and those that come now."""
        holders, idle = self._holders, self._idle
        for block in hashes:
            # A twin that was computed at the same time may have been first: one copy remains.
            holders[block] = holders.get(block, 0) + 1
            idle.pop(block, None)

    def give_up(self, hashes: Sequence[int]) -> None:
        """Hold blocks no more; they stay until room is needed."""
        holders, idle = self._holders, self._idle
        for block in reversed(hashes):
            holders[block] -= 1
            if not holders[block]:
                idle[block] = None

    def shrink(self, most: int) -> None:
        """Drop blocks that nobody holds until there are no more than so many in all."""
        while len(self._holders) > most and self._idle:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._holders[block]


class Allocation:
    """The blocks that one prompt holds.

    Attributes:
        cached: how many of its first blocks were there already.
    """

    __slots__ = ("blocks", "cached", "prompt", "shared")

    def __init__(self, prompt: PromptPrefix, cached: int, blocks: int) -> None:
        self.prompt = prompt
        self.cached = cached
        self.shared = cached
        """How many of its first blocks it holds as part of the cache."""
        self.blocks = blocks
        """How many blocks it holds altogether."""


class BlockCache:
    """Memory of a fixed size: blocks of single prompts, and the cache."""

    def __init__(self, tokens: int) -> None:
        """Start empty.

        Args:
            tokens: size of the memory.
        """
        self.capacity = tokens // BLOCK_TOKENS
        self._private = 0
        self._cached = CachedBlocks()

    @property
    def held(self) -> int:
        """Blocks that prompts hold."""
        return self._private + self._cached.held

    @property
    def usage(self) -> float:
        """Share of the memory that prompts hold; what is only cached counts as free."""
        return self.held / self.capacity

    def __contains__(self, block: int) -> bool:
        return block in self._cached

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many blocks, from the first on, are there."""
        return self._cached.match(hashes)

    def allocate(self, prompt: PromptPrefix) -> Allocation | None:
        """Take the blocks of a prompt; None if there is no room for them now."""
        matched = self._cached.match_prompt(prompt)
        blocks = count_blocks(prompt.size)
        found = prompt.hashes[:matched]
        if self.held + self._cached.count_idle(found) + blocks - matched > self.capacity:
            return None
        self._cached.hold(found)
        self._private += blocks - matched
        self._cached.shrink(self.capacity - self._private)
        return Allocation(prompt, matched, blocks)

    def store(self, allocation: Allocation) -> None:
        """Put the whole blocks of a prompt that has been computed into the cache."""
        stored = allocation.prompt.hashes[allocation.shared :]
        self._cached.hold(stored)
        self._private -= len(stored)
        allocation.shared = len(allocation.prompt.hashes)

    def release(self, allocation: Allocation) -> None:
        """Give up the blocks of a prompt; those in the cache stay there until room is needed."""
        self._cached.give_up(allocation.prompt.hashes[: allocation.shared])
        self._private -= allocation.blocks - allocation.shared


def count_blocks(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)
