"""What xLLM calls its metrics."""

from pdrouter.engines.exposition import Families
from pdrouter.engines.reading import EngineReading, Found, MetricsDialect, average


def _interpret(found: Found) -> EngineReading:
    return EngineReading(
        kv_usage=average(found, "kv_cache_utilization"),
        utilization=average(found, "engine_utilization"),
    )


METRICS = MetricsDialect(
    "/metrics", Families("kv_cache_utilization", "engine_utilization"), _interpret
)
