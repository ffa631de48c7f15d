"""Engines that are compiled for prompts of certain lengths, and what they make of other prompts."""

from bisect import bisect_left


class StaticShapes:
    """The prompt lengths that an engine is compiled for (Neuron calls them buckets).

    Such an engine computes a shorter prompt as if it had the next of these lengths, and a longer
    one in passes of the largest.

    Attributes:
        buckets: the lengths, ascending; empty for engines that take prompts of any length.
    """

    __slots__ = ("buckets",)

    def __init__(self, buckets: tuple[int, ...]) -> None:
        self.buckets = buckets

    def weigh(self, tokens: int, cached: int) -> tuple[int, int]:
        """Return how many tokens are computed, and at how many before them they look.

        Args:
            tokens: what is to be computed of a prompt.
            cached: what is cached of it, before that.
        """
        if not self.buckets:
            return tokens, tokens * (tokens + 2 * cached)
        passes, each = self.divide(tokens)
        size = passes * each
        return size, size * (each + 2 * cached)

    def divide(self, tokens: int) -> tuple[int, int]:
        """Return in how many passes so many tokens are computed, and how many tokens each has."""
        buckets = self.buckets
        if not buckets:
            return 1, tokens
        largest = buckets[-1]
        if tokens <= largest:
            return 1, buckets[bisect_left(buckets, tokens)]
        return -(-tokens // largest), largest

    def pad(self, tokens: int) -> int:
        """Return how many tokens are computed for so many."""
        size, _ = self.weigh(tokens, 0)
        return size


ANY_SHAPE = StaticShapes(())
