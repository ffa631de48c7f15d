"""What has become of calls to Redis, as metrics."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.users.redis.stats import LinkStats


class RedisMetrics(Collector):
    """What the calls to Redis have met; without samples where no server is named."""

    def __init__(self, stats: LinkStats | None) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        up = GaugeMetricFamily(
            "pdrouter_redis_up", "1 while Redis answers: else limits are not checked."
        )
        calls = CounterMetricFamily("pdrouter_redis_calls", "Calls that Redis has answered.")
        failures = CounterMetricFamily(
            "pdrouter_redis_failures",
            "Calls that Redis has not answered, by reason: timeout, connection, auth, full, "
            "read_only, other, away (not tried).",
            None,
            ("reason",),
        )
        dropped = CounterMetricFamily(
            "pdrouter_redis_corrections_dropped",
            "Corrections of counts that were given up, because Redis was away for too long.",
        )
        if self._stats is not None:
            up.add_metric((), float(self._stats.up))
            calls.add_metric((), self._stats.calls)
            dropped.add_metric((), self._stats.dropped)
            for reason, count in self._stats.failures.copy().items():
                failures.add_metric((reason,), count)
        yield from (up, calls, failures, dropped)
