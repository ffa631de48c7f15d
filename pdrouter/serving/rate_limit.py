"""How many requests of a model may pass per second."""

import time
from collections.abc import Callable

_MAX_MODELS = 1024


class RateLimiter:
    """Admits requests at an even rate, with bursts of up to what a second allows.

    For each model and limit it keeps one number: when, at the limit's pace, all that was admitted
    would have passed. A request passes as long as that is less than a second ahead.
    """

    __slots__ = ("_clock", "_paid_until")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing admitted.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._paid_until: dict[tuple[str, int], float] = {}

    def admit(self, model: str, per_second: int) -> float:
        """Count a request if it may pass.

        Args:
            model: name of the model, with its namespace.
            per_second: the limit, at least 1.

        Returns:
            0 if it may; otherwise the seconds after which one may.
        """
        now = self._clock()
        key = model, per_second
        pace = 1 / per_second
        paid = max(now, self._paid_until.get(key, now)) + pace
        # Rounding must not cost the last request of a burst.
        excess = paid - now - 1.0
        if excess > 1e-6:
            return excess
        if key not in self._paid_until and len(self._paid_until) >= _MAX_MODELS:
            self._drop_idle(now)
        self._paid_until[key] = paid
        return 0.0

    def give_back(self, model: str, per_second: int) -> None:
        """Take back an admitted request that was not served."""
        key = model, per_second
        if key in self._paid_until:
            self._paid_until[key] -= 1 / per_second

    def _drop_idle(self, now: float) -> None:
        self._paid_until = {key: paid for key, paid in self._paid_until.items() if paid > now}
