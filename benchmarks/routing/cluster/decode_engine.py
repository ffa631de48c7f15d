"""A decode engine: slots and KV memory for running requests, and a queue for the others."""

from collections import deque
from functools import partial

from benchmarks.routing.cluster.decode_batch import DecodeBatch, DecodeTask
from benchmarks.routing.cluster.events import Event, EventQueue
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed

_ADMISSION_SHARE = 0.99
"""Share of the KV memory up to which requests are admitted: vLLM kept a watermark of 1%, lest it
preempt at once what it has admitted."""

_ROUNDING = 1e-3
"""Tokens by which sums of fractions may be wrong."""


class DecodeEngine:
    """Generates tokens for as many requests as have room.

    A request is admitted, first come, first served, when there are a slot and KV memory for its
    prompt. Then its KV blocks are fetched; or its prompt is computed here, which stops generation
    meanwhile. When generation has filled the memory, the request that joined last loses its blocks,
    waits in front of the queue, and is computed again, its answer so far included.

    There is no cache of prefixes here: decode engines get whole prompts from elsewhere.

    Attributes:
        busy_s: seconds spent generating or computing prompts.
        computed_tokens: prompt tokens that were computed here.
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
    ) -> None:
        """Start idle.

        Args:
            events: the virtual time.
            speed: what generating costs.
            prefill: what computing a prompt here costs.
            link: how KV blocks come here.
            kv_tokens: size of the KV memory.
            slowness: how many times longer this pod takes than others.
        """
        self._events = events
        self._speed = speed
        self._prefill = prefill
        self._link = link
        self._slowness = slowness
        self.kv_capacity = kv_tokens
        self._batch = DecodeBatch(speed, slowness)
        self._queue: deque[DecodeTask] = deque()
        # Admitted: blocks are being fetched, or wait to be computed here.
        self._fetching = 0
        self._to_compute: deque[DecodeTask] = deque()
        self._reserved = 0.0
        self._updated = 0.0
        self._next: Event | None = None
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.preemptions = 0

    @property
    def running(self) -> int:
        """Requests that have KV memory."""
        return len(self._batch) + self._fetching + len(self._to_compute)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def kv_usage(self) -> float:
        """Share of the KV memory in use."""
        self._advance()
        return (self._batch.kv_tokens + self._reserved) / self.kv_capacity

    @property
    def generated_tokens(self) -> float:
        """Tokens generated since the start."""
        self._advance()
        return self._batch.generated

    def submit(self, task: DecodeTask) -> None:
        """Take a request."""
        self._queue.append(task)
        self._advance()
        self._proceed()

    def _advance(self) -> None:
        """Bring the batch to the present time."""
        elapsed = self._events.now - self._updated
        self._updated = self._events.now
        if elapsed <= 0.0:
            return
        if self._to_compute:
            self.busy_s += elapsed
        elif self._batch:
            self.busy_s += elapsed
            self._batch.advance(elapsed)

    def _proceed(self) -> None:
        """Admit what fits, and plan when something happens next."""
        self._admit()
        if self._to_compute:
            return
        if self._next is not None:
            self._next.cancel()
            self._next = None
        steps = self._batch.next_milestone()
        if steps is None:
            return
        room = self.kv_capacity - self._batch.kv_tokens - self._reserved
        steps = min(steps, max(0.0, room / len(self._batch)))
        self._next = self._events.schedule(
            self._events.now + self._batch.seconds(steps),
            partial(self._reach, self._batch.steps + steps),
        )

    def _admit(self) -> None:
        while self._queue and self.running < self._speed.slots:
            task = self._queue[0]
            used = self._batch.kv_tokens + self._reserved
            if used and used + task.kv_tokens > self.kv_capacity * _ADMISSION_SHARE:
                return
            self._queue.popleft()
            self._reserved += task.kv_tokens
            if task.on_received is None:
                self._to_compute.append(task)
                if len(self._to_compute) == 1:
                    self._start_computing()
            else:
                self._fetching += 1
                seconds = self._link.transfer(task.prompt_tokens)
                self._events.schedule(self._events.now + seconds, partial(self._receive, task))

    def _start_computing(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        tokens = round(self._to_compute[0].kv_tokens)
        seconds = self._prefill.run(0, tokens) * self._slowness
        self.computed_tokens += tokens
        self._events.schedule(self._events.now + seconds, self._finish_computing)

    def _finish_computing(self) -> None:
        self._advance()
        self._join(self._to_compute.popleft())
        if self._to_compute:
            self._start_computing()
        self._proceed()

    def _receive(self, task: DecodeTask) -> None:
        self._advance()
        self._fetching -= 1
        received, task.on_received = task.on_received, None
        self._join(task)
        self._proceed()
        if received is not None:
            received()

    def _join(self, task: DecodeTask) -> None:
        self._reserved -= task.kv_tokens
        if not self._fetching and not self._to_compute:
            # Sums of fractions would leave a rest.
            self._reserved = 0.0
        self._batch.join(task)

    def _reach(self, step: float) -> None:
        """Do what is due at a step: tokens that matter, or memory that is full."""
        self._next = None
        self.busy_s += self._events.now - self._updated
        self._updated = self._events.now
        self._batch.advance_steps(max(0.0, step - self._batch.steps))
        reached = self._batch.take_reached()
        finished = [
            task
            for task in reached
            if self._batch.count_generated(task) >= task.output_tokens - _ROUNDING
        ]
        for task in finished:
            self._batch.leave(task)
        while self._batch and self._batch.kv_tokens + self._reserved > self.kv_capacity - _ROUNDING:
            self._preempt(self._batch.last())
        self._proceed()
        for task in reached:
            if not task.answering:
                task.answering = True
                task.on_first_token()
        for task in finished:
            task.on_finished()

    def _preempt(self, task: DecodeTask) -> None:
        self._batch.leave(task)
        task.preemptions += 1
        self.preemptions += 1
        self._queue.appendleft(task)
