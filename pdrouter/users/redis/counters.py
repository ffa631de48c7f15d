"""Counters in Redis or Valkey, which all that have the same prefix share."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from pdrouter.users.counters import (
    SLOTS,
    CountersUnavailable,
    Demand,
    Measure,
    Quota,
    Standing,
    Taken,
    Verdict,
)
from pdrouter.users.redis.backlog import Backlog, Correction, Kind
from pdrouter.users.redis.leases import LEASE_S, Leases
from pdrouter.users.redis.link import RedisLink, RedisUnavailable, Script

TAKE = Script.read("take.lua")


class RedisCounters:
    """Counts for all processes that share a server.

    All keys lie in one slot of a cluster, for a check takes of all its quotas or of none. What is
    put right, released or given back is sent at once, and later where the server is away.
    """

    def __init__(self, link: RedisLink, prefix: str, lease_s: float = LEASE_S) -> None:
        """Begin with what the server has counted.

        Args:
            link: the way to the server.
            prefix: what keys begin with.
            lease_s: seconds after which a place is free whose holder's router has died.
        """
        self._link = link
        self._prefix = prefix
        self._backlog = Backlog(link, prefix)
        self._leases = Leases(link, self._release_later, lease_s)
        self._unwanted: set[asyncio.Task[Verdict]] = set()

    async def take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        """Take all that is demanded, or nothing."""
        if not demands:
            return Verdict((), Taken((), holder, 0.0))
        asking = asyncio.create_task(self._take(demands, holder))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            # The server may do it all the same: what comes of it is undone.
            self._unwanted.add(asking)
            asking.add_done_callback(self._undo)
            raise
        finally:
            # What has failed it knows this frame, and would know itself by it.
            del asking

    async def _take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        keys = [self._name_key(demand.quota) for demand in demands]
        args: list[Any] = [SLOTS, self._leases.lease_s, holder]
        places = []
        for key, demand in zip(keys, demands, strict=True):
            kind = "window"
            if demand.quota.measure is Measure.CONCURRENT:
                kind = "lease"
                places.append(key)
            args += [kind, demand.amount, demand.quota.limit, repr(demand.quota.window_s / SLOTS)]
        try:
            answer = await self._link.run_script(TAKE, keys, args)
        except RedisUnavailable as unavailable:
            if unavailable.uncertain:
                for place in places:
                    self._release_later(place, holder)
            raise CountersUnavailable(str(unavailable)) from unavailable
        verdict = _read_verdict(answer, demands, holder)
        if verdict.taken is not None and places:
            self._leases.hold(holder, places)
        return verdict

    def _undo(self, asking: "asyncio.Task[Verdict]") -> None:
        self._unwanted.discard(asking)
        if asking.cancelled() or asking.exception() is not None:
            return
        taken = asking.result().taken
        if taken is not None:
            self._backlog.add(self._list_undone(taken))

    async def correct(self, taken: Taken, tokens: int) -> None:
        """Count as many tokens as there were, in place of those that were reserved."""
        if taken.counters:
            return  # It was taken elsewhere.
        corrections = []
        for demand in taken.select(Measure.TOKENS).demands:
            beyond = tokens - demand.amount
            kind = Kind.ADD if beyond > 0 else Kind.SUBTRACT
            corrections.append(self._change(demand.quota, kind, abs(beyond), taken.at))
        await self._settle(each for each in corrections if each.what)

    async def release(self, taken: Taken) -> None:
        """End what counts while it lasts."""
        if taken.counters:
            return
        await self._settle(self._release(taken))

    async def give_back(self, taken: Taken) -> None:
        """Undo what was taken, as if it had not been."""
        if taken.counters:
            return
        await self._settle(self._list_undone(taken))

    async def run(self) -> None:
        """Let what counts while it lasts go on counting."""
        await self._leases.run()

    async def close(self) -> None:
        """Send what is to be put right, if the server takes it now."""
        if self._unwanted:
            await asyncio.wait(self._unwanted)
        await self._backlog.close()

    async def _settle(self, corrections: Iterable[Correction]) -> None:
        self._backlog.add(corrections)
        await self._backlog.wait()

    def _release(self, taken: Taken) -> list[Correction]:
        self._leases.end(taken.holder)
        places = taken.select(Measure.CONCURRENT).demands
        return [self._end_lease(self._name_key(each.quota), taken.holder) for each in places]

    def _list_undone(self, taken: Taken) -> list[Correction]:
        windows = taken.select(Measure.REQUESTS, Measure.TOKENS).demands
        return [
            *self._release(taken),
            *(self._change(each.quota, Kind.SUBTRACT, each.amount, taken.at) for each in windows),
        ]

    def _release_later(self, key: str, holder: str) -> None:
        self._backlog.add([self._end_lease(key, holder)])

    def _end_lease(self, key: str, holder: str) -> Correction:
        return Correction(key, Kind.RELEASE, holder, self._leases.lease_s)

    def _change(self, quota: Quota, kind: Kind, amount: int, at: float) -> Correction:
        slot_s = quota.window_s / SLOTS
        key = self._name_key(quota)
        return Correction(key, kind, amount, quota.window_s + slot_s, slot_s, at)

    def _name_key(self, quota: Quota) -> str:
        """Return the key of a quota. Windows of other lengths have other slots."""
        window = f"{quota.window_s:g}" if quota.window_s else ""
        return f"{{{self._prefix}}}:{quota.measure}{window}:{quota.name}"


def _read_verdict(answer: list[Any], demands: Sequence[Demand], holder: str) -> Verdict:
    worst, wait, now, *counted = answer
    standings = tuple(
        Standing(demand.quota, max(0, demand.quota.limit - used), float(reset))
        for demand, used, reset in zip(demands, counted[::2], counted[1::2], strict=True)
    )
    if worst:
        return Verdict(standings, None, demands[worst - 1], float(wait))
    return Verdict(standings, Taken(tuple(demands), holder, float(now)))
