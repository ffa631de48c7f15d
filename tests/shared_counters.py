"""Counters in a real Redis, as a router has them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from waiting import LONGER_S

from pdrouter.settings.redis_url import parse_redis_url
from pdrouter.users.redis.clients import RedisFiles
from pdrouter.users.redis.counters import RedisCounters
from pdrouter.users.redis.leases import LEASE_S
from pdrouter.users.redis.link import RedisLink


@dataclass(frozen=True, slots=True)
class Shared:
    """What one router has."""

    link: RedisLink
    counters: RedisCounters


@asynccontextmanager
async def share(
    url: str,
    prefix: str = "test",
    timeout_s: float = LONGER_S,
    files: RedisFiles | None = None,
    lease_s: float = LEASE_S,
) -> AsyncIterator[Shared]:
    """Counters that share a server; calls have so much time that none fails on a busy machine."""
    link = RedisLink(parse_redis_url(url), files or RedisFiles(), timeout_s, prefix)
    counters = RedisCounters(link, prefix, lease_s)
    async with link, asyncio.TaskGroup() as tasks:
        works = [tasks.create_task(link.run()), tasks.create_task(counters.run())]
        try:
            yield Shared(link, counters)
            await counters.close()
        finally:
            for work in works:
                work.cancel()
