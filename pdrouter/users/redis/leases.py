"""Places among those at a time: who holds one says so again and again, else it is free."""

import asyncio
from collections.abc import Callable, Sequence

from pdrouter.users.redis.link import RedisLink, RedisUnavailable, Script

RENEW = Script.read("renew.lua")
LEASE_S = 30.0
"""Seconds after which a place is free whose holder's router has died."""
RENEWALS = 3
"""How often a lease is made to hold on in the time in which it would end."""
MAX_BATCH = 200
"""Leases in one script: the server does nothing else meanwhile."""


class Leases:
    """The places that requests of this process hold.

    Attributes:
        lease_s: seconds after which a place is free that nobody renews.
    """

    def __init__(
        self, link: RedisLink, on_late: Callable[[str, str], None], lease_s: float = LEASE_S
    ) -> None:
        """Begin without any.

        Args:
            link: the way to the server.
            on_late: is told the key and the holder of a place that may have been renewed after it
                was released.
            lease_s: seconds after which a place is free that nobody renews.
        """
        self.lease_s = lease_s
        self._link = link
        self._on_late = on_late
        self._held: dict[str, tuple[str, ...]] = {}
        self._up = asyncio.Event()
        link.call_when_up(self._up.set)

    def __len__(self) -> int:
        """Return how many requests hold places."""
        return len(self._held)

    def hold(self, holder: str, keys: Sequence[str]) -> None:
        """Note the keys of places that a holder has."""
        self._held[holder] = (*self._held.get(holder, ()), *keys)

    def end(self, holder: str) -> None:
        """Forget a holder."""
        self._held.pop(holder, None)

    async def run(self) -> None:
        """Renew from time to time, and when the server is found again: it may have forgotten."""
        while True:
            try:
                async with asyncio.timeout(self.lease_s / RENEWALS):
                    await self._up.wait()
            except TimeoutError:
                pass
            self._up.clear()
            await self.renew()

    async def renew(self) -> None:
        """Renew all that are held."""
        leases = [(holder, key) for holder, keys in self._held.items() for key in keys]
        for first in range(0, len(leases), MAX_BATCH):
            batch = [each for each in leases[first : first + MAX_BATCH] if each[0] in self._held]
            keys = [key for _, key in batch]
            args = [self.lease_s, *(holder for holder, _ in batch)]
            try:
                await self._link.run_script(RENEW, keys, args)
            except RedisUnavailable:
                return  # Counted by the link. They hold until it is tried twice more.
            for holder, key in batch:
                if holder not in self._held:
                    # Its release may have come before, and would be undone.
                    self._on_late(key, holder)
