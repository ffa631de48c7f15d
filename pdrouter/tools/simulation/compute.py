"""The engine's time: a slot for each running request, and prefill one after the other."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics
from pdrouter.tools.simulation.turns import Turns


class Compute:
    """Bounds what runs at once, and makes it take its time.

    Attributes:
        running: Requests that have a slot.
        waiting: Requests that wait for one.
        running_tokens: Prompt tokens of the requests that have a slot.
    """

    def __init__(self, config: EngineConfig, metrics: EngineMetrics) -> None:
        self.running = 0
        self.waiting = 0
        self.running_tokens = 0
        self._metrics = metrics
        by_priority = config.priorities == "taken"
        self._slots = Turns(config.slots, by_priority=by_priority)
        self._prefill = Turns(1, by_priority=by_priority)
        self._prefill_tokens_per_s = config.prefill_tokens_per_s
        self._buckets = config.prefill_buckets
        self._step_s = config.itl_ms / 1_000

    @asynccontextmanager
    async def prefilled(
        self, prompt_tokens: int, *, cached: int = 0, priority: int = 0
    ) -> AsyncIterator[None]:
        """Wait for a slot, prefill a prompt, and hold the slot.

        A wait or a run that is cancelled leaves nothing behind.

        Args:
            prompt_tokens: The prompt's length.
            cached: How many of its tokens need no computing.
            priority: Its place among those that wait.
        """
        queued = time.monotonic()
        await self._take_slot(priority)
        self.running += 1
        self.running_tokens += prompt_tokens
        try:
            self._metrics.queue_seconds.observe(time.monotonic() - queued)
            await self._compute_prompt(prompt_tokens - cached, priority)
            self._metrics.prompt_tokens.inc(prompt_tokens)
            yield
        finally:
            self.running -= 1
            self.running_tokens -= prompt_tokens
            self._slots.give_back()

    async def step(self) -> None:
        """Take the time between two tokens of one request."""
        started = time.monotonic()
        if self._step_s:
            await asyncio.sleep(self._step_s)
        self._metrics.inter_token_seconds.observe(time.monotonic() - started)

    async def _take_slot(self, priority: int) -> None:
        self.waiting += 1
        try:
            await self._slots.take(priority)
        finally:
            self.waiting -= 1

    async def _compute_prompt(self, tokens: int, priority: int) -> None:
        started = time.monotonic()
        computed = self._fill_buckets(tokens)
        if self._prefill_tokens_per_s:
            await self._prefill.take(priority)
            try:
                await asyncio.sleep(computed / self._prefill_tokens_per_s)
            finally:
                self._prefill.give_back()
        self._metrics.prefill_seconds.observe(time.monotonic() - started)

    def _fill_buckets(self, tokens: int) -> int:
        """Return how many tokens are computed for so many of a prompt."""
        if not self._buckets or tokens <= 0:
            return tokens
        bucket = next((each for each in self._buckets if tokens <= each), self._buckets[-1])
        passes = -(-tokens // bucket)
        self._metrics.note_passes(bucket, passes, padding=passes * bucket - tokens)
        return passes * bucket
