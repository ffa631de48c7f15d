"""Counters and histograms for what is counted several times per request.

Prometheus' own take a lock, and five times as long. One thread counts while another shows what was
counted: a page that is read meanwhile may have a sum without its last value.
"""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


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
        self._name = name
        self._text = text
        self._labels = (*labels, *constants)
        self._constants = tuple(constants.values())
        self.counts: Counts[tuple[str, ...]] = Counts()
        if registry is not None:
            registry.register(self)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series that have these labels.

        Raises:
            ValueError: it does not have labels of these names.
        """
        for values in _find_series(self._labels, labels, list(self.counts)):
            self.counts.pop(values, None)

    def count(self, *labels: str, number: int = 1) -> None:
        """Count so many more for these values of the labels."""
        self.counts[labels] += number

    def collect(self) -> Iterable[Metric]:
        """Yield the counts as they stand now."""
        family = CounterMetricFamily(self._name, self._text, None, self._labels)
        for labels, count in self.counts.copy().items():
            family.add_metric((*labels, *self._constants), count)
        yield family


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

    def collect(self) -> Iterable[Metric]:
        """Yield the histogram as it stands now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.copy().items():
            *counts, total = series.copy()
            buckets = list(zip(self._upper, accumulate(counts), strict=True))
            family.add_metric(labels, buckets, total)
        yield family

    def _create_series(self, labels: tuple[str, ...]) -> list[float]:
        series = self._series[labels] = [0.0] * (len(self._upper) + 1)
        return series


def _find_series(
    names: Sequence[str], wanted: Mapping[str, str], series: Iterable[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Return the series, as the values of their labels, that have the wanted ones.

    Raises:
        ValueError: there are no labels of these names.
    """
    places = [(names.index(name), value) for name, value in wanted.items()]
    return [values for values in series if all(values[place] == value for place, value in places)]
