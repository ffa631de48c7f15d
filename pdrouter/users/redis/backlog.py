"""Corrections of what was counted: many at once, each of them once, and later if it must be."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from pdrouter.users.counters import SLOTS
from pdrouter.users.redis.link import RedisLink, RedisUnavailable, Script

SETTLE = Script.read("settle.lua")
MAX_BATCH = 200
"""Corrections in one script: the server does nothing else meanwhile."""
MAX_WAITING = 10_000
"""Corrections that wait while the server is away; of more, the oldest are given up."""
RETRY_S = 1.0
"""Seconds until a batch that has failed is sent again, while the server is not away."""
KEPT_S = 300
"""Seconds for which the server knows which batches are done."""
RESENT_S = KEPT_S / 2
"""Seconds in which a batch that has failed is sent again."""


class Kind(StrEnum):
    """What a correction does."""

    ADD = "add"
    SUBTRACT = "subtract"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction.

    Attributes:
        key: the key of what is counted.
        kind: what it does.
        what: an amount, or the holder of a lease.
        useful_s: seconds after which it makes no difference.
        slot_s: seconds of a slot of the window; 0 of a lease.
        taken_at: when that was taken of which less is counted.
    """

    key: str
    kind: Kind
    what: int | str
    useful_s: float
    slot_s: float = 0.0
    taken_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Batch:
    number: int
    corrections: tuple[Correction, ...]
    until: float


class Backlog:
    """Sends corrections: at once, those together that come while others are under way."""

    def __init__(
        self, link: RedisLink, prefix: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with none.

        Args:
            link: the way to the server.
            prefix: what keys begin with.
            clock: gives the time in seconds.
        """
        self._link = link
        # Batches go one after the other: the number of the last one says which are done.
        self._key = f"{{{prefix}}}:batches:{uuid.uuid4().hex}"
        self._batches = 0
        self._clock = clock
        self._waiting: deque[tuple[float, Correction]] = deque()
        self._batch: _Batch | None = None
        self._sending: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        link.call_when_up(self._send_soon)

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting) + (len(self._batch.corrections) if self._batch else 0)

    def add(self, corrections: Iterable[Correction]) -> None:
        """Have corrections sent."""
        now = self._clock()
        self._waiting.extend((now + each.useful_s, each) for each in corrections)
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._link.stats.dropped += 1
        if self._link.stats.up:
            self._send_soon()

    async def wait(self) -> None:
        """Return once all that were added have been sent, or could not be."""
        sending = self._sending
        if sending is not None:
            await asyncio.wait([sending])

    async def close(self) -> None:
        """Send what waits, if the server takes it now."""
        await self.wait()
        if self._retry is not None:
            self._retry.cancel()

    def _send_soon(self) -> None:
        if self._sending is None and (self._waiting or self._batch):
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while (batch := self._choose_batch()) is not None:
                self._batch = batch
                await self._link.run_script(SETTLE, *self._write(batch))
                self._batch = None
        except RedisUnavailable:
            # Counted by the link. Once the server is found again, it is sent again.
            if self._link.stats.up:
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(RETRY_S, self._send_soon)
        finally:
            self._sending = None

    def _choose_batch(self) -> _Batch | None:
        """Return what is sent next: what has failed before, as long as it counts once."""
        failed = self._batch
        if failed is None or failed.until > self._clock():
            return failed or self._form_batch()
        self._link.stats.dropped += len(failed.corrections)
        return self._form_batch()

    def _form_batch(self) -> _Batch | None:
        now = self._clock()
        corrections: list[Correction] = []
        while self._waiting and len(corrections) < MAX_BATCH:
            until, correction = self._waiting.popleft()
            if until > now:
                corrections.append(correction)
        if not corrections:
            return None
        self._batches += 1
        return _Batch(self._batches, tuple(corrections), now + RESENT_S)

    def _write(self, batch: _Batch) -> tuple[list[str], list[str | int | float]]:
        keys = [self._key]
        args: list[str | int | float] = [SLOTS, KEPT_S, batch.number]
        for each in batch.corrections:
            keys.append(each.key)
            args += [each.kind.value, each.what, repr(each.slot_s), repr(each.taken_at)]
        return keys, args
