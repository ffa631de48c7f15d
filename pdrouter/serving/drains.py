"""Side legs whose request has ended before they have: their answers are read to the end."""

import asyncio
from types import TracebackType
from typing import Any

_PATIENCE_S = 1.0
"""Seconds in which an answer ends whose blocks the other engine has: the request was served."""
_MOST = 1024
"""Answers that are read at once; further ones are cut."""


class Drains:
    """Owns what runs beside a request until it ends, or its time is over. One for the process.

    An engine takes the end of a connection for the wish to stop, and may stop in the middle of a
    transfer. Use as an async context manager: at its end, what is left is cut.
    """

    def __init__(self, patience_s: float = _PATIENCE_S, most: int = _MOST) -> None:
        """Begin with nothing.

        Args:
            patience_s: seconds that each may take.
            most: how many there may be at once.
        """
        self._patience_s = patience_s
        self._most = most
        self._tasks: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}

    async def __aenter__(self) -> "Drains":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def outstanding(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def take(self, task: asyncio.Task[Any]) -> None:
        """Own a task from now on; cancel it at once if there are too many."""
        if len(self._tasks) >= self._most:
            task.cancel()
            return
        timer = asyncio.get_running_loop().call_later(self._patience_s, task.cancel)
        self._tasks[task] = timer
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task).cancel()
