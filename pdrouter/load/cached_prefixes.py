"""What is known of the pods' caches, wherever it is known from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class CachedPrefixes(Protocol):
    """Knows which pods have cached which prefixes.

    A prefix is given as the hashes of its blocks, each of which stands for all before it, too.
    """

    def match(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Return how many blocks, from the first on, each pod has; pods without any are absent."""

    def add(self, hashes: Sequence[int], uid: str, tokens: int = 0) -> list[int]:
        """Note that a pod has these blocks, or will have them when it comes to a later request.

        Args:
            hashes: the blocks.
            uid: the pod.
            tokens: prompt tokens that it computes for them.

        Returns:
            The blocks that it was not known to have, for `discard`.
        """

    def discard(self, hashes: Iterable[int], uid: str) -> None:
        """Note that a pod does not have these blocks: it did not carry out what was expected."""

    def recall(self, hashes: Sequence[int], uid: str) -> Sequence[int]:
        """Return what a pod is known to have of a prompt, for `confirm`."""

    def confirm(self, hashes: Sequence[int], uid: str, recalled: Sequence[int], found: int) -> int:
        """Take what a pod has had of a prompt that it has computed, all of which it has now.

        Returns:
            How many blocks are gone with those that it has not had any more.
        """
