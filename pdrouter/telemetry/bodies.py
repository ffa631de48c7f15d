"""Metrics of the request bodies that wait."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.serving.held_bodies import HeldBodies


class BodyMetrics(Collector):
    """What the bodies take, read when asked for: it cannot drift from it."""

    def __init__(self, bodies: HeldBodies) -> None:
        self._bodies = bodies

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        yield GaugeMetricFamily(
            "pdrouter_body_bytes",
            "Bytes of the request bodies that wait.",
            value=self._bodies.bytes,
        )
        yield GaugeMetricFamily(
            "pdrouter_body_bytes_limit",
            "Bytes that they may have together (PDROUTER_MAX_HELD_BYTES).",
            value=self._bodies.limit,
        )
        yield CounterMetricFamily(
            "pdrouter_bodies_refused",
            "Request bodies that were refused, since there was no room for them.",
            self._bodies.refused,
        )
