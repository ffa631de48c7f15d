"""An event loop whose time passes only when nothing else is left to do: waits cost nothing."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs timers in their order, each at once when its turn comes. For work without sockets."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        waiting = cast("Any", self)
        if not waiting._ready:
            times = (timer.when() for timer in waiting._scheduled if not timer.cancelled())
            self._now = max(self._now, min(times, default=self._now))
        cast("Any", super())._run_once()


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run something to its end, and return what it gives."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
