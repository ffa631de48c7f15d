"""The prefill legs that wait on one pod, and the work that they are."""

from itertools import islice
from typing import Protocol


class QueuedLeg(Protocol):
    """A leg in a queue; each is one of its own."""

    @property
    def due(self) -> float | None:
        """When its request is due, on the clock of the ledger; None for no such time."""

    def __hash__(self) -> int: ...


class PrefillQueue:
    """The prefill legs on one pod, in the order in which they were sent.

    Engines work on one after the other, or on all at once at a rate that they share: either way, a
    leg is done when the work before it and its own is.

    Attributes:
        since: when the first leg came to the front, or a later one was carried out.
        work: the work of each leg, in the units of `PrefillRates`.
        first: that of the first leg.
        rest: the sum of that of the others.
    """

    __slots__ = ("first", "rest", "since", "work")

    def __init__(self, now: float, leg: QueuedLeg, work: float) -> None:
        self.since = now
        self.work = {leg: work}
        self.first = work
        self.rest = 0.0

    def count_due(self, due: float) -> float:
        """Return the work that waits behind the first leg and is due by then."""
        waiting = islice(self.work.items(), 1, None)
        return sum(work for leg, work in waiting if leg.due is None or leg.due <= due)

    def add(self, leg: QueuedLeg, work: float) -> None:
        self.work[leg] = work
        self.rest += work

    def remove(self, leg: QueuedLeg) -> bool:
        """Take a leg out; return whether it was the first."""
        work = self.work
        was_first = next(iter(work)) is leg
        own = work.pop(leg)
        if was_first:
            self.first = next(iter(work.values()), 0.0)
            self.rest -= self.first
        else:
            self.rest -= own
        return was_first
