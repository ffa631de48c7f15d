"""How long a KV handle may be sent: its blocks are kept for a time that only decode renews.

Time is counted from the answer, by the router's own clock: clocks of pods differ, and engines may
count from any moment. An expiry that the engine writes down counts from the `date` of its answer.
"""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

_USABLE = 0.9
"""The share of the time in which a handle is sent; in the rest it would come too late, since Envoy
connects and the engine admits the request before its blocks are asked for."""

_LONGEST_S = 86_400.0
"""An expiry that is further from the answer is none of the wall clock."""

_STANDSTILL_S = 0.1
_AFTERMATH_S = 1.0


class Leases:
    """Knows which handles are still good. One for the whole process.

    A process that was stopped finds answers that may have waited for as long. So whoever watches
    the event loop says how late it is.
    """

    __slots__ = ("_clock", "_lease_s", "_stood_from", "_stood_until")

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up.

        Args:
            lease_s: seconds for which engines keep blocks, where they do not say it.
            clock: gives the time in seconds.
        """
        self._lease_s = lease_s
        self._clock = clock
        self._stood_from = self._stood_until = -_AFTERMATH_S

    def note_lag(self, seconds: float) -> None:
        """Note that the event loop comes so late to what was due."""
        if seconds >= _STANDSTILL_S:
            self._stood_until = self._clock()
            self._stood_from = self._stood_until - seconds

    def is_late(self, seconds: float, date: str, expiry: float | None) -> bool:
        """Return whether a handle would come too late that stands in an answer that is read now.

        Args:
            seconds: how long ago it was asked for: an answer has not waited for longer.
            date: when it was written, by the clock of its pod, as its header says.
            expiry: when its blocks are freed, in seconds since 1970 by that clock; None if it does
                not say so.
        """
        now, waited_s, lease_s = self._clock(), 0.0, self._lease_s
        if now - self._stood_until < _AFTERMATH_S:
            waited_s = min(seconds, now - self._stood_from)
        if expiry is not None:
            said = _count_from(date, expiry)
            lease_s = lease_s if said is None else said
        return waited_s >= _USABLE * lease_s


def _count_from(date: str, expiry: float) -> float | None:
    """Return the seconds from an answer to an expiry; None if the two cannot be compared."""
    try:
        said = expiry - parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, said) if abs(said) <= _LONGEST_S else None
