"""Watches the event loop from inside: how late it comes to what is due."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

TICK_S = 0.02
"""Time between two looks at a loop that has work. What holds it for 5 ms longer is always seen as
such; what is shorter, only where a look falls due within it."""
IDLE_TICK_S = 0.08
"""At most, where it has none: looks are most of what wakes up a router that does nothing."""
_BUSY_SHARE = 0.1
"""Of a core, above which there is work."""


def _know_no_turns() -> tuple[float, float]:
    return 0.0, 0.0


class EventLoopWatch:
    """Sets a timer again and again, and notes how late it fires. Use as a context manager."""

    def __init__(
        self,
        observe_lag: Callable[[float], None],
        observe_stall: Callable[[float], None],
        take_times: Callable[[], tuple[float, float]] = _know_no_turns,
    ) -> None:
        """Set up the watch; it begins with the context.

        Args:
            observe_lag: gets the seconds by which a timer was late, whatever the cause.
            observe_stall: gets what of them the process was computing itself; the rest of the time
                the machine gave it no CPU.
            take_times: gives the seconds that the longest turn of the loop has computed since the
                last look, and all turns together that are known; see `Turns.take_times`.
        """
        self._observe_lag = observe_lag
        self._observe_stall = observe_stall
        self._take_times = take_times
        self._timer: asyncio.TimerHandle | None = None
        self._tick_s = TICK_S
        self._due = 0.0
        self._cpu = 0.0

    def __enter__(self) -> "EventLoopWatch":
        self._set_timer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        # The loop's own clock stands still while the loop is busy.
        self._due = time.monotonic() + self._tick_s
        self._cpu = time.process_time()
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._look)

    def _look(self) -> None:
        lag = max(0.0, time.monotonic() - self._due)
        self._observe_lag(lag)
        spent = time.process_time() - self._cpu
        longest, together = self._take_times()
        # A timer is late by one turn, not by all that was computed since it was set: by one that is
        # known, with all that is not in any.
        self._observe_stall(min(lag, spent, longest + max(0.0, spent - together)))
        busy = spent > _BUSY_SHARE * (self._tick_s + lag)
        self._tick_s = TICK_S if busy else min(2 * self._tick_s, IDLE_TICK_S)
        self._set_timer()
