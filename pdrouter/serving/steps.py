"""What the steps of a request take."""

import time
from collections.abc import Sequence
from types import TracebackType

import msgspec


class StepTimes:
    """Times the steps of one request.

    Attributes:
        seconds: time by the name of the step; that of a step that is done again is added up.
        waited_s: time in steps that wait for somebody else: an engine, a thread, an API. It is none
            of the router's own.
        intervals: name, begin and end of each step that has ended, on the clock of performance
            counters; none where nobody wants to know.
    """

    __slots__ = ("seconds", "waited_s")

    intervals: Sequence[tuple[str, float, float]] = ()

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waited_s = 0.0

    def describe(self) -> dict[str, float]:
        """Return the milliseconds of each step."""
        return {name: round(seconds * 1000, 3) for name, seconds in self.seconds.items()}

    def add(self, name: str, seconds: float) -> None:
        """Add to a step what went on beside the others, and has kept none of them waiting."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def time(self, name: str, *, waits: bool = False) -> "Step":
        """Return what times a step, as a context manager."""
        return Step(self, name, waits, time.perf_counter())


class Step(msgspec.Struct, frozen=True):
    """One step, timed from its making to the exit, however it is left.

    Attributes:
        times: where it is added up.
        name: its name.
        waits: whether it waits for somebody else.
        start: when it was made.
    """

    times: StepTimes
    name: str
    waits: bool
    start: float

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Add up what it took."""
        spent = time.perf_counter() - self.start
        seconds = self.times.seconds
        seconds[self.name] = seconds.get(self.name, 0.0) + spent
        if self.waits:
            self.times.waited_s += spent


class TracedSteps(StepTimes):
    """Notes of each step when it began and ended, too."""

    __slots__ = ("intervals",)

    def __init__(self) -> None:
        super().__init__()
        self.intervals: list[tuple[str, float, float]] = []

    def time(self, name: str, *, waits: bool = False) -> Step:
        """Return what times a step, as a context manager."""
        return _TracedStep(self, name, waits, time.perf_counter(), self.intervals)


class _TracedStep(Step, frozen=True):
    """One step of which it is noted when it was."""

    intervals: list[tuple[str, float, float]]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Add up what it took, and note when it was."""
        super().__exit__(kind, error, trace)
        self.intervals.append((self.name, self.start, time.perf_counter()))
