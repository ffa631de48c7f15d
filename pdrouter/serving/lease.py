"""How long a KV handle may be sent: its blocks are kept for a time that only decode renews.

Time is counted from the answer, by the router's own clock: clocks of pods differ, and engines may
count from any moment. An expiry that the engine writes down counts from the `date` of its answer.
"""

from email.utils import parsedate_to_datetime

from pdrouter.serving.leg_outcome import LegAnswer

_USABLE = 0.9
"""The share of the time in which a handle is sent; in the rest it would come too late, since Envoy
connects and the engine admits the request before its blocks are asked for."""

_LONGEST_S = 86_400.0
"""An expiry that is further from the answer is none of the wall clock."""


def is_late(answer: LegAnswer, expiry: float | None, lease_s: float, now: float) -> bool:
    """Return whether a handle would come too late.

    Args:
        answer: the answer that it stands in.
        expiry: when its blocks are freed, in seconds since 1970 by the engine's clock; None if it
            does not say so.
        lease_s: seconds for which blocks are kept where it does not.
        now: the time, on the router's monotonic clock.
    """
    if answer.at is None:
        return False
    said = None if expiry is None else _count_from(answer.date, expiry)
    return now - answer.at > _USABLE * (lease_s if said is None else said)


def _count_from(date: str, expiry: float) -> float | None:
    """Return the seconds from an answer to an expiry; None if the two cannot be compared."""
    try:
        said = expiry - parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, said) if abs(said) <= _LONGEST_S else None
