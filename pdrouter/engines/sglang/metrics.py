"""What SGLang calls its metrics.

Series of its tensor, pipeline and expert ranks (given by all of them with
`--enable-metrics-for-all-schedulers`) are about the same requests: they count once.
"""

import re
from collections.abc import Sequence

from pdrouter.engines.exposition import Families, Series
from pdrouter.engines.reading import (
    EngineReading,
    Found,
    MetricsDialect,
    RequestTotals,
    add,
    average,
    multiply,
    read_total,
    take_off,
)

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


# Histograms of what requests take: in the queue, to the first token, to the last.
_QUEUE = "sglang:queue_time_seconds"
_FIRST = "sglang:time_to_first_token_seconds"
_LAST = "sglang:e2e_request_latency_seconds"


def _interpret(found: Found) -> EngineReading:
    found = {name: _drop_repeated(series) for name, series in found.items()}
    size = add(found, "sglang:max_total_num_tokens")
    prompt_tokens = add(found, "sglang:prompt_tokens_total")
    output_tokens = add(found, "sglang:generation_tokens_total")
    return EngineReading(
        running=add(found, "sglang:num_running_reqs"),
        waiting=add(found, *_QUEUES),
        kv_usage=average(found, "sglang:token_usage"),
        kv_capacity_tokens=multiply(found, "sglang:cache_config_info", "page_size", "num_pages")
        or (int(size) if size else None),
        generated_tokens_per_s=add(found, "sglang:gen_throughput"),
        utilization=average(found, "sglang:utilization"),
        prompt_tokens=prompt_tokens,
        requests=_read_requests(found, prompt_tokens, output_tokens),
    )


def _read_requests(
    found: Found, prompt_tokens: float | None, output_tokens: float | None
) -> RequestTotals | None:
    queue, first, last = (read_total(found, name) for name in (_QUEUE, _FIRST, _LAST))
    if first is None or last is None:
        return None
    count = add(found, "sglang:num_requests_total")
    return RequestTotals(
        queue=queue or (0.0, 0.0),
        prefill=take_off(first, queue) or first,
        decode=take_off(last, first),
        prompt=None if prompt_tokens is None or count is None else (prompt_tokens, count),
        output=None if output_tokens is None or count is None else (output_tokens, count),
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
        "sglang:utilization",
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
        "sglang:num_requests_total",
        *(f"{name}_{part}" for name in (_QUEUE, _FIRST, _LAST) for part in ("sum", "count")),
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
