"""How fast and how full pods are, and how many the load wants: read when asked for."""

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted

_USUAL_PROMPT = 2000
_POD_LABELS = ("namespace", "pod", "model", "role")


class CapacityGauges(Collector):
    """What is known of the pods' capacity. What is not known is absent."""

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        wanted: PodsWanted,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up.

        Args:
            cache: the pods.
            ledger: work in flight, and how fast it is done.
            wanted: tells how many pods the load wants, by what engines say of themselves.
            clock: gives the time in seconds.
        """
        self._cache = cache
        self._ledger = ledger
        self._wanted = wanted
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges as they stand now."""
        pods = [pod for pod in self._cache.view.pods if not pod.refused]
        yield from self._show_prefill(pods)
        yield from self._show_decode(pods)
        wanted = GaugeMetricFamily(
            "pdrouter_pods_wanted",
            "Pods that this router's load wants, in fractions: add up those of all routers.",
            None,
            ("namespace", "model", "role", "roleset"),
        )
        for group, number in self._wanted.look(pods, self._clock()).items():
            wanted.add_metric(group, number)
        yield wanted

    def _show_prefill(self, pods: Iterable[Pod]) -> Iterable[Metric]:
        ledger = self._ledger
        wait = GaugeMetricFamily(
            "pdrouter_pod_prefill_wait_seconds",
            "Predicted time until the pod has done the prefill legs that it has.",
            None,
            _POD_LABELS,
        )
        speed = GaugeMetricFamily(
            "pdrouter_pod_prefill_tokens_per_second",
            f"Speed at prompts of {_USUAL_PROMPT} tokens, learnt from completed prefill legs.",
            None,
            _POD_LABELS,
        )
        for pod in pods:
            if pod.role is not Role.PREFILL:
                continue
            labels = (pod.namespace, pod.name, pod.model, pod.role)
            wait.add_metric(labels, ledger.predict_prefill_wait(pod.uid))
            if pod.uid in ledger.computed:
                seconds = ledger.rates.predict(pod.uid, _USUAL_PROMPT)
                speed.add_metric(labels, _USUAL_PROMPT / seconds)
        yield from (wait, speed)

    def _show_decode(self, pods: Iterable[Pod]) -> Iterable[Metric]:
        speed = GaugeMetricFamily(
            "pdrouter_pod_decode_tokens_per_second",
            "Tokens that the engine generates per second, as it says.",
            None,
            _POD_LABELS,
        )
        usage = GaugeMetricFamily(
            "pdrouter_pod_kv_usage_ratio",
            "Share of the KV memory that is used, or will be at the end of what is in flight.",
            None,
            _POD_LABELS,
        )
        room = GaugeMetricFamily(
            "pdrouter_pod_kv_free_tokens",
            "Tokens for which there is KV memory that no request needs.",
            None,
            _POD_LABELS,
        )
        for pod in pods:
            sample = self._wanted.samples.get(pod.uid)
            if sample is None or pod.role not in (Role.DECODE, Role.BOTH):
                continue
            labels = (pod.namespace, pod.name, pod.model, pod.role)
            if sample.generated_tokens_per_s is not None:
                speed.add_metric(labels, sample.generated_tokens_per_s)
            if sample.kv_usage is None:
                continue
            capacity = sample.kv_capacity_tokens
            if capacity:
                needed = max(sample.kv_used_tokens, self._ledger.load(Leg.DECODE, pod.uid).tokens)
                usage.add_metric(labels, needed / capacity)
                room.add_metric(labels, max(0, capacity - needed))
            else:
                usage.add_metric(labels, sample.kv_usage)
        yield from (speed, usage, room)
