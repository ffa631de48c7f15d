"""Finds the series of a few families in a page of Prometheus' text format."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple, TypeAlias

# A value may hold braces, and quotes behind a backslash. Nothing is ever given back (`+` after a
# quantifier), so that the time for a broken line grows with its length only.
_VALUE = rb'"((?:[^"\\\n]++|\\.)*+)"'
_LARGEST = 1e15
MAX_SERIES = 2000
"""Series of interest that are read; an engine has a few for each of its ranks."""
_LABELS = rb'(?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+'
_LABEL = re.compile(rb"(?<![a-zA-Z0-9_])([a-zA-Z_][a-zA-Z0-9_]*+)=" + _VALUE)


Line: TypeAlias = tuple[bytes, bytes, bytes]
"""A line of a page as it stands there: name, what stands between the braces, value."""


class Series(NamedTuple):
    """One line of a page.

    Attributes:
        labels: what stands between the braces; empty without labels.
        value: the value: not negative, and no larger than anything that is counted.
    """

    labels: bytes
    value: float

    def read_labels(self) -> dict[str, str]:
        """Return the labels by name, with values as they stand in the page."""
        return {
            name.decode(): value.decode(errors="replace")
            for name, value in _LABEL.findall(self.labels)
        }


class Families:
    """Families of interest.

    An engine's page has a thousand lines, nearly all of them buckets of histograms. A regular
    expression passes over them at C speed, and only what it finds becomes Python objects.
    """

    def __init__(self, *names: str) -> None:
        """Name the families; of a histogram, its `_sum` and `_count` are families of their own."""
        alternatives = _write_alternatives(sorted(set(names))).encode()
        self._pattern = re.compile(
            rb"\n(%s)(?:\{(%s)\})?[ \t]++(\S++)" % (alternatives, _LABELS),
        )

    def find(self, page: bytes) -> Mapping[str, Sequence[Series]]:
        """Return the series of each family that is in the page.

        Lines that make no sense, and values that no count or share can have (NaN, infinite,
        negative, absurdly large), are left out.
        """
        return read_lines(self.scan(page))

    def scan(self, page: bytes) -> Sequence[Line]:
        """Return the lines of the families in a page."""
        return [*map(_read_groups, islice(self._pattern.finditer(b"\n" + page), MAX_SERIES))]


def read_lines(lines: Sequence[Line]) -> Mapping[str, Sequence[Series]]:
    """Return the series that lines are, by family; without those that make no sense."""
    found: defaultdict[str, list[Series]] = defaultdict(list)
    for name, labels, text in lines:
        value = _read_value(text)
        if value is not None:
            found[name.decode()].append(Series(labels, value))
    return dict(found)


def _write_alternatives(names: Sequence[str]) -> str:
    """Return a pattern for any of these sorted names: what they begin with alike stands once.

    It takes half as long to find that a line is none of them as with all names side by side.
    """
    first, last = names[0], names[-1]
    pairs = enumerate(zip(first, last, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(first), len(last)))
    if len(names) == 1:
        return re.escape(first)
    groups = groupby((name[shared:] for name in names), key=lambda rest: rest[:1])
    parts = [_write_alternatives(list(group)) for _, group in groups]
    # The longer one first: what ends here begins others.
    return f"{re.escape(first[:shared])}(?:{'|'.join(reversed(parts))})"


def _read_groups(line: re.Match[bytes]) -> Line:
    return line[1], line[2] or b"", line[3]


def _read_value(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= _LARGEST else None
