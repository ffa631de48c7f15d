"""The KV memory of a prefill engine, with a cache of prefixes."""

from collections.abc import Sequence

from benchmarks.routing.cluster.workload import BLOCK_TOKENS
from pdrouter.openai.prompt_prefix import PromptPrefix


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
    """Blocks that prompts hold, and blocks that nobody holds but that may serve again.

    The least recently used of the latter go first when room is needed, the end of a prompt before
    its beginning.
    """

    def __init__(self, tokens: int) -> None:
        """Start empty.

        Args:
            tokens: size of the memory.
        """
        self.capacity = tokens // BLOCK_TOKENS
        self._private = 0
        # How many prompts hold each block of the cache.
        self._holders: dict[int, int] = {}
        # Those that nobody holds, the least recently used first.
        self._idle: dict[int, None] = {}

    @property
    def held(self) -> int:
        """Blocks that prompts hold."""
        return self._private + len(self._holders) - len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the memory that prompts hold; what is only cached counts as free."""
        return self.held / self.capacity

    def __contains__(self, block: int) -> bool:
        return block in self._holders

    def match(self, hashes: Sequence[int]) -> int:
        """Return how many blocks, from the first on, are there."""
        holders = self._holders
        for index, block in enumerate(hashes):
            if block not in holders:
                return index
        return len(hashes)

    def allocate(self, prompt: PromptPrefix) -> Allocation | None:
        """Take the blocks of a prompt; None if there is no room for them now."""
        matched = self.match(prompt.hashes)
        if matched * BLOCK_TOKENS >= prompt.size:
            # The last token is computed in any case: it gives the first token of the answer.
            matched -= 1
        blocks = count_blocks(prompt.size)
        found = prompt.hashes[:matched]
        revived = sum(block in self._idle for block in found)
        if self.held + revived + blocks - matched > self.capacity:
            return None
        for block in found:
            self._holders[block] += 1
            self._idle.pop(block, None)
        self._private += blocks - matched
        self._evict()
        return Allocation(prompt, matched, blocks)

    def store(self, allocation: Allocation) -> None:
        """Put the whole blocks of a prompt that has been computed into the cache."""
        for block in allocation.prompt.hashes[allocation.shared :]:
            # A twin that was computed at the same time may have been first: one copy remains.
            self._holders[block] = self._holders.get(block, 0) + 1
            self._idle.pop(block, None)
            self._private -= 1
        allocation.shared = len(allocation.prompt.hashes)

    def release(self, allocation: Allocation) -> None:
        """Give up the blocks of a prompt; those in the cache stay there until room is needed."""
        for block in reversed(allocation.prompt.hashes[: allocation.shared]):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._idle[block] = None
        self._private -= allocation.blocks - allocation.shared

    def _evict(self) -> None:
        while self._private + len(self._holders) > self.capacity:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._holders[block]


def count_blocks(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)
