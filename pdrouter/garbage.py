"""When all objects are searched for garbage: while few requests are open."""

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
_NEVER = 2**30
_YOUNG = 2_000
"""How many more objects there are when the new ones are searched, in less than a millisecond."""


def postpone_full_collections() -> None:
    """Keep Python from searching all objects for garbage by itself.

    It does so whenever there are a quarter more of them than before: with thousands of requests
    open, that is in the middle of a burst, and takes 0.3 s. New objects it still searches, once
    there are so many more that it is not merely the requests that are open, and once each: to
    search those of three such searches again takes 8 to 16 ms in a burst, and finds nothing.
    """
    gc.set_threshold(_YOUNG, _NEVER, _NEVER)


class FullCollections:
    """Searches all objects for garbage now and then.

    Requests leave none: objects that refer to each other in a circle, which nothing else frees.
    What does, such as exceptions in libraries and changes of pods, is little, and can wait; should
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
        """Search, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

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
