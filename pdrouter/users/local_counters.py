"""Counters of one process, or of the workers of one router."""

import time
import uuid
from collections.abc import Callable, Sequence

from pdrouter.users.counters import Demand, Measure, Quota, Standing, Taken, Verdict
from pdrouter.users.places import Places
from pdrouter.users.window_counts import WindowCounts


class LocalCounters:
    """Counts in memory: of the workers of one router together, if they share that."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        windows: WindowCounts | None = None,
        places: Places | None = None,
        group: str = "",
    ) -> None:
        """Start with nothing taken.

        Args:
            clock: gives the time in seconds.
            windows: what was taken within windows of time; None to begin with nothing.
            places: what was taken that counts while it lasts; likewise.
            group: a name of these processes that no others have; empty for one of this one's own.
        """
        self._clock = clock
        self._windows = windows or WindowCounts(clock)
        self._places = Places() if places is None else places
        self._group = group or uuid.uuid4().hex

    async def take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        """Take all that is demanded, or nothing."""
        worst: Demand | None = None
        wait_s = 0.0
        for demand in demands:
            lacking_s = self._find_wait(demand, holder)
            if lacking_s is not None and (worst is None or lacking_s > wait_s):
                worst, wait_s = demand, lacking_s
        taken = None
        if worst is None:
            taken = Taken(tuple(demands), holder, self._clock(), self._group)
            for demand in demands:
                self._add(demand.quota, demand.amount, holder)
        standings = tuple(self._describe(demand.quota) for demand in demands)
        return Verdict(standings, taken, worst, wait_s)

    async def correct(self, taken: Taken, tokens: int) -> None:
        """Count as many tokens as there were, in place of those that were reserved."""
        if taken.counters != self._group:
            return
        for demand in taken.select(Measure.TOKENS).demands:
            quota, beyond = demand.quota, tokens - demand.amount
            if beyond > 0:
                self._windows.add(quota.name, quota.window_s, beyond)
            elif beyond < 0:
                self._windows.subtract(quota.name, quota.window_s, -beyond, taken.at)

    async def release(self, taken: Taken) -> None:
        """End what counts while it lasts."""
        for demand in taken.select(Measure.CONCURRENT).demands:
            self._places.free(demand.quota.name, taken.holder)

    async def give_back(self, taken: Taken) -> None:
        """Undo what was taken, as if it had not been."""
        if taken.counters != self._group:
            return
        await self.release(taken)
        for demand in taken.select(Measure.REQUESTS, Measure.TOKENS).demands:
            quota = demand.quota
            self._windows.subtract(quota.name, quota.window_s, demand.amount, taken.at)

    def _find_wait(self, demand: Demand, holder: str) -> float | None:
        """Return the seconds until a demand can be met; None if it can be."""
        quota = demand.quota
        if quota.measure is Measure.CONCURRENT:
            new = not self._places.has(quota.name, holder)
            return 0.0 if self._places.count(quota.name) + new > quota.limit else None
        used = self._windows.count(quota.name, quota.window_s)
        lacking = used + demand.amount - quota.limit
        if lacking <= 0:
            return None
        return self._windows.find_wait(quota.name, quota.window_s, lacking)

    def _add(self, quota: Quota, amount: int, holder: str) -> None:
        if quota.measure is Measure.CONCURRENT:
            self._places.hold(quota.name, holder)
        else:
            self._windows.add(quota.name, quota.window_s, amount)

    def _describe(self, quota: Quota) -> Standing:
        if quota.measure is Measure.CONCURRENT:
            left = quota.limit - self._places.count(quota.name)
            return Standing(quota, max(0, left), 0.0)
        used = self._windows.count(quota.name, quota.window_s)
        reset_s = self._windows.find_reset(quota.name, quota.window_s)
        return Standing(quota, max(0, quota.limit - used), reset_s)
