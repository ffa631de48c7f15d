"""A prefill engine: a line of prompts, computed in order, with a cache of prefixes."""

from collections import deque
from collections.abc import Callable

from benchmarks.routing.cluster.block_cache import Allocation, BlockCache
from benchmarks.routing.cluster.events import EventQueue
from benchmarks.routing.cluster.speeds import PrefillSpeed
from benchmarks.routing.cluster.waiting_line import WaitingLine
from benchmarks.routing.cluster.workload import BLOCK_TOKENS
from pdrouter.openai.prompt_prefix import PromptPrefix


class PrefillTask:
    """One prompt on a prefill engine.

    Attributes:
        prompt: the prompt.
        priority: its priority: those of lower values go first, where the engine heeds it.
        done: tokens that are computed or were cached.
        cached: tokens that were cached when its turn came.
    """

    __slots__ = ("allocation", "cached", "done", "on_computed", "priority", "prompt", "seconds")

    def __init__(
        self,
        prompt: PromptPrefix,
        on_computed: Callable[["PrefillTask"], None],
        priority: float = 0.0,
    ) -> None:
        self.prompt = prompt
        self.priority = priority
        self.on_computed = on_computed
        self.allocation: Allocation | None = None
        self.cached = 0
        self.done = 0
        self.seconds = 0.0


class PrefillEngine:
    """Computes prompts in the order of the line, and each to its end once it has begun.

    What is cached shows when a prompt's turn comes, as in an engine: a prompt that waits behind
    another with the same beginning finds it computed. Its blocks stay taken until they have been
    handed over; an engine whose memory is full of such blocks waits.

    Attributes:
        busy_s: seconds spent computing.
        cached_tokens: prompt tokens that were found in the cache.
        computed_tokens: prompt tokens that were computed.
    """

    def __init__(
        self,
        events: EventQueue,
        speed: PrefillSpeed,
        kv_tokens: int,
        slowness: float = 1.0,
        *,
        by_priority: bool = False,
    ) -> None:
        """Start idle.

        Args:
            events: the virtual time.
            speed: what computing costs.
            kv_tokens: size of the KV memory.
            slowness: how many times longer this pod takes than others.
            by_priority: whether prompts of lower priority values go first.
        """
        self._events = events
        self._speed = speed
        self._slowness = slowness
        self.cache = BlockCache(kv_tokens)
        self._line: WaitingLine[PrefillTask] = WaitingLine(by_priority=by_priority)
        # Prompts of which a part is computed; they go before the line.
        self._begun: deque[PrefillTask] = deque()
        self._running = 0
        self._step: list[tuple[PrefillTask, int]] = []
        self._finished = 0
        self._finished_s = 0.0
        self.busy_s = 0.0
        self.cached_tokens = 0
        self.computed_tokens = 0

    @property
    def running(self) -> int:
        """Prompts that have begun."""
        return self._running

    @property
    def waiting(self) -> int:
        """Prompts that have not begun."""
        return len(self._line)

    @property
    def mean_prefill_s(self) -> float | None:
        """Mean seconds of computing for a prompt so far."""
        return self._finished_s / self._finished if self._finished else None

    def submit(self, task: PrefillTask) -> None:
        """Take a prompt."""
        self._line.join(task, task.priority)
        self._start_step()

    def release(self, task: PrefillTask) -> None:
        """Free a prompt's blocks: they have been handed over."""
        if task.allocation is None:
            raise ValueError("the prompt has not been computed")
        self.cache.release(task.allocation)
        self._start_step()

    def _start_step(self) -> None:
        if self._step:
            return
        speed = self._speed
        room = speed.tokens_per_step
        seconds = speed.seconds_per_step
        begun: list[PrefillTask] = []
        while room is None or room > 0:
            task = self._take_next()
            if task is None:
                break
            left = task.prompt.size - task.done
            tokens = speed.limit(left, room)
            cost = speed.compute(task.done, tokens)
            task.seconds += cost
            seconds += cost
            self._step.append((task, tokens))
            if tokens < left:
                begun.append(task)
            if room is None:
                break
            room -= tokens
        self._begun.extendleft(reversed(begun))
        if self._step:
            seconds *= self._slowness
            self.busy_s += seconds
            self._events.schedule(self._events.now + seconds, self._finish_step)

    def _take_next(self) -> PrefillTask | None:
        """Return the prompt whose turn it is; None if there is none, or no memory for it."""
        if self._begun:
            return self._begun.popleft()
        if self._line and self._admit(self._line.first()):
            return self._line.take_first()
        return None

    def _admit(self, task: PrefillTask) -> bool:
        task.allocation = self.cache.allocate(task.prompt)
        if task.allocation is None:
            return False
        task.cached = task.done = task.allocation.cached * BLOCK_TOKENS
        self.cached_tokens += task.cached
        self._running += 1
        return True

    def _finish_step(self) -> None:
        step, self._step = self._step, []
        for task, tokens in step:
            task.done += tokens
            self.computed_tokens += tokens
        finished = [task for task, _ in step if task.done == task.prompt.size]
        for task in finished:
            if task.allocation is not None:
                self.cache.store(task.allocation)
            self._running -= 1
            self._finished += 1
            self._finished_s += task.seconds * self._slowness
        self._start_step()
        for task in finished:
            task.on_computed(task)
