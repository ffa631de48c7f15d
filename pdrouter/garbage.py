"""When objects are searched for garbage: the new ones while few requests are open, all rarely."""

import asyncio
import gc
import time
from collections.abc import Callable

INTERVAL_S = 60.0
PATIENCE_S = 600.0
FEW_REQUESTS = 100
INTERVAL_OF_ALL_S = 3600.0
"""After how long all objects are searched, once few requests are open."""
GROWN_BYTES = 256 * 2**20
"""By how much the process may grow before all are searched, however many requests are open."""
_LOOK_S = 1.0


def search_new() -> None:
    """Search the objects that no search has found in use yet."""
    gc.collect()
    gc.freeze()


def search_all() -> None:
    """Search all objects, also those that were in use at the last search."""
    gc.unfreeze()
    search_new()


class GarbageSearches:
    """Searches objects for garbage now and then, in place of Python's own searches.

    These come when objects have become more by so many: with thousands of requests open, all that
    are new are those of requests, in a burst a hundred thousand at once, and it takes 50 ms to find
    that they are in use. To find it of what is always there, as of thousands of idle connections or
    of pods, takes as long; so what was in use once is let alone for long.

    Requests leave none: objects that refer to each other in a circle, which nothing else frees.
    Nor do scrapes and changes of pods. What does, such as exceptions in libraries, can wait; should
    it not be little, the process grows.
    """

    def __init__(
        self,
        count_open: Callable[[], int],
        measure: Callable[[], int],
        search_new: Callable[[], object] = search_new,
        search_all: Callable[[], object] = search_all,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; the first search is due after an interval.

        Args:
            count_open: counts the requests that are open.
            measure: gives the size of the process in bytes.
            search_new: searches what is new.
            search_all: searches everything.
            clock: gives the time in seconds.
        """
        self._count_open = count_open
        self._measure = measure
        self._search_new = search_new
        self._search_all = search_all
        self._clock = clock
        self._last = self._last_of_all = clock()
        self._size = measure()

    async def run(self) -> None:
        """Search, again and again, until cancelled; nothing else does meanwhile."""
        gc.disable()
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                self.look()
        finally:
            gc.unfreeze()
            gc.enable()

    def look(self) -> None:
        """Search if it is time: few requests are open, or it cannot be put off any longer."""
        now, few = self._clock(), self._count_open() <= FEW_REQUESTS
        since, since_all = now - self._last, now - self._last_of_all
        grown = self._measure() >= self._size + GROWN_BYTES
        if grown or (few and since_all >= INTERVAL_OF_ALL_S):
            self._search_all()
            self._last = self._last_of_all = self._clock()
            self._size = self._measure()
        elif since >= PATIENCE_S or (few and since >= INTERVAL_S):
            self._search_new()
            self._last = self._clock()
