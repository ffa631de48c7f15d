"""Counters in the memory of one process."""

import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from pdrouter.users.counters import (
    SLOTS,
    Demand,
    Measure,
    Quota,
    Standing,
    Taken,
    Verdict,
)

_MAX_COUNTERS = 100_000


class LocalCounters:
    """Counts in this process alone. Of several workers, each lets its part of a limit pass."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, workers: int = 1) -> None:
        """Start with nothing taken.

        Args:
            clock: gives the time in seconds.
            workers: how many processes share each limit; requests come to them evenly.
        """
        self._clock = clock
        self._workers = workers
        self._id = uuid.uuid4().hex
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._holders: dict[str, set[str]] = {}

    async def take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        """Take all that is demanded, or nothing."""
        now = self._clock()
        worst: Demand | None = None
        wait_s = 0.0
        for demand in demands:
            lacking_s = self._find_wait(demand, holder, now)
            if lacking_s is not None and (worst is None or lacking_s > wait_s):
                worst, wait_s = demand, lacking_s
        taken = None
        if worst is None:
            for demand in demands:
                self._add(demand.quota, demand.amount, holder, now)
            taken = Taken(tuple(demands), holder, now, self._id)
        standings = tuple(self._describe(demand.quota, now) for demand in demands)
        return Verdict(standings, taken, worst, wait_s)

    async def correct(self, taken: Taken, tokens: int) -> None:
        """Count as many tokens as there were, in place of those that were reserved."""
        if taken.counters != self._id:
            return
        now = self._clock()
        for demand in taken.select(Measure.TOKENS).demands:
            window = self._find_window(demand.quota, now)
            beyond = tokens - demand.amount
            if beyond > 0:
                window.add(beyond, now)
            else:
                window.subtract(-beyond, taken.at, now)

    async def release(self, taken: Taken) -> None:
        """End what counts while it lasts."""
        if taken.counters != self._id:
            return
        for demand in taken.select(Measure.CONCURRENT).demands:
            holders = self._holders.get(demand.quota.name)
            if holders is not None:
                holders.discard(taken.holder)
                if not holders:
                    del self._holders[demand.quota.name]

    async def give_back(self, taken: Taken) -> None:
        """Undo what was taken, as if it had not been."""
        if taken.counters != self._id:
            return
        await self.release(taken)
        now = self._clock()
        for demand in taken.select(Measure.REQUESTS, Measure.TOKENS).demands:
            self._find_window(demand.quota, now).subtract(demand.amount, taken.at, now)

    def _find_wait(self, demand: Demand, holder: str, now: float) -> float | None:
        """Return the seconds until a demand can be met; None if it can be."""
        quota = demand.quota
        limit = self._share(quota.limit)
        if quota.measure is Measure.CONCURRENT:
            holders = self._holders.get(quota.name, set())
            return 0.0 if len(holders | {holder}) > limit else None
        window = self._find_window(quota, now)
        if not window.used and demand.amount <= quota.limit:
            return None  # It may be more than the part of a worker, who else would never take it.
        return window.find_wait(demand.amount, limit, now)

    def _add(self, quota: Quota, amount: int, holder: str, now: float) -> None:
        if quota.measure is Measure.CONCURRENT:
            self._holders.setdefault(quota.name, set()).add(holder)
        else:
            self._find_window(quota, now).add(amount, now)

    def _describe(self, quota: Quota, now: float) -> Standing:
        limit = self._share(quota.limit)
        if quota.measure is Measure.CONCURRENT:
            used, reset_s = len(self._holders.get(quota.name, ())), 0.0
        else:
            window = self._find_window(quota, now)
            used, reset_s = window.used, window.find_reset(now)
        remaining = min(quota.limit, max(0, limit - used) * self._workers)
        return Standing(quota, remaining, reset_s)

    def _share(self, limit: int) -> int:
        """Return this worker's part of a limit, which is at least one."""
        return max(1, limit // self._workers) if limit else 0

    def _find_window(self, quota: Quota, now: float) -> "_Window":
        window = self._windows.get(quota.name)
        if window is None or window.length_s != quota.window_s:
            window = self._windows[quota.name] = _Window(quota.window_s)
            if len(self._windows) > _MAX_COUNTERS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(quota.name)
        window.forget(now)
        return window


class _Window:
    """What was taken within the last window of time, by the slots in which it was.

    Attributes:
        length_s: seconds of the window.
        used: how much was taken.
    """

    __slots__ = ("_slot_s", "_slots", "length_s", "used")

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self.used = 0
        self._slot_s = length_s / SLOTS
        self._slots: deque[list[int]] = deque()

    def forget(self, now: float) -> None:
        """Forget the slots that have ended a window ago."""
        oldest = int(now / self._slot_s) - SLOTS
        while self._slots and self._slots[0][0] < oldest:
            self.used -= self._slots.popleft()[1]

    def add(self, amount: int, now: float) -> None:
        """Count what is taken now."""
        slot = int(now / self._slot_s)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0])
        self._slots[-1][1] += amount
        self.used += amount

    def subtract(self, amount: int, at: float, now: float) -> None:
        """Count less of what was taken at a time; of what is forgotten there is nothing to do."""
        self.forget(now)
        slot = int(at / self._slot_s)
        for each in self._slots:
            if each[0] == slot:
                less = min(amount, each[1])
                each[1] -= less
                self.used -= less
                return

    def find_wait(self, amount: int, limit: int, now: float) -> float | None:
        """Return the seconds until there is room; None if there is.

        Where there never is, it is a whole window.
        """
        lacking = self.used + amount - limit
        if lacking <= 0:
            return None
        for slot, count in self._slots:
            lacking -= count
            if lacking <= 0:
                return self._find_end(slot, now)
        return self.length_s

    def find_reset(self, now: float) -> float:
        """Return the seconds until all is free."""
        return self._find_end(self._slots[-1][0], now) if self.used else 0.0

    def _find_end(self, slot: int, now: float) -> float:
        """Return the seconds until a slot is forgotten."""
        return max(0.0, (slot + 1 + SLOTS) * self._slot_s - now)
