"""What TensorRT-LLM calls its metrics."""

from pdrouter.engines.exposition import Families
from pdrouter.engines.reading import EngineReading, Found, MetricsDialect, add, average


def _interpret(found: Found) -> EngineReading:
    return EngineReading(
        running=add(found, "trtllm_num_requests_running"),
        waiting=add(found, "trtllm_num_requests_waiting"),
        kv_usage=average(found, "trtllm_kv_cache_utilization"),
    )


METRICS = MetricsDialect(
    "/prometheus/metrics",
    Families(
        "trtllm_num_requests_running",
        "trtllm_num_requests_waiting",
        "trtllm_kv_cache_utilization",
    ),
    _interpret,
)
