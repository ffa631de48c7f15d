"""All that routers share in Redis, as the settings have it."""

import asyncio
from types import TracebackType

from pdrouter.settings import Settings
from pdrouter.settings.redis_url import RedisUrl
from pdrouter.users.redis.clients import find_files
from pdrouter.users.redis.counters import RedisCounters
from pdrouter.users.redis.directory import RedisDirectory
from pdrouter.users.redis.link import RedisLink
from pdrouter.users.redis.stats import LinkStats


class SharedState:
    """What routers share. Use as an async context manager, in which `run` runs.

    Attributes:
        counters: counts for all of them.
        directory: knows aibrix's users.
    """

    def __init__(self, url: RedisUrl, settings: Settings) -> None:
        """Begin without a connection.

        Args:
            url: where the server is.
            settings: what the operator decided.
        """
        prefix = settings.redis_prefix
        self._link = RedisLink(url, find_files(settings), settings.redis_timeout_s, prefix)
        self.counters = RedisCounters(self._link, prefix)
        self.directory = RedisDirectory(self._link)

    @property
    def stats(self) -> LinkStats:
        """What has become of the calls to the server."""
        return self._link.stats

    async def __aenter__(self) -> "SharedState":
        """Look for the server; whoever starts does not wait for one that is away."""
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.counters.close()
        await self._link.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Keep to the server, and let what counts while it lasts go on counting."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            tasks.create_task(self.counters.run())
