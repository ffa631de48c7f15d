"""One page of metrics made of those of several workers. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

Page = Mapping[str, Metric]
"""Metric families by name."""

_GREATEST = frozenset(
    {
        "gateway_prefill_outstanding_requests",
        "pdrouter_info",
        "pdrouter_kubernetes_staleness_seconds",
        "pdrouter_pod_decode_requests",
        "pdrouter_pod_decode_tokens_per_second",
        "pdrouter_pod_ejected",
        "pdrouter_pod_encode_requests",
        "pdrouter_pod_kv_usage_ratio",
        "pdrouter_pod_prefill_requests",
        "pdrouter_pod_prefill_tokens",
        "pdrouter_pod_prefill_tokens_per_second",
        "pdrouter_pod_prefill_wait_seconds",
        "pdrouter_pod_ready",
        "pdrouter_pods",
        "pdrouter_pods_unmatched",
        "pdrouter_pods_wanted",
    }
)
"""Gauges of which the greatest value counts: the workers see the same pods, and know the same."""
_LEAST = frozenset(
    {
        "pdrouter_kubernetes_synced",
        "pdrouter_pod_kv_free_tokens",
        "pdrouter_pods_synced",
        "pdrouter_redis_up",
    }
)
"""Gauges of which the least value counts: true once it is true of all workers."""
_CUMULATIVE = frozenset({"counter", "histogram"})
_KNOWN_PODS = "pdrouter_pod_ready"


def parse_page(text: str) -> Page:
    """Return the metrics of a page in Prometheus' text format."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def add_up(pages: Sequence[Page], past: Sequence[Page] = ()) -> Page:
    """Return the metrics of a router whose workers have these.

    Counters and histograms are summed, gauges too unless they say something that is true of all.

    Args:
        pages: what the workers say now.
        past: what is left of workers that have ended, or that do not answer; only what counts up
            is taken of it, so that no counter goes backwards. A pod's series end when no worker
            knows the pod any more.
    """
    known = _find_pods(pages)
    total: dict[str, _Sum] = {}
    for family in chain.from_iterable(page.values() for page in pages):
        total.setdefault(family.name, _Sum(family)).add(family)
    for family in chain.from_iterable(page.values() for page in past):
        if family.type in _CUMULATIVE:
            total.setdefault(family.name, _Sum(family)).add(family, known if pages else None)
    return {name: one.result() for name, one in total.items()}


def describe_workers(restarts: Mapping[int, int], serving: int) -> tuple[Metric, ...]:
    """Return what only the supervisor knows.

    Args:
        restarts: how often each worker was started again, by its number.
        serving: how many workers serve.
    """
    restarted = CounterMetricFamily(
        "pdrouter_worker_restarts", "Times that a worker was started again.", None, ("worker",)
    )
    for number, times in sorted(restarts.items()):
        restarted.add_metric((str(number),), times)
    return restarted, GaugeMetricFamily("pdrouter_workers_serving", "Workers that serve.", serving)


class _Sum:
    """Adds up the families of one name."""

    __slots__ = ("_family", "_values")

    def __init__(self, family: Metric) -> None:
        self._family = family
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, family: Metric, pods: frozenset[tuple[str, str]] | None = None) -> None:
        """Add the samples, without those of pods that are not among these."""
        for sample in family.samples:
            pod = sample.labels.get("namespace", ""), sample.labels.get("pod", "")
            if pods is not None and pod[1] and pod not in pods:
                continue
            key = sample.name, tuple(sample.labels.items())
            former = self._values.get(key)
            self._values[key] = (
                sample.value if former is None else _combine(family.name, former, sample.value)
            )

    def result(self) -> Metric:
        family = Metric(self._family.name, self._family.documentation, self._family.type)
        for (name, labels), value in self._values.items():
            family.add_sample(name, dict(labels), value)
        return family


def _combine(name: str, one: float, other: float) -> float:
    if name in _GREATEST:
        return max(one, other)
    if name in _LEAST:
        return min(one, other)
    return one + other


def _find_pods(pages: Iterable[Page]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (sample.labels["namespace"], sample.labels["pod"])
        for page in pages
        if _KNOWN_PODS in page
        for sample in page[_KNOWN_PODS].samples
    )
