"""How many requests each pod has completed per second, over about the last minute."""

from dataclasses import dataclass, field

_SLOT_S = 5.0
_SLOTS = 12
_MIN_HISTORY_S = 10.0


@dataclass(slots=True)
class _History:
    """Completions of one pod, in slots of time that are used again in turn.

    Attributes:
        since: when the pod got its first request.
        numbers: which slot of time each place holds.
        counts: completions in it.
        closed: the last slot up to which `closed_count` counts.
        closed_count: completions in the slots of the last minute that do not change any more.
    """

    since: float
    numbers: list[int] = field(default_factory=lambda: [-1] * _SLOTS)
    counts: list[int] = field(default_factory=lambda: [0] * _SLOTS)
    closed: int = -1
    closed_count: int = 0

    def count_since(self, oldest: int, current: int) -> int:
        """Return the completions in these slots."""
        if self.closed != current - 1:
            self.closed = current - 1
            self.closed_count = sum(
                count
                for number, count in zip(self.numbers, self.counts, strict=True)
                if oldest <= number < current
            )
        place = current % _SLOTS
        return self.closed_count + (self.counts[place] if self.numbers[place] == current else 0)


class DrainRates:
    """Counts completed requests by the UID of their pod; a pod takes the same memory at any rate.

    aibrix samples a counter every five seconds and looks back for a minute; so does this.
    """

    __slots__ = ("_histories",)

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def watch(self, uid: str, now: float) -> None:
        """Begin to count, if that has not begun: the pod has got a request."""
        if uid not in self._histories:
            self._histories[uid] = _History(now)

    def note(self, uid: str, now: float) -> bool:
        """Count a completed request; return False if its pod has been forgotten meanwhile."""
        history = self._histories.get(uid)
        if history is None:
            return False
        number = int(now // _SLOT_S)
        place = number % _SLOTS
        if history.numbers[place] != number:
            history.numbers[place] = number
            history.counts[place] = 0
        history.counts[place] += 1
        return True

    def rate(self, uid: str, now: float) -> float | None:
        """Return a pod's completed requests per second; None in the first ten seconds."""
        history = self._histories.get(uid)
        if history is None or now - history.since < _MIN_HISTORY_S:
            return None
        current = int(now // _SLOT_S)
        oldest = current - _SLOTS + 1
        seconds = now - max(history.since, oldest * _SLOT_S)
        return history.count_since(oldest, current) / seconds

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self._histories.pop(uid, None)
