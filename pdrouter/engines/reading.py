"""What the metrics page of an engine says of its load; each engine's folder has its names.

An engine may give several series of one family. Those of data-parallel ranks, and of model names,
are about different requests and different memory: counts, rates and capacities are added up, shares
are averaged.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pdrouter.engines.exposition import Families, Line, Series, read_lines

Found = Mapping[str, Sequence[Series]]


Total = tuple[float, float]
"""A sum since the engine's start, of seconds or tokens, and how many requests it is of."""


@dataclass(frozen=True, slots=True)
class RequestTotals:
    """What requests have taken since the engine's start; None for what it does not say.

    Attributes:
        queue: seconds that they have waited.
        prefill: seconds of computing their prompts.
        decode: seconds of generating behind the first token.
        prompt: tokens of their prompts.
        output: tokens of their answers.
    """

    queue: Total | None = None
    prefill: Total | None = None
    decode: Total | None = None
    prompt: Total | None = None
    output: Total | None = None


@dataclass(frozen=True, slots=True)
class EngineReading:
    """Numbers from one page; None for those that it does not give.

    Attributes:
        running: requests that run.
        waiting: requests that wait.
        kv_usage: share of the KV memory in use, 0 to 1.
        kv_capacity_tokens: size of the KV memory, in tokens.
        generated_tokens: tokens generated since the engine's start.
        generated_tokens_per_s: tokens generated per second, where the engine says so itself.
        prefill_seconds: mean duration of a prefill since the engine's start.
        prefill_buckets: prompt lengths that it has been compiled for, ascending.
        padded_tokens: tokens computed since the engine's start that only fill up its buckets.
        gap_seconds: sum of the times between two tokens since the engine's start.
        gaps: how many there were.
        computes_prompts: whether an engine of static shapes is compiled for prompts; None for
            engines that need not be, or do not say.
        cpu_usage: share of the memory for blocks on the host in use, 0 to 1.
        utilization: how much of what it can do an engine does, 0 to 1, as it says itself.
        prompt_tokens: tokens of prompts computed since the engine's start.
        requests: what requests have taken; None if it says nothing of that.
    """

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    kv_capacity_tokens: int | None = None
    generated_tokens: float | None = None
    generated_tokens_per_s: float | None = None
    prefill_seconds: float | None = None
    prefill_buckets: tuple[int, ...] | None = None
    padded_tokens: float | None = None
    gap_seconds: float | None = None
    gaps: float | None = None
    computes_prompts: bool | None = None
    cpu_usage: float | None = None
    utilization: float | None = None
    prompt_tokens: float | None = None
    requests: RequestTotals | None = None


@dataclass(frozen=True, slots=True)
class MetricsDialect:
    """How an engine gives its metrics.

    Attributes:
        path: path of the page.
        families: the families that are read.
        interpret: makes numbers of them.
        rank_label: label that holds the number of a data-parallel rank; empty where none does.
    """

    path: str
    families: Families
    interpret: Callable[[Found], EngineReading]
    rank_label: str = ""

    def read(self, page: bytes, rank: int | None = None) -> EngineReading:
        """Return what a page says; nothing but None if it has none of the families.

        Args:
            page: the page.
            rank: data-parallel rank that it is read for; None for all of them together.
        """
        return self.read_lines(self.families.scan(page), rank)

    def read_lines(self, lines: Sequence[Line], rank: int | None = None) -> EngineReading:
        """Return what lines of its families say."""
        found = read_lines(lines)
        if rank is not None and self.rank_label:
            found = {
                name: _keep_rank(each, self.rank_label, str(rank)) for name, each in found.items()
            }
        return self.interpret(found)


class PageReader:
    """Reads the pages of one engine, again and again.

    Attributes:
        dialect: how it gives its metrics.
    """

    __slots__ = ("_lines", "_rank", "_reading", "dialect")

    def __init__(self, dialect: MetricsDialect, rank: int | None) -> None:
        """Begin without a page.

        Args:
            dialect: how the engine gives its metrics.
            rank: data-parallel rank that it is read for; None for all of them together.
        """
        self.dialect = dialect
        self._rank = rank
        self._lines: Sequence[Line] = ()
        self._reading: EngineReading | None = None

    def read(self, page: bytes) -> EngineReading:
        """Return what a page says; most of an idle engine's say what the last one did."""
        lines = self.dialect.families.scan(page)
        reading = self._reading
        if reading is None or lines != self._lines:
            reading = self._reading = self.dialect.read_lines(lines, self._rank)
            self._lines = lines
        return reading


def _keep_rank(series: Sequence[Series], label: str, rank: str) -> Sequence[Series]:
    """Return the series of one rank; all where none says whose it is."""
    known = [(each.read_labels().get(label), each) for each in series]
    if all(found is None for found, _ in known):
        return series
    return [each for found, each in known if found == rank]


_DIGITS = 12
"""Longest number that a label may hold."""


def add(found: Found, *names: str) -> float | None:
    """Return the sum over all series of these families; None if there are none."""
    values = [each.value for name in names for each in found.get(name, ())]
    return math.fsum(values) if values else None


def add_first(found: Found, *names: str) -> float | None:
    """Return the sum over all series of the first of these families that is there; or None."""
    return next((total for name in names if (total := add(found, name)) is not None), None)


def average(found: Found, *names: str) -> float | None:
    """Return the mean over the series of the first of these families that is there.

    It is a share: what is above 1 is none, and does not count.
    """
    for name in names:
        values = [each.value for each in found.get(name, ()) if each.value <= 1]
        if values:
            return math.fsum(values) / len(values)
    return None


def multiply(found: Found, name: str, *labels: str) -> int | None:
    """Return the product of these labels, added up over all series that have them; or None.

    A label may say `None`, before the engine has measured its memory.
    """
    total = 0
    for each in found.get(name, ()):
        texts = each.read_labels()
        numbers = [texts.get(label, "") for label in labels]
        if all(number.isdecimal() and len(number) <= _DIGITS for number in numbers):
            total += math.prod(map(int, numbers))
    return total or None


def read_total(found: Found, *names: str) -> Total | None:
    """Return the sum and the count of the first of these histograms that is there; or None."""
    for name in names:
        total, count = add(found, f"{name}_sum"), add(found, f"{name}_count")
        if total is not None and count is not None:
            return total, count
    return None


def take_off(whole: Total | None, part: Total | None) -> Total | None:
    """Return the total of what is left of each request without a part of it; None if unknown."""
    if whole is None or part is None:
        return None
    return max(0.0, whole[0] - part[0]), whole[1]
