"""Amounts as people write them: `1m30s`, `16Mi`."""

import re

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_TIMES_S = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(rf"({_NUMBER})\s*({'|'.join(sorted(_TIMES_S, key=len, reverse=True))})\s*")
_TIMES = re.compile(rf"(?:{_TIME.pattern})+")
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgt]i?)b?", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_time(text: str, unit_s: float) -> float:
    """Return a time in a unit: a bare number of it, or amounts with units, such as `1m30s`.

    Args:
        text: what was written.
        unit_s: seconds that a bare number's unit has.

    Raises:
        ValueError: it is no time.
    """
    text = text.lower()
    if not _TIMES.fullmatch(text):
        return float(text)
    return sum(float(amount) * _TIMES_S[unit] for amount, unit in _TIME.findall(text)) / unit_s


def parse_size(text: str) -> int:
    """Return a number of bytes: a bare one, or one with a unit of Kubernetes, such as `16Mi`.

    Case, and a `B` at the end, make no difference. Except for a bare `m`, which means a thousandth
    there: it is no size.

    Raises:
        ValueError: it is no whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] == "m":
        return int(text)
    base = 1024 if len(match[2]) == 2 else 1000
    size = float(match[1]) * base ** _POWERS[match[2][0].lower()]
    if not size.is_integer():
        raise ValueError(text)
    return int(size)
