"""What the steps of a request take."""

import time
from types import TracebackType

import msgspec


class StepTimes(msgspec.Struct):
    """The times of one request's steps.

    Attributes:
        seconds: time by the name of the step; that of a step that is done again is added up.
        waited_s: time in steps that wait for somebody else: an engine, a thread, an API. It is none
            of the router's own.
        intervals: name, begin and end of each step that has ended, on the clock of performance
            counters; None where nobody wants to know.
    """

    seconds: dict[str, float] = {}
    waited_s: float = 0.0
    intervals: list[tuple[str, float, float]] | None = None

    def describe(self) -> dict[str, float]:
        """Return the milliseconds of each step; a thread may ask while there are more and more."""
        steps = self.seconds.copy().items()
        return {name: round(seconds * 1000, 3) for name, seconds in steps}

    def end(self, name: str, began: float, *, waits: bool = False) -> None:
        """Add up a step that ends now.

        Args:
            name: its name.
            began: when it began, on the clock of performance counters.
            waits: whether it waits for somebody else.
        """
        now, seconds = time.perf_counter(), self.seconds
        spent = now - began
        seconds[name] = seconds.get(name, 0.0) + spent
        if waits:
            self.waited_s += spent
        if self.intervals is not None:
            self.intervals.append((name, began, now))

    def add(self, name: str, seconds: float) -> None:
        """Add to a step what went on beside the others, and has kept none of them waiting."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Step(msgspec.Struct):
    """One step, timed as a context manager, however it is left.

    That costs more than twice as much as to call `end` at last: those of each request do that.

    Attributes:
        times: where it is added up.
        name: its name.
        waits: whether it waits for somebody else.
        start: when it began.
    """

    times: StepTimes
    name: str
    waits: bool = False
    start: float = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Add up what it took."""
        self.times.end(self.name, self.start, waits=self.waits)
