"""Metrics of what workers tell each other."""

from collections import Counter as Counts
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class JournalMetrics(Collector):
    """What has come up in a worker's journal, and in those that it reads."""

    def __init__(self, events: Counts[str]) -> None:
        self._events = events

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        events = CounterMetricFamily(
            "pdrouter_worker_changes",
            "What workers tell each other, by event: changes that were noted, taken over or failed;"
            " batches of them that were lost or unreadable.",
            None,
            ("event",),
        )
        for event, number in self._events.copy().items():
            events.add_metric((event,), number)
        yield events
