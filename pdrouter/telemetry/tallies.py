"""Counters and histograms for what is counted several times per request.

Prometheus' own take a lock, and five times as long; to take many values at once costs each a third.
One thread counts while another shows what was counted: a page that is read meanwhile may have a sum
without its last values.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


Counts: TypeAlias = defaultdict[tuple[str, ...], int]
"""How often something was, by the values of labels. To add to a `Counter` takes twice as long."""


def create_counts() -> Counts:
    """Return counts of nothing."""
    return defaultdict(int)


class _Family(NamedTuple):
    """What a counter is called, and its labels: the last of them are always the same."""

    name: str
    text: str
    labels: tuple[str, ...]
    constants: tuple[str, ...]


class Tally(Collector):
    """A counter.

    Attributes:
        counts: what was counted, by the values of the labels.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        constants: Mapping[str, str] = _NO_LABELS,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            name: the metric's name.
            text: what it counts.
            labels: names of its labels.
            constants: further labels, whose values never change.
            registry: where it is shown; None if somebody else shows it.
        """
        self._family = _Family(name, text, (*labels, *constants), tuple(constants.values()))
        self.counts = create_counts()
        if registry is not None:
            registry.register(self)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series that have these labels.

        Raises:
            ValueError: it does not have labels of these names.
        """
        for values in _find_series(self._family.labels, labels, list(self.counts)):
            self.counts.pop(values, None)

    def count(self, *labels: str, number: int = 1) -> None:
        """Count so many more for these values of the labels."""
        self.counts[labels] += number

    def collect(self) -> Iterable[Metric]:
        """Yield the counts as they stand now."""
        yield _show(self._family, self.counts.copy())


class Derived(Collector):
    """A counter that shows what another has counted, under labels of its own."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        counted: Tally,
        relabel: Callable[..., tuple[str, ...] | None],
        *,
        constants: Mapping[str, str] = _NO_LABELS,
        registry: CollectorRegistry | None = None,
    ) -> None:
        """Show what is counted.

        Args:
            name: the metric's name.
            text: what it counts.
            labels: names of its labels.
            counted: the counter that counts it.
            relabel: gives the values of the labels by those of that counter; None for what is not
                counted here.
            constants: further labels, whose values never change.
            registry: where it is shown; None if somebody else shows it.
        """
        self._family = _Family(name, text, (*labels, *constants), tuple(constants.values()))
        self._counted = counted
        self._relabel = relabel
        if registry is not None:
            registry.register(self)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget what is counted under these labels of the other counter.

        Raises:
            ValueError: it does not have labels of these names.
        """
        self._counted.remove_by_labels(labels)

    def collect(self) -> Iterable[Metric]:
        """Yield the counts as they stand now."""
        counts = create_counts()
        for counted, number in self._counted.counts.copy().items():
            labels = self._relabel(*counted)
            if labels is not None:
                counts[labels] += number
        yield _show(self._family, counts)


class HistogramTally(Collector):
    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        labels: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
    ) -> None:
        """Begin with nothing; without labels, it is shown from the beginning.

        Args:
            name: the metric's name.
            text: what it measures.
            bounds: upper bounds of the buckets, ascending, without infinity.
            labels: names of its labels.
            registry: where it is shown.
        """
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self._bounds = tuple(bounds)
        self._upper = (*map(floatToGoString, bounds), "+Inf")
        # For each series, how many values each bucket has, and last the sum of all of them.
        self._series: dict[tuple[str, ...], list[float]] = {}
        if not labels:
            self._create_series(())
        registry.register(self)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series that have these labels.

        Raises:
            ValueError: it does not have labels of these names.
        """
        for values in _find_series(self._labels, labels, list(self._series)):
            self._series.pop(values, None)

    def observe(self, value: float, *labels: str) -> None:
        """Take a value into the series with these values of the labels."""
        series = self._series.get(labels) or self._create_series(labels)
        series[bisect_left(self._bounds, value)] += 1
        series[-1] += value

    def observe_all(self, values: Sequence[float], *labels: str) -> None:
        """Take values into the series with these values of the labels."""
        if not values:
            return
        series = self._series.get(labels) or self._create_series(labels)
        bounds = self._bounds
        for value in values:
            series[bisect_left(bounds, value)] += 1
        series[-1] += sum(values)

    def collect(self) -> Iterable[Metric]:
        """Yield the histogram as it stands now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.copy().items():
            *counts, total = series.copy()
            buckets = list(zip(self._upper, accumulate(counts), strict=True))
            family.add_metric(labels, buckets, total)
        yield family

    def _create_series(self, labels: tuple[str, ...]) -> list[float]:
        # Whole numbers are counted faster.
        series = self._series[labels] = [*[0] * len(self._upper), 0.0]
        return series


def _show(family: _Family, counts: Mapping[tuple[str, ...], float]) -> Metric:
    shown = CounterMetricFamily(family.name, family.text, None, family.labels)
    for labels, count in counts.items():
        shown.add_metric((*labels, *family.constants), count)
    return shown


def _find_series(
    names: Sequence[str], wanted: Mapping[str, str], series: Iterable[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Return the series, as the values of their labels, that have the wanted ones.

    Raises:
        ValueError: there are no labels of these names.
    """
    places = [(names.index(name), value) for name, value in wanted.items()]
    return [values for values in series if all(values[place] == value for place, value in places)]
