"""Numbers and truth values as engines read them: in the lax mode of pydantic."""

import re

import msgspec

from pdrouter.openai.body import Body

UNREADABLE = object()
"""Stands for a value that is too long to be a number or a truth value."""

_MAX_SIZE = 4310
"""Python, and so the engines, read no integers of more than 4,300 digits."""
_INTEGER_TEXT = re.compile(r"[+-]?\d+(?:_\d+)*(?:\.0+)?", re.ASCII)
_LEADING_ZEROS = re.compile(r"\A([+-]?)0[0_]*(?=\d)", re.ASCII)
"""To pydantic, underscores among them are of no account."""
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""White space as Unicode defines it; to Python, the separators of ASCII are space, too."""
_MAX_FLOAT = 2.0**63
_decode = msgspec.json.Decoder().decode
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})


def decode_scalar(raw: bytes) -> object:
    """Return a JSON value that may be a number, a truth value or a text that stands for one.

    Lists, objects and what is very long is not decoded, but `UNREADABLE`.
    """
    if len(raw) > _MAX_SIZE or raw[:1] in (b"[", b"{"):
        return UNREADABLE
    try:
        return _decode(raw)
    except msgspec.DecodeError:  # A number out of range, or half of a surrogate pair.
        return UNREADABLE


def read_scalar(body: Body, name: str, default: object = None) -> object:
    """Return a member's value as `decode_scalar` does, the default if it is absent or null."""
    raw = body.raw(name)
    if raw is None:
        return default
    value = decode_scalar(raw)
    return default if value is None else value


def as_integer(value: object) -> int | None:
    """Return the integer that a decoded JSON value stands for; None if engines refuse it."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _MAX_FLOAT else None
    if isinstance(value, str):
        text = _LEADING_ZEROS.sub(r"\1", value.strip(_SPACE))
        if _INTEGER_TEXT.fullmatch(text):
            return int(text.partition(".")[0])
    return None


def as_boolean(value: object) -> bool | None:
    """Return the truth value that a decoded JSON value stands for; None if engines refuse it."""
    if value is True or value is False:
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        text = value.lower()
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
    return None
