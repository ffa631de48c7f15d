"""What becomes ready at the same moment, spread over turns of the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

BUDGET_S = 0.0015
"""Seconds of work that are begun in one turn; what is begun is done to its next wait."""
_FIRST_LIMIT = 4
_HIGHEST_LIMIT = 16

T = TypeVar("T")


class Turns:
    """Begins work, in the order in which it came, and in each turn only what takes little time.

    An event loop runs all that is ready before it looks at sockets and timers again. Thousands of
    answers that come in the same moment would hold it for seconds: whatever else is due, a probe or
    a reply that is ready, would wait for the last of them. How much work a turn takes is learnt
    from those that are full, take too long or leave some over.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        """Begin without work.

        Args:
            clock: gives the seconds that this thread has computed. While it waits for a core, or
                for Python's lock, nothing is learnt of the work.
        """
        self._clock = clock
        # asyncio would ask the kernel for the process's number each time that it is asked for it.
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._ending: deque[Callable[[], object]] = deque()
        self._limit = _FIRST_LIMIT
        self._begun = 0
        self._since: float | None = None
        self._turning = False
        self._turned_at: float | None = None
        self._longest_s = 0.0
        self._together_s = 0.0

    def take_times(self) -> tuple[float, float]:
        """Return the seconds of the longest turn, and of all together, since the last call.

        They are those that this thread has computed from a turn's beginning to the next one's. Of a
        turn that nothing follows they are not known, nor of what comes before the first.
        """
        longest, together = self._longest_s, self._together_s
        self._longest_s = self._together_s = 0.0
        return longest, together

    def begin(self, work: Callable[..., object], *args: object) -> None:
        """Begin work now, or in a later turn if this one has enough."""
        if self._waiting or self._begun >= self._limit:
            self._waiting.append((work, args))
        else:
            self._begun += 1
            if self._begun == 2:  # What comes alone cannot be spread.
                self._since = self._clock()
            work(*args)
        if not self._turning:
            self._go_on()

    def put_off(self, work: Callable[..., object], *args: object) -> None:
        """Begin work in a later turn, after what waits already."""
        self._waiting.append((work, args))
        if not self._turning:
            self._go_on()

    def resolve(self, future: asyncio.Future[T], result: T) -> None:
        """Let who waits for a future go on with its result, now or in a later turn."""
        self.begin(_resolve, future, result)

    def end_with(self, work: Callable[[], object]) -> None:
        """Do something once all that this turn has begun has gone as far as it can."""
        self._ending.append(work)
        if not self._turning:
            self._go_on()

    def gather(self, begin: Callable[..., object], *args: object) -> None:
        """Call what may begin much: the turn ends when all of that has gone on."""
        if self._turning:
            begin(*args)
            return
        self._turning = True
        try:
            begin(*args)
        finally:
            self._go_on()

    def _go_on(self) -> None:
        if self._begun or self._waiting or self._ending:
            self._turning = True
            self._loop.call_soon(self._turn)
        else:
            self._turning = False
            self._turned_at = None

    def _turn(self) -> None:
        """End a turn, and begin what may be begun in the next."""
        waiting, ending = self._waiting, self._ending
        try:
            while ending:
                ending.popleft()()
            now = self._clock()
            if self._turned_at is not None:
                seconds = now - self._turned_at
                self._together_s += seconds
                self._longest_s = max(self._longest_s, seconds)
            self._turned_at = now
            since = self._since
            if since is not None:
                seconds = now - since
                if waiting or self._begun >= self._limit or seconds > BUDGET_S:
                    self._learn(seconds)
            self._since = now if waiting else None
            self._begun = min(self._limit, len(waiting))
            for _ in range(self._begun):
                work, args = waiting.popleft()
                work(*args)
        finally:
            self._go_on()

    def _learn(self, seconds: float) -> None:
        """Learn how much fits a turn from what this one has begun, and how long that took."""
        if self._begun:
            fitting = int(self._begun * BUDGET_S / max(seconds, 1e-9))
            # By one more at a time: cheap work and dear work come in turns, as the headers and the
            # bodies of requests do.
            self._limit = max(1, min(fitting, self._limit + 1, _HIGHEST_LIMIT))


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)
