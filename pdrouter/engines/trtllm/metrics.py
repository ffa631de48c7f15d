"""What TensorRT-LLM calls its metrics."""

from pdrouter.engines.exposition import Families
from pdrouter.engines.reading import (
    EngineReading,
    Found,
    MetricsDialect,
    RequestTotals,
    add,
    average,
    read_total,
    take_off,
)

# Histograms of what requests take: in the queue, to the first token, to the last.
_QUEUE = "trtllm_request_queue_time_seconds"
_FIRST = "trtllm_time_to_first_token_seconds"
_LAST = "trtllm_e2e_request_latency_seconds"


def _interpret(found: Found) -> EngineReading:
    queue, first, last = (read_total(found, name) for name in (_QUEUE, _FIRST, _LAST))
    requests = None
    if first is not None and last is not None:
        requests = RequestTotals(
            queue=queue or (0.0, 0.0),
            prefill=take_off(first, queue) or first,
            decode=take_off(last, first),
        )
    return EngineReading(
        running=add(found, "trtllm_num_requests_running"),
        waiting=add(found, "trtllm_num_requests_waiting"),
        kv_usage=average(found, "trtllm_kv_cache_utilization"),
        requests=requests,
    )


METRICS = MetricsDialect(
    "/prometheus/metrics",
    Families(
        "trtllm_num_requests_running",
        "trtllm_num_requests_waiting",
        "trtllm_kv_cache_utilization",
        *(f"{name}_{part}" for name in (_QUEUE, _FIRST, _LAST) for part in ("sum", "count")),
    ),
    _interpret,
)
