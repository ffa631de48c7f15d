"""A decode engine: slots and KV memory for running requests, and a line of those who wait."""

from functools import partial

from benchmarks.routing.cluster.block_cache import CachedBlocks
from benchmarks.routing.cluster.decode_batch import DecodeBatch, DecodeTask
from benchmarks.routing.cluster.events import Event, EventQueue
from benchmarks.routing.cluster.prompt_chunks import PromptChunks
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed
from benchmarks.routing.cluster.token_gaps import TokenGaps
from benchmarks.routing.cluster.waiting_line import WaitingLine
from benchmarks.routing.cluster.workload import BLOCK_TOKENS

_ADMISSION_SHARE = 0.99
"""Share of the KV memory up to which requests are admitted: vLLM kept a watermark of 1%, lest it
preempt at once what it has admitted."""

_ROUNDING = 1e-3
"""Tokens by which sums of fractions may be wrong."""

_SAME_STEP = 1e-6


class DecodeEngine:
    """Generates tokens for as many requests as have room.

    A request is admitted when its turn has come and there are a slot and KV memory for its prompt.
    Then the KV blocks that are not cached here are fetched; or its prompt is computed here, in
    chunks that steps of generation take along: those steps get longer by what the chunk costs, and
    all who generate wait for their tokens. When generation has filled the memory, the request that
    joined last loses its blocks, waits in front of those who came after it, and is computed again,
    its answer so far included.

    Memory that no request needs holds a cache of prefixes: prompts, and the answers to them.

    Attributes:
        busy_s: seconds spent generating or computing prompts.
        preemptions: how often a request lost its blocks.
    """

    def __init__(
        self,
        events: EventQueue,
        speed: DecodeSpeed,
        prefill: PrefillSpeed,
        link: Link,
        *,
        kv_tokens: int,
        slowness: float = 1.0,
        by_priority: bool = False,
    ) -> None:
        """Start idle.

        Args:
            events: the virtual time.
            speed: what generating costs.
            prefill: what computing a prompt here costs.
            link: how KV blocks come here.
            kv_tokens: size of the KV memory.
            slowness: how many times longer this pod takes than others.
            by_priority: whether requests of lower priority values are admitted first.
        """
        self._events = events
        self._speed = speed
        self._link = link
        self.kv_capacity = kv_tokens
        self._batch = DecodeBatch(speed, slowness)
        self._line: WaitingLine[DecodeTask] = WaitingLine(by_priority=by_priority)
        # Admitted: blocks are being fetched, or prompts are computed here.
        self._fetching = 0
        self._chunks = PromptChunks(prefill)
        self._chunk_end: float | None = None
        self._reserved = 0.0
        self._cache = CachedBlocks()
        self._updated = 0.0
        self._next: Event | None = None
        self.busy_s = 0.0
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Requests that have KV memory."""
        return len(self._batch) + self._fetching + len(self._chunks)

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @property
    def kv_usage(self) -> float:
        """Share of the KV memory in use; what is only cached counts as free."""
        self._advance()
        return self._kv_used / self.kv_capacity

    @property
    def generated_tokens(self) -> float:
        """Tokens generated since the start."""
        self._advance()
        return self._batch.generated

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that were computed here."""
        return self._chunks.computed_tokens

    @property
    def gaps(self) -> TokenGaps:
        """How long tokens were waited for."""
        return self._batch.gaps

    def submit(self, task: DecodeTask) -> None:
        """Take a request."""
        task.place = self._line.join(task, task.priority)
        self._advance()
        self._proceed()

    @property
    def _kv_used(self) -> float:
        return self._batch.kv_tokens + self._reserved

    def _advance(self) -> None:
        """Bring the batch to the present time."""
        elapsed = self._events.now - self._updated
        self._updated = self._events.now
        if elapsed > 0.0 and (self._batch or self._chunk_end is not None):
            self.busy_s += elapsed
            self._batch.advance(elapsed)

    def _proceed(self) -> None:
        """Admit what fits, and plan when something happens next."""
        self._admit()
        if self._chunk_end is None and self._chunks:
            self._batch.added_s = self._chunks.plan(len(self._batch))
            self._chunk_end = self._batch.steps + 1.0
        if self._next is not None:
            self._next.cancel()
            self._next = None
        ahead = []
        milestone = self._batch.next_milestone()
        if milestone is not None:
            room = self.kv_capacity - self._kv_used
            ahead += [milestone, max(0.0, room / len(self._batch))]
        if self._chunk_end is not None:
            ahead.append(max(0.0, self._chunk_end - self._batch.steps))
        if ahead:
            steps = min(ahead)
            self._next = self._events.schedule(
                self._events.now + self._batch.seconds(steps),
                partial(self._reach, self._batch.steps + steps),
            )

    def _admit(self) -> None:
        while self._line and self.running < self._speed.slots:
            task = self._line.first()
            used = self._kv_used
            if used and used + task.kv_tokens > self.kv_capacity * _ADMISSION_SHARE:
                return
            self._line.take_first()
            self._reserve(task)
            if task.on_received is None:
                self._chunks.add(task)
            else:
                self._fetching += 1
                seconds = self._link.transfer(task.request.prompt_tokens - task.computed)
                self._events.schedule(self._events.now + seconds, partial(self._receive, task))

    def _reserve(self, task: DecodeTask) -> None:
        """Take memory for what a request begins with, of which a part may be cached."""
        prompt = task.request.prompt
        task.held = prompt.hashes[: self._cache.match_prompt(prompt)]
        task.computed = len(task.held) * BLOCK_TOKENS
        if not task.answering:
            task.cached = task.computed
        self._cache.hold(task.held)
        self._reserved += task.kv_tokens
        self._make_room()

    def _make_room(self) -> None:
        """Drop what is cached where requests need the memory."""
        free = max(0.0, self.kv_capacity - self._kv_used)
        self._cache.shrink(self._cache.held + int(free) // BLOCK_TOKENS)

    def _receive(self, task: DecodeTask) -> None:
        self._advance()
        self._fetching -= 1
        received, task.on_received = task.on_received, None
        self._join(task)
        self._proceed()
        if received is not None:
            received()

    def _join(self, task: DecodeTask) -> None:
        """Let a request generate: all that it begins with is here now."""
        self._take_reserved(task)
        self._hold_filled(task)
        self._batch.join(task)

    def _take_reserved(self, task: DecodeTask) -> None:
        self._reserved -= task.kv_tokens
        if not self._fetching and not self._chunks:
            # Sums of fractions would leave a rest.
            self._reserved = 0.0

    def _hold_filled(self, task: DecodeTask) -> None:
        """Cache the blocks that a request has filled up."""
        blocks = task.whole_blocks
        self._cache.hold(blocks[len(task.held) :])
        task.held = blocks

    def _leave(self, task: DecodeTask) -> None:
        """Take back a request's memory; its blocks stay cached until room is needed."""
        self._hold_filled(task)
        self._cache.give_up(task.held)
        task.held = ()

    def _reach(self, step: float) -> None:
        """Do what is due at a step: tokens that matter, chunks, or memory that is full."""
        self._next = None
        elapsed = self._events.now - self._updated
        self.busy_s += elapsed
        self._updated = self._events.now
        self._batch.advance_steps(max(0.0, step - self._batch.steps), elapsed)
        reached = self._batch.take_reached()
        finished = [
            task
            for task in reached
            if self._batch.count_generated(task) >= task.request.output_tokens - _ROUNDING
        ]
        for task in finished:
            self._batch.leave(task)
            self._leave(task)
        if self._chunk_end is not None and self._batch.steps >= self._chunk_end - _SAME_STEP:
            computed, ended = self._finish_chunks()
            reached += computed
            finished += ended
        while self._batch and self._kv_used > self.kv_capacity - _ROUNDING:
            self._preempt(self._batch.last())
        self._make_room()
        self._proceed()
        for task in reached:
            if not task.answering:
                task.answering = True
                task.on_first_token()
        for task in finished:
            task.on_finished()

    def _finish_chunks(self) -> tuple[list[DecodeTask], list[DecodeTask]]:
        """Give those whose prompts are computed now the token that comes of it.

        Returns:
            These requests, and those of them that want no other token.
        """
        self._chunk_end = None
        self._batch.added_s = 0.0
        computed = self._chunks.finish()
        ended = []
        for task in computed:
            self._take_reserved(task)
            # One that lost its blocks in the middle of a step had a part of its next token.
            token = min(1.0, task.request.output_tokens - task.generated)
            task.generated += token
            self._batch.generated += token
            self._hold_filled(task)
            if task.generated >= task.request.output_tokens - _ROUNDING:
                self._leave(task)
                ended.append(task)
            else:
                self._batch.join(task)
        return computed, ended

    def _preempt(self, task: DecodeTask) -> None:
        self._batch.leave(task)
        self._leave(task)
        task.preemptions += 1
        self.preemptions += 1
        self._line.rejoin(task, task.place)
