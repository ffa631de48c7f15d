"""Metrics of the turns that users take."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.telemetry.leg_metrics import SECONDS
from pdrouter.telemetry.tallies import HistogramTally, Tally

Waiting = Callable[[], Iterable[tuple[str, str, int, int]]]
"""Gives of each line its model, its class, and the requests and users that wait in it."""


class TurnMetrics(Collector):
    """Who waits, read when asked for; and who has waited.

    Users are told by their number alone: clients cannot add series.

    Attributes:
        waiting: tells who waits now.
        seconds: how long requests have waited that had to.
        refusals: requests that have not had their turn.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waiting: Waiting = tuple
        names = ("model", "class")
        self.seconds = HistogramTally(
            "pdrouter_fair_queue_seconds",
            "Time that requests have waited for their turn; those that had not to are not counted.",
            SECONDS,
            names,
            registry=registry,
        )
        self.refusals = Tally(
            "pdrouter_fair_queue_refusals",
            "Requests that were refused while they waited for their turn: full, timeout, deadline.",
            (*names, "reason"),
            registry=registry,
        )
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges as they stand now."""
        requests: Counts[tuple[str, str]] = Counts()
        users: Counts[tuple[str, str]] = Counts()
        for model, line, number, distinct in self.waiting():
            # Models of one name, of several namespaces, are told together.
            requests[model, line] += number
            users[model, line] += distinct
        yield _gauge("pdrouter_fair_queue_requests", "Requests that wait for their turn.", requests)
        yield _gauge("pdrouter_fair_queue_users", "Users whose requests wait.", users)


def _gauge(name: str, text: str, counts: Counts[tuple[str, str]]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, None, ("model", "class"))
    for labels, count in counts.items():
        gauge.add_metric(labels, count)
    return gauge
