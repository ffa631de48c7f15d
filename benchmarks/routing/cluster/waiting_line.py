"""The requests that wait in front of an engine."""

import heapq
from itertools import count
from typing import Generic, TypeVar

Task = TypeVar("Task")


class WaitingLine(Generic[Task]):
    """Requests that wait: those of the lowest priority value first, then first come, first served.

    That is vLLM's `--scheduling-policy priority`; with its default, `fcfs`, all are alike.
    """

    __slots__ = ("_arrivals", "_by_priority", "_heap")

    def __init__(self, *, by_priority: bool = False) -> None:
        """Start empty.

        Args:
            by_priority: whether the engine heeds priorities.
        """
        self._by_priority = by_priority
        self._heap: list[tuple[tuple[float, int], Task]] = []
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._heap)

    def join(self, task: Task, priority: float = 0.0) -> tuple[float, int]:
        """Let a request wait; return the place that it has, which it keeps for `rejoin`."""
        place = (priority if self._by_priority else 0.0, next(self._arrivals))
        heapq.heappush(self._heap, (place, task))
        return place

    def rejoin(self, task: Task, place: tuple[float, int]) -> None:
        """Let a request wait again, ahead of those that have come after it."""
        heapq.heappush(self._heap, (place, task))

    def first(self) -> Task:
        """Return the request whose turn is next."""
        return self._heap[0][1]

    def take_first(self) -> Task:
        """Remove the request whose turn is next, and return it."""
        return heapq.heappop(self._heap)[1]
