"""The way to Redis: a deadline for each call, and none at all while the server is away."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as TooLate

from pdrouter.settings import SettingInvalid
from pdrouter.settings.redis_url import RedisUrl
from pdrouter.users.redis.clients import Client, RedisFiles, create_client
from pdrouter.users.redis.stats import LinkStats, Reason

log = logging.getLogger(__name__)

MAX_CALLS = 16
"""Calls at a time; others wait, within their deadline."""
FAILURES = 3
"""Calls in a row that fail until the server counts as away."""
PROBE_S = 0.25
"""Seconds until a server that is away is looked for; twice as many after each look in vain."""
LONGEST_PROBE_S = 2.0
"""Seconds between two looks for a server that is away, at the most."""
IDLE_S = 5.0
"""Seconds without a call after which it is looked whether the server is still there."""
CONNECT_S = 1.0
"""Seconds to find the server and to connect, while no request waits."""
_TROUBLES = (
    *(RedisError, RedisClusterException, OSError),
    # uvloop's word for a connection that was closed meanwhile.
    RuntimeError,
)


class RedisUnavailable(Exception):
    """There is no answer.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def uncertain(self) -> bool:
        """Whether it may have been done."""
        return self.reason in {Reason.TIMEOUT, Reason.CONNECTION}


@dataclass(frozen=True, slots=True)
class Script:
    """A script that the server runs as one step.

    Attributes:
        text: what it is.
        digest: what the server calls it.
    """

    text: str
    digest: str

    @classmethod
    def read(cls, name: str) -> "Script":
        """Return a script of this package."""
        text = Path(__file__).with_name(name).read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


PROBE = Script.read("probe.lua")


class RedisLink:
    """Calls to a server. Use as an async context manager, in which `run` runs.

    Attributes:
        stats: what has become of the calls.
    """

    def __init__(self, url: RedisUrl, files: RedisFiles, timeout_s: float, prefix: str) -> None:
        """Begin without a connection.

        Args:
            url: where the server is.
            files: who asks.
            timeout_s: the longest time that a call may take, with all that it needs.
            prefix: what keys begin with.
        """
        self.stats = LinkStats()
        self._url = url
        self._files = files
        self._timeout_s = timeout_s
        self._probe_key = f"{{{prefix}}}:probe"
        self._client: Client | None = None
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._failed_in_row = 0
        self._answered_at = 0.0
        self._lost_at: float | None = None
        self._lost = asyncio.Event()
        self._on_up: list[Callable[[], None]] = []
        self._closing: set[asyncio.Task[None]] = set()

    def call_when_up(self, call: Callable[[], None]) -> None:
        """Have something called each time that the server is found."""
        self._on_up.append(call)

    async def run_script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:  # noqa: ANN401
        """Run a script, and return its answer. All its keys lie in one slot of a cluster.

        Raises:
            RedisUnavailable: there is no answer in time.
        """
        return await self._call(lambda client: _evaluate(client, script, keys, args))

    async def get(self, key: str, most: int) -> bytes:
        """Return what a key has, up to so many bytes; nothing if there is no such key.

        Raises:
            RedisUnavailable: there is no answer in time.
        """
        command = ("GETRANGE", key, 0, most - 1)
        value: bytes = await self._call(lambda client: client.redis.execute_command(*command))
        return value

    async def __aenter__(self) -> "RedisLink":
        """Look for the server, once: whoever starts does not wait for one that is away."""
        await self._look()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop_client()
        if self._closing:
            await asyncio.wait(self._closing, timeout=CONNECT_S)

    async def run(self) -> None:
        """Look for the server while it is away, and from time to time whether it still is there."""
        pause_s = PROBE_S
        while True:
            if self._client is None:
                await asyncio.sleep(pause_s)
                await self._look()
                pause_s = min(2 * pause_s, LONGEST_PROBE_S)
                continue
            pause_s = PROBE_S
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._lost.wait()
            except TimeoutError:
                await self._check_idle()

    async def _check_idle(self) -> None:
        if time.monotonic() - self._answered_at < IDLE_S:
            return
        try:
            await self.run_script(PROBE, [self._probe_key], [])
        except RedisUnavailable as unavailable:
            self._note_lost(unavailable)

    async def _look(self) -> None:
        """Connect anew: the address, the password and the certificates may be others now."""
        client: Client | None = None
        try:
            async with asyncio.timeout(CONNECT_S):
                client = await create_client(self._url, self._files)
                await _evaluate(client, PROBE, [self._probe_key], [])
            async with asyncio.timeout(self._timeout_s):
                await _evaluate(client, PROBE, [self._probe_key], [])
        except (*_TROUBLES, SettingInvalid) as error:
            self.stats.failures[_find_reason(error)] += 1
            self._note_lost(_explain(error))
            if client is not None:
                self._close(client)
            return
        except BaseException:
            if client is not None:
                self._close(client)
            raise
        self._note_found(client)

    async def _call(self, call: Callable[[Client], Awaitable[Any]]) -> Any:  # noqa: ANN401
        client: Client | None = None
        try:
            async with asyncio.timeout(self._timeout_s), self._calls:
                client = self._take_client()
                answer = await call(client)
        except RedisUnavailable as away:
            self.stats.failures[away.reason] += 1
            raise
        except _TROUBLES as error:
            raise self._note_trouble(client, error) from error
        finally:
            if client is not None and client is not self._client:
                # It was given up meanwhile, and may have connected again for this call.
                self._close(client)
        self._failed_in_row = 0
        self._answered_at = time.monotonic()
        self.stats.calls += 1
        return answer

    def _take_client(self) -> Client:
        if self._client is None:
            raise RedisUnavailable(Reason.AWAY, f"{self._url.describe()} is away")
        return self._client

    def _note_trouble(self, client: Client | None, error: Exception) -> RedisUnavailable:
        failed = _explain(error)
        self.stats.failures[failed.reason] += 1
        if not _concerns_key(error):
            # New connections need another password, which may be in its file by now.
            self._note_failed(client, failed, final=isinstance(error, AuthenticationError))
        return failed

    def _note_failed(
        self, client: Client | None, unavailable: RedisUnavailable, *, final: bool
    ) -> None:
        if client is not self._client:
            return
        self._failed_in_row += 1
        if final or self._failed_in_row >= FAILURES:
            self._note_lost(unavailable)

    def _note_found(self, client: Client) -> None:
        self._client = client
        self._failed_in_row = 0
        self._answered_at = time.monotonic()
        self._lost.clear()
        self.stats.up = True
        away_s = 0.0 if self._lost_at is None else time.monotonic() - self._lost_at
        self._lost_at = None
        log.info("Redis answers", extra={"fields": {"url": self._url.describe(), "away_s": away_s}})
        for call in self._on_up:
            call()

    def _note_lost(self, unavailable: RedisUnavailable) -> None:
        """Take no more calls, and say so once."""
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            fields = {
                "url": self._url.describe(),
                "reason": unavailable.reason.value,
                "cause": str(unavailable),
            }
            log.warning("Redis cannot be used", extra={"fields": fields})
        self.stats.up = False
        self._drop_client()
        self._lost.set()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            self._close(client)

    def _close(self, client: Client) -> None:
        """Close connections, and so end the calls that wait for an answer."""
        task = asyncio.create_task(_close_quietly(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _evaluate(
    client: Client, script: Script, keys: Sequence[str], args: Sequence[Any]
) -> Any:  # noqa: ANN401
    try:
        return await client.redis.execute_command("EVALSHA", script.digest, len(keys), *keys, *args)
    except NoScriptError:
        # Another server, or one that was started anew; it keeps the script from now on.
        return await client.redis.execute_command("EVAL", script.text, len(keys), *keys, *args)


async def _close_quietly(client: Client) -> None:
    try:
        async with asyncio.timeout(CONNECT_S):
            await client.close()
    except (RedisError, OSError) as error:
        log.debug("a connection to Redis was not closed in order: %s", error)


def _concerns_key(error: Exception) -> bool:
    """Return whether a call has failed for what one key has, so that others may succeed."""
    return isinstance(error, ResponseError) and "WRONGTYPE " in str(error)


def _find_reason(error: Exception) -> Reason:
    if isinstance(error, TimeoutError | TooLate):
        return Reason.TIMEOUT
    if isinstance(error, AuthenticationError | NoPermissionError | SettingInvalid):
        return Reason.AUTH
    # Of what a script was refused, servers before Redis 7 tell in the midst of a text.
    if isinstance(error, OutOfMemoryError) or "-OOM " in str(error):
        return Reason.FULL
    if isinstance(error, ReadOnlyError) or "-READONLY " in str(error):
        return Reason.READ_ONLY
    lost = isinstance(error, NotConnected | OSError | RuntimeError)
    return Reason.CONNECTION if lost else Reason.OTHER


def _explain(error: Exception) -> RedisUnavailable:
    reason = _find_reason(error)
    message = "no answer in time" if reason is Reason.TIMEOUT else str(error)
    return RedisUnavailable(reason, message)
