"""What the metrics page of an engine says of its load, under each engine's names.

An engine may give several series of one family. Those of data-parallel ranks, and of model names,
are about different requests and different memory: counts, rates and capacities are added up, shares
are averaged. Those of SGLang's tensor, pipeline and expert ranks (given by all of them with
`--enable-metrics-for-all-schedulers`) are about the same requests: they count once.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pdrouter.engines.exposition import Families, Series

_Found = Mapping[str, Sequence[Series]]

# Ranks that work on the same requests, as labels of SGLang's series.
_SHARED_RANK = re.compile(rb'\b(?:tp|pp|moe_ep)_rank="\d*",?')


@dataclass(frozen=True, slots=True)
class EngineReading:
    """Numbers from one page; None for those that it does not give.

    Attributes:
        running: requests that run.
        waiting: requests that wait.
        kv_usage: share of the KV memory in use, 0 to 1.
        kv_capacity_tokens: size of the KV memory, in tokens.
        generated_tokens: tokens generated since the engine's start.
        generated_tokens_per_s: tokens generated per second, where the engine says so itself.
        prefill_seconds: mean duration of a prefill since the engine's start.
    """

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    kv_capacity_tokens: int | None = None
    generated_tokens: float | None = None
    generated_tokens_per_s: float | None = None
    prefill_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class MetricsDialect:
    """How an engine gives its metrics.

    Attributes:
        path: path of the page.
        families: the families that are read.
        interpret: makes numbers of them.
    """

    path: str
    families: Families
    interpret: Callable[[_Found], EngineReading]

    def read(self, page: bytes) -> EngineReading:
        """Return what a page says; nothing but None if it has none of the families."""
        return self.interpret(self.families.find(page))


def find_dialect(engine: str) -> MetricsDialect:
    """Return how an engine gives its metrics; as vLLM does unless more is known."""
    return _DIALECTS.get(engine, _VLLM)


def _interpret_vllm(found: _Found) -> EngineReading:
    seconds = _add(found, "vllm:request_prefill_time_seconds_sum")
    count = _add(found, "vllm:request_prefill_time_seconds_count")
    return EngineReading(
        running=_add(found, "vllm:num_requests_running"),
        waiting=_add(found, "vllm:num_requests_waiting"),
        # The second is the name in older releases.
        kv_usage=_average(found, "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        # With several kinds of attention in one model, blocks times their size is far too little;
        # newer releases give the size itself.
        kv_capacity_tokens=_multiply(found, "vllm:cache_config_info", "kv_cache_size_tokens")
        or _multiply(found, "vllm:cache_config_info", "block_size", "num_gpu_blocks"),
        generated_tokens=_add(found, "vllm:generation_tokens_total"),
        prefill_seconds=seconds / count if seconds is not None and count else None,
    )


_VLLM = MetricsDialect(
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
    ),
    _interpret_vllm,
)


# Beside its queue, where requests of a disaggregated engine wait for their partner (bootstrap;
# prealloc in older releases), for memory and for the transfer. vLLM counts all of them as waiting.
_SGLANG_QUEUES = (
    "sglang:num_queue_reqs",
    "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_prefill_prealloc_queue_reqs",
    "sglang:num_decode_prealloc_queue_reqs",
    "sglang:num_decode_transfer_queue_reqs",
)


def _interpret_sglang(found: _Found) -> EngineReading:
    found = {name: _drop_repeated(series) for name, series in found.items()}
    size = _add(found, "sglang:max_total_num_tokens")
    return EngineReading(
        running=_add(found, "sglang:num_running_reqs"),
        waiting=_add(found, *_SGLANG_QUEUES),
        kv_usage=_average(found, "sglang:token_usage"),
        kv_capacity_tokens=_multiply(found, "sglang:cache_config_info", "page_size", "num_pages")
        or (int(size) if size else None),
        generated_tokens_per_s=_add(found, "sglang:gen_throughput"),
    )


_SGLANG = MetricsDialect(
    "/metrics",
    Families(
        *_SGLANG_QUEUES,
        "sglang:num_running_reqs",
        "sglang:token_usage",
        "sglang:gen_throughput",
        "sglang:cache_config_info",
        "sglang:max_total_num_tokens",
    ),
    _interpret_sglang,
)


def _interpret_trtllm(found: _Found) -> EngineReading:
    return EngineReading(
        running=_add(found, "trtllm_num_requests_running"),
        waiting=_add(found, "trtllm_num_requests_waiting"),
        kv_usage=_average(found, "trtllm_kv_cache_utilization"),
    )


_TRTLLM = MetricsDialect(
    "/prometheus/metrics",
    Families(
        "trtllm_num_requests_running",
        "trtllm_num_requests_waiting",
        "trtllm_kv_cache_utilization",
    ),
    _interpret_trtllm,
)

_DIALECTS = {"vllm": _VLLM, "sglang": _SGLANG, "trtllm": _TRTLLM}


_DIGITS = 12
"""Longest number that a label may hold."""


def _add(found: _Found, *names: str) -> float | None:
    """Return the sum over all series of these families; None if there are none."""
    values = [each.value for name in names for each in found.get(name, ())]
    return math.fsum(values) if values else None


def _average(found: _Found, *names: str) -> float | None:
    """Return the mean over the series of the first of these families that is there.

    It is a share: what is above 1 is none, and does not count.
    """
    for name in names:
        values = [each.value for each in found.get(name, ()) if each.value <= 1]
        if values:
            return math.fsum(values) / len(values)
    return None


def _multiply(found: _Found, name: str, *labels: str) -> int | None:
    """Return the product of these labels, added up over all series that have them; or None.

    A label may say `None`, before the engine has measured its memory.
    """
    total = 0
    for each in found.get(name, ()):
        texts = each.read_labels()
        numbers = [texts.get(label, "") for label in labels]
        if all(number.isdecimal() and len(number) <= _DIGITS for number in numbers):
            total += math.prod(map(int, numbers))
    return total or None


def _drop_repeated(series: Sequence[Series]) -> Sequence[Series]:
    """Return one series for those that differ in ranks which share their requests: the largest."""
    largest: dict[bytes, Series] = {}
    for each in series:
        key = _SHARED_RANK.sub(b"", each.labels)
        if key not in largest or largest[key].value < each.value:
            largest[key] = each
    return tuple(largest.values())
