"""What SGLang calls its metrics.

Series of its tensor, pipeline and expert ranks (given by all of them with
`--enable-metrics-for-all-schedulers`) are about the same requests: they count once.
"""

import re
from collections.abc import Sequence

from pdrouter.engines.exposition import Families, Series
from pdrouter.engines.reading import EngineReading, Found, MetricsDialect, add, average, multiply

# Ranks that work on the same requests, as labels of SGLang's series.
_SHARED_RANK = re.compile(rb'\b(?:tp|pp|moe_ep)_rank="\d*",?')

# Beside its queue, where requests of a disaggregated engine wait for their partner (bootstrap;
# prealloc in older releases), for memory and for the transfer. vLLM counts all of them as waiting.
_QUEUES = (
    "sglang:num_queue_reqs",
    "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_prefill_prealloc_queue_reqs",
    "sglang:num_decode_prealloc_queue_reqs",
    "sglang:num_decode_transfer_queue_reqs",
)


def _interpret(found: Found) -> EngineReading:
    found = {name: _drop_repeated(series) for name, series in found.items()}
    size = add(found, "sglang:max_total_num_tokens")
    return EngineReading(
        running=add(found, "sglang:num_running_reqs"),
        waiting=add(found, *_QUEUES),
        kv_usage=average(found, "sglang:token_usage"),
        kv_capacity_tokens=multiply(found, "sglang:cache_config_info", "page_size", "num_pages")
        or (int(size) if size else None),
        generated_tokens_per_s=add(found, "sglang:gen_throughput"),
    )


METRICS = MetricsDialect(
    "/metrics",
    Families(
        *_QUEUES,
        "sglang:num_running_reqs",
        "sglang:token_usage",
        "sglang:gen_throughput",
        "sglang:cache_config_info",
        "sglang:max_total_num_tokens",
    ),
    _interpret,
    rank_label="dp_rank",
)


def _drop_repeated(series: Sequence[Series]) -> Sequence[Series]:
    """Return one series for those that differ in ranks which share their requests: the largest."""
    largest: dict[bytes, Series] = {}
    for each in series:
        key = _SHARED_RANK.sub(b"", each.labels)
        if key not in largest or largest[key].value < each.value:
            largest[key] = each
    return tuple(largest.values())
