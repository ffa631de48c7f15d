"""The virtual time of a simulation, and what is to happen in it."""

import heapq
from collections.abc import Callable
from itertools import count


class Event:
    """Something that is to happen once, unless it is cancelled before."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Let it not happen."""
        self.action = None


class EventQueue:
    """Runs actions in the order of their times; at the same time, in the order of scheduling.

    Attributes:
        now: the virtual time in seconds.
    """

    __slots__ = ("_heap", "_order", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Event]] = []
        self._order = count()

    def clock(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def schedule(self, at: float, action: Callable[[], None]) -> Event:
        """Let something happen at a time; a time that has passed means now."""
        event = Event(action)
        heapq.heappush(self._heap, (max(at, self.now), next(self._order), event))
        return event

    def run(self) -> None:
        """Let everything happen, until nothing is left."""
        while self._heap:
            at, _, event = heapq.heappop(self._heap)
            action = event.action
            if action is not None:
                self.now = at
                action()
