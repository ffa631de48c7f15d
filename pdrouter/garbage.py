"""When objects are searched for garbage: while few requests are open."""

import asyncio
import gc
import time
from collections.abc import Callable

INTERVAL_S = 60.0
PATIENCE_S = 600.0
FEW_REQUESTS = 100
GROWN_BYTES = 256 * 2**20
"""By how much the process may grow before it is searched however many requests are open."""
_LOOK_S = 1.0


class FullCollections:
    """Searches all objects for garbage now and then, in place of Python's own searches.

    These come when objects have become more by so many: with thousands of requests open, all that
    are new are those of requests, in a burst a hundred thousand at once, and it takes 50 ms to find
    that they are in use.

    Requests leave none: objects that refer to each other in a circle, which nothing else frees.
    Nor do scrapes and changes of pods. What does, such as exceptions in libraries, can wait; should
    it not be little, the process grows.
    """

    def __init__(
        self,
        count_open: Callable[[], int],
        measure: Callable[[], int],
        collect: Callable[[], object] = gc.collect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; the first search is due after an interval.

        Args:
            count_open: counts the requests that are open.
            measure: gives the size of the process in bytes.
            collect: searches.
            clock: gives the time in seconds.
        """
        self._count_open = count_open
        self._measure = measure
        self._collect = collect
        self._clock = clock
        self._last = clock()
        self._size = measure()

    async def run(self) -> None:
        """Search, again and again, until cancelled; nothing else does meanwhile."""
        gc.disable()
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                self.look()
        finally:
            gc.enable()

    def look(self) -> None:
        """Search if it is time: few requests are open, or it cannot be put off any longer."""
        since = self._clock() - self._last
        if (
            (since >= INTERVAL_S and self._count_open() <= FEW_REQUESTS)
            or since >= PATIENCE_S
            or self._measure() >= self._size + GROWN_BYTES
        ):
            self._collect()
            self._last = self._clock()
            self._size = self._measure()
