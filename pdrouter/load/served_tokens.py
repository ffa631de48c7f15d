"""How many tokens each user was served of late, beside all others."""

import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

SLOTS = 60
"""Parts of the window. What was served counts until the part in which it was is a window old."""
MOST_USERS = 4096
"""Users who are counted: the one who was served nothing for longest is forgotten."""


class Shares(NamedTuple):
    """What a user was served, beside the others.

    Attributes:
        own: weighted tokens of the user.
        least: those of the user with the fewest, but more than none; None if nobody has any.
        most: those of the user with the most; None as above.
    """

    own: float
    least: float | None
    most: float | None


class _Total(NamedTuple):
    tokens: float
    part: int


class ServedTokens:
    """Weighted tokens of users within a sliding window. Those who are gone count no more."""

    __slots__ = ("_clock", "_most", "_part_s", "_parts", "_ranked", "_totals")

    def __init__(
        self,
        window_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST_USERS,
    ) -> None:
        """Start with nobody.

        Args:
            window_s: how far back it looks, in seconds.
            clock: gives the time in seconds.
            most: how many users are counted.
        """
        self._part_s = window_s / SLOTS
        self._clock = clock
        self._most = most
        self._parts: deque[tuple[int, dict[str, float]]] = deque()
        # Each with the last part in which the user was served something; that one is the last.
        self._totals: dict[str, _Total] = {}
        # The tokens that are more than none, in order: each choice asks for the ends.
        self._ranked: list[float] = []

    def __len__(self) -> int:
        return len(self._totals)

    def count(self, user: str, tokens: float) -> None:
        """Count what is served to a user; less than nothing takes back what was too much."""
        part = self._move_on()
        if not self._parts or self._parts[-1][0] != part:
            self._parts.append((part, {}))
        served = self._parts[-1][1]
        served[user] = served.get(user, 0.0) + tokens
        self._put(user, self._take(user) + tokens, part)
        if len(self._totals) > self._most:
            self._take(next(iter(self._totals)))

    def look(self, user: str) -> Shares:
        """Return what a user was served, beside the others."""
        self._move_on()
        total, ranked = self._totals.get(user), self._ranked
        own = 0.0 if total is None else max(0.0, total.tokens)
        return Shares(own, ranked[0], ranked[-1]) if ranked else Shares(own, None, None)

    def _move_on(self) -> int:
        """Let go what is too old; return the part of time that it is now."""
        now = int(self._clock() / self._part_s)
        while self._parts and self._parts[0][0] <= now - SLOTS:
            part, served = self._parts.popleft()
            for user, tokens in served.items():
                total = self._totals.get(user)
                if total is None:
                    continue
                if total.part <= part:
                    self._take(user)
                else:
                    self._rank(total.tokens, total.tokens - tokens)
                    self._totals[user] = _Total(total.tokens - tokens, total.part)
        return now

    def _take(self, user: str) -> float:
        """Forget a user; return what it was served."""
        total = self._totals.pop(user, None)
        if total is None:
            return 0.0
        self._rank(total.tokens, 0.0)
        return total.tokens

    def _put(self, user: str, tokens: float, part: int) -> None:
        self._rank(0.0, tokens)
        self._totals[user] = _Total(tokens, part)

    def _rank(self, before: float, after: float) -> None:
        if before > 0:
            del self._ranked[bisect_left(self._ranked, before)]
        if after > 0:
            insort(self._ranked, after)
