"""What pods have computed, in the order in which they forget it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

BYTES_PER_BLOCK = 90
"""Memory of one block of one pod: a number and its place in a dictionary, measured."""

_MOST_FORGOTTEN = 1024
"""Blocks that are forgotten at once: it takes less than a millisecond. The rest goes later."""


@dataclass(slots=True)
class _Mirror:
    """What one pod has computed.

    Attributes:
        turns: for each block, the number of the last leg that was known to have it; ascending.
        turn: the number of the last leg.
        horizon: what had its last turn before this one is gone.
        cleared: the horizon before which nothing is left.
    """

    turns: dict[int, int] = field(default_factory=dict)
    turn: int = 0
    horizon: int = 0
    cleared: int = 0


class CacheMirrors:
    """Mirrors of the pods' caches, as far as the legs of this router show them.

    Engines forget what was used least recently. So if a block is gone that a pod has had, all is
    gone that it has not used since, though nobody has said so. What others have sent there makes
    it go sooner, and shows in just this way. Only what others have used of the very same prompts
    may still be there: it is found when it is next sent there, as is what they have added.
    """

    def __init__(self, most: int) -> None:
        """Start with nothing.

        Args:
            most: blocks that are remembered, each as often as pods have it.
        """
        self._most = most
        self._count = 0
        self._mirrors: dict[str, _Mirror] = {}

    def __len__(self) -> int:
        return self._count

    def recall(self, hashes: Sequence[int], uid: str) -> Sequence[int]:
        """Return when a pod has last had each block of a prompt, up to the first that it has not.

        Take it before the leg is sent, and give it to `note` when that has been carried out.
        """
        mirror = self._mirrors.get(uid)
        if mirror is None or not hashes or hashes[0] not in mirror.turns:
            return ()
        # Prompts have many blocks: the loop over them is one of C's.
        recalled: list[Any] = list(map(mirror.turns.get, hashes))
        if None in recalled:
            del recalled[recalled.index(None) :]
        return recalled

    def note(
        self, hashes: Sequence[int], uid: str, recalled: Sequence[int], found: int
    ) -> list[int]:
        """Take what a pod has had of a prompt, all of which it has now.

        Args:
            hashes: the blocks of the prompt.
            uid: the pod.
            recalled: what it was known to have when the leg was sent.
            found: how many blocks, from the first on, it has had at the least.

        Returns:
            Blocks that are gone with those that it was known to have and has not had. Some of what
            is gone may be among those of the next time.
        """
        mirror = self._mirrors.get(uid)
        if mirror is None:
            mirror = self._mirrors[uid] = _Mirror()
        if found < len(recalled):
            mirror.horizon = max(mirror.horizon, recalled[found])
        mirror.turn += 1
        turns, turn, before = mirror.turns, mirror.turn, len(mirror.turns)
        # It goes to the end of what is known, up to the first block that is not there: then none
        # of the next is. Of a prompt, the end is forgotten before the beginning.
        for block in hashes:
            if turns.pop(block, None) is None:
                break
        for block in reversed(hashes):
            turns[block] = turn
        self._count += len(turns) - before
        # A dictionary looks through the places of all that has been taken from its front.
        gone = [] if mirror.cleared == mirror.horizon else self._drop_gone(mirror)
        if self._count > self._most:
            self._make_room()
        return gone

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        mirror = self._mirrors.pop(uid, None)
        if mirror is not None:
            self._count -= len(mirror.turns)

    def _drop_gone(self, mirror: _Mirror) -> list[int]:
        gone: list[int] = []
        for block, turn in mirror.turns.items():
            if turn >= mirror.horizon:
                mirror.cleared = mirror.horizon
                break
            if len(gone) == _MOST_FORGOTTEN:
                break
            gone.append(block)
        if gone:
            self._drop(mirror, gone)
        return gone

    def _make_room(self) -> None:
        """Remember less of the pods of which most is remembered."""
        while self._count > self._most:
            largest = max(self._mirrors.values(), key=lambda mirror: len(mirror.turns))
            dropped = min(1 + len(largest.turns) // 8, _MOST_FORGOTTEN)
            self._drop(largest, list(islice(largest.turns, dropped)))

    def _drop(self, mirror: _Mirror, blocks: Sequence[int]) -> None:
        for block in blocks:
            del mirror.turns[block]
        self._count -= len(blocks)
