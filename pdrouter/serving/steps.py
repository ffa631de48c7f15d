"""What the steps of a request take."""

import time
from types import TracebackType


class StepTimes:
    """Times the steps of one request.

    Attributes:
        seconds: time by the name of the step; that of a step that is done again is added up.
        waited_s: time in steps that wait for somebody else: an engine, a thread, an API. It is none
            of the router's own.
    """

    __slots__ = ("seconds", "waited_s")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waited_s = 0.0

    def describe(self) -> dict[str, float]:
        """Return the milliseconds of each step."""
        return {name: round(seconds * 1000, 3) for name, seconds in self.seconds.items()}

    def time(self, name: str, *, waits: bool = False) -> "Step":
        """Return what times a step, as a context manager."""
        return Step(self, name, waits)


class Step:
    """One step, timed from its making to the exit, however it is left."""

    __slots__ = ("_name", "_start", "_times", "_waits")

    def __init__(self, times: StepTimes, name: str, waits: bool) -> None:
        self._times = times
        self._name = name
        self._waits = waits
        self._start = time.perf_counter()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Add up what it took."""
        spent = time.perf_counter() - self._start
        seconds = self._times.seconds
        seconds[self._name] = seconds.get(self._name, 0.0) + spent
        if self._waits:
            self._times.waited_s += spent
