"""What was taken within the last window of time, by the parts of it in which it was."""

from collections import OrderedDict, deque
from collections.abc import Callable

from pdrouter.users.counters import SLOTS

MOST_WINDOWS = 100_000
"""Limits that are counted at a time: whoever names users freely could make any number of them."""


class WindowCounts:
    """Counts in windows that slide, each by a name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start with nothing counted.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._windows: OrderedDict[tuple[str, float], _Window] = OrderedDict()

    def add(self, name: str, length_s: float, amount: int) -> None:
        """Count what is taken now."""
        self._find(name, length_s).add(amount, self._clock())

    def subtract(self, name: str, length_s: float, amount: int, taken_at: float) -> None:
        """Count less of what was taken at a time; of what is over there is nothing to do."""
        self._find(name, length_s).subtract(amount, taken_at, self._clock())

    def count(self, name: str, length_s: float) -> int:
        """Return how much counts now."""
        window = self._windows.get((name, length_s))
        if window is None:
            return 0
        window.forget(self._clock())
        return window.used

    def find_wait(self, name: str, length_s: float, lacking: int) -> float:
        """Return the seconds until so much of what counts now is over; a window if it is less."""
        window = self._windows.get((name, length_s))
        return length_s if window is None else window.find_wait(lacking, self._clock())

    def find_reset(self, name: str, length_s: float) -> float:
        """Return the seconds until nothing counts any more."""
        window = self._windows.get((name, length_s))
        return 0.0 if window is None else window.find_reset(self._clock())

    def _find(self, name: str, length_s: float) -> "_Window":
        key = name, length_s
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(length_s)
            if len(self._windows) > MOST_WINDOWS:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(key)
        window.forget(self._clock())
        return window


class _Window:
    """What was taken within the last window of time.

    Attributes:
        length_s: seconds of the window.
        used: how much was taken.
    """

    __slots__ = ("_slot_s", "_slots", "length_s", "used")

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self.used = 0
        self._slot_s = length_s / SLOTS
        self._slots: deque[list[int]] = deque()

    def forget(self, now: float) -> None:
        """Forget the slots that have ended a window ago."""
        oldest = int(now / self._slot_s) - SLOTS
        while self._slots and self._slots[0][0] < oldest:
            self.used -= self._slots.popleft()[1]

    def add(self, amount: int, now: float) -> None:
        """Count what is taken now."""
        slot = int(now / self._slot_s)
        # What another worker tells may be a moment older than what was counted last.
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append([slot, 0])
        self._slots[-1][1] += amount
        self.used += amount

    def subtract(self, amount: int, at: float, now: float) -> None:
        """Count less of what was taken at a time; of what is forgotten there is nothing to do."""
        self.forget(now)
        slot = int(at / self._slot_s)
        for each in self._slots:
            if each[0] == slot:
                less = min(amount, each[1])
                each[1] -= less
                self.used -= less
                return

    def find_wait(self, lacking: int, now: float) -> float:
        """Return the seconds until so much is forgotten; a window if there is less."""
        for slot, count in self._slots:
            lacking -= count
            if lacking <= 0:
                return self._find_end(slot, now)
        return self.length_s

    def find_reset(self, now: float) -> float:
        """Return the seconds until all is free."""
        return self._find_end(self._slots[-1][0], now) if self.used else 0.0

    def _find_end(self, slot: int, now: float) -> float:
        """Return the seconds until a slot is forgotten."""
        return max(0.0, (slot + 1 + SLOTS) * self._slot_s - now)
