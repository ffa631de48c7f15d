"""How many requests a pod has completed per second, over about the last minute."""

from collections import deque
from math import inf

_SLOT_S = 5.0
_SLOTS = 12
_MIN_HISTORY_S = 10.0


class DrainRate:
    """Counts the requests that a pod has completed, in slots of time.

    aibrix samples a counter every five seconds and looks back for a minute; so does this.

    Attributes:
        since: when the pod got its first request; infinity before that.
    """

    __slots__ = ("_closed", "_closed_count", "_count", "_slot", "since")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.since = inf
        self._slot = -inf
        self._count = 0
        # Slots of the last minute that do not change any more, each with its completions.
        self._closed: deque[tuple[float, int]] = deque()
        self._closed_count = 0

    def note(self, now: float) -> None:
        """Count a completed request."""
        if now // _SLOT_S > self._slot:
            self._turn(now // _SLOT_S)
        self._count += 1

    def measure(self, now: float) -> float | None:
        """Return the completed requests per second; None in the first ten seconds."""
        if now - self.since < _MIN_HISTORY_S:
            return None
        slot = now // _SLOT_S
        if slot > self._slot:
            self._turn(slot)
        oldest = (slot - _SLOTS + 1) * _SLOT_S
        return (self._closed_count + self._count) / (now - max(self.since, oldest))

    def _turn(self, slot: float) -> None:
        """Begin to count in a later slot."""
        closed = self._closed
        closed.append((self._slot, self._count))
        while closed and closed[0][0] <= slot - _SLOTS:
            closed.popleft()
        self._closed_count = sum(count for _, count in closed)
        self._slot, self._count = slot, 0
