"""The header `retry-after` of an engine's answer."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MOST_DIGITS = 9


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which to ask again; None if the answer does not say.

    It is a number of seconds, or a date.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # No date, or one without a time zone.
        return None
