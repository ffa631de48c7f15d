"""Durations and sizes as Kubernetes objects write them."""

import re

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]i?)?")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


class Seconds(float):
    """A duration (`600s`, `1m30s`) in seconds."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> "Seconds":
        """Read a duration.

        Raises:
            ValueError: it is none.
        """
        text = str(value)
        if text == "0":
            return cls(0)
        if not _DURATION.fullmatch(text):
            raise ValueError(f"{text!r} is no duration such as 600s")
        return cls(
            sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))
        )

    def __str__(self) -> str:
        return f"{float(self):g}s"


class Size(int):
    """A quantity (`16Mi`, `16777216`) in bytes."""

    @classmethod
    def parse(cls, value: object) -> "Size":
        """Read a quantity.

        Raises:
            ValueError: it is none.
        """
        match = _SIZE.fullmatch(str(value))
        if match is None:
            raise ValueError(f"{value!r} is no size such as 16Mi")
        number, unit = match.groups()
        if not unit:
            return cls(float(number))
        base = 1024 if unit.endswith("i") else 1000
        return cls(float(number) * base ** _POWERS[unit[0].lower()])

    def __str__(self) -> str:
        for unit, size in (("Mi", 1024**2), ("Ki", 1024)):
            if self >= size and self % size == 0:
                return f"{int(self) // size}{unit}"
        return f"{int(self)} bytes"


def decode_quantity(kind: type, value: object) -> object:
    """Read what `msgspec` cannot read by itself.

    Raises:
        ValueError: the value is not allowed.
        NotImplementedError: the type is another one, as `msgspec` asks to be told.
    """
    if kind is Seconds:
        return Seconds.parse(value)
    if kind is Size:
        return Size.parse(value)
    raise NotImplementedError(kind)
