"""What vLLM calls its metrics, with those that Neuron's plugin adds."""

from pdrouter.engines.exposition import Families
from pdrouter.engines.neuron import metrics as neuron
from pdrouter.engines.reading import (
    EngineReading,
    Found,
    MetricsDialect,
    RequestTotals,
    add,
    add_first,
    average,
    multiply,
    read_total,
)

# Histograms of the time between two tokens; the second is the name in older releases.
_GAPS = ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")


# Histograms of what requests take.
_QUEUE = "vllm:request_queue_time_seconds"
_PREFILL = "vllm:request_prefill_time_seconds"
_DECODE = "vllm:request_decode_time_seconds"
_PROMPT = "vllm:request_prompt_tokens"
_OUTPUT = "vllm:request_generation_tokens"
_HISTOGRAMS = (*_GAPS, _QUEUE, _PREFILL, _DECODE, _PROMPT, _OUTPUT)


def _interpret(found: Found) -> EngineReading:
    prefill = read_total(found, _PREFILL)
    requests = RequestTotals(
        queue=read_total(found, _QUEUE),
        prefill=prefill,
        decode=read_total(found, _DECODE),
        prompt=read_total(found, _PROMPT),
        output=read_total(found, _OUTPUT),
    )
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
        prefill_seconds=prefill[0] / prefill[1] if prefill is not None and prefill[1] else None,
        prefill_buckets=neuron.read_buckets(found),
        padded_tokens=neuron.count_padding(found),
        gap_seconds=add_first(found, *(f"{name}_sum" for name in _GAPS)),
        gaps=add_first(found, *(f"{name}_count" for name in _GAPS)),
        computes_prompts=neuron.find_prefill(found),
        cpu_usage=average(found, "vllm:cpu_cache_usage_perc"),
        prompt_tokens=add(found, "vllm:prompt_tokens_total"),
        requests=None if requests == RequestTotals() else requests,
    )


METRICS = MetricsDialect(
    "/metrics",
    Families(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:cpu_cache_usage_perc",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        *(f"{name}_{part}" for name in _HISTOGRAMS for part in ("sum", "count")),
        *neuron.FAMILIES,
    ),
    _interpret,
    rank_label="engine",
)
