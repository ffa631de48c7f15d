"""What vLLM calls its metrics, with those that Neuron's plugin adds."""

from pdrouter.engines.exposition import Families
from pdrouter.engines.neuron import metrics as neuron
from pdrouter.engines.reading import (
    EngineReading,
    Found,
    MetricsDialect,
    add,
    add_first,
    average,
    multiply,
)

# Histograms of the time between two tokens; the second is the name in older releases.
_GAPS = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")


def _interpret(found: Found) -> EngineReading:
    seconds = add(found, "vllm:request_prefill_time_seconds_sum")
    count = add(found, "vllm:request_prefill_time_seconds_count")
    return EngineReading(
        running=add(found, "vllm:num_requests_running"),
        waiting=add(found, "vllm:num_requests_waiting"),
        # The second is the name in older releases.
        kv_usage=average(found, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        # With several kinds of attention in one model, blocks times their size is far too little;
        # newer releases give the size itself.
        kv_capacity_tokens=multiply(found, "vllm:cache_config_info", "kv_cache_size_tokens")
        or multiply(found, "vllm:cache_config_info", "block_size", "num_gpu_blocks"),
        generated_tokens=add(found, "vllm:generation_tokens_total"),
        prefill_seconds=seconds / count if seconds is not None and count else None,
        prefill_buckets=neuron.read_buckets(found),
        padded_tokens=neuron.count_padding(found),
        gap_seconds=add_first(found, *(f"{name}_sum" for name in _GAPS)),
        gaps=add_first(found, *(f"{name}_count" for name in _GAPS)),
        computes_prompts=neuron.find_prefill(found),
    )


METRICS = MetricsDialect(
    "/metrics",
    Families(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:generation_tokens_total",
        "vllm:request_prefill_time_seconds_sum",
        "vllm:request_prefill_time_seconds_count",
        *(f"{name}_{part}" for name in _GAPS for part in ("sum", "count")),
        *neuron.FAMILIES,
    ),
    _interpret,
    rank_label="engine",
)
