"""Metrics that are read from the state itself when asked for: they cannot drift from it."""

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger

_IN_FLIGHT = {
    leg: f"{leg} legs".capitalize()
    + (" and whole requests" if leg is Leg.DECODE else "")
    + " in flight on the pod."
    for leg in Leg
}


class LiveGauges(Collector):
    """What the pods do, and what is known of them."""

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        in_flight: Callable[[], int],
        failures: FailureMemory,
    ) -> None:
        self._cache = cache
        self._ledger = ledger
        self._in_flight = in_flight
        self._failures = failures

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges as they stand now."""
        yield GaugeMetricFamily(
            "pdrouter_requests_in_flight",
            "Open ext_proc streams: requests that have not ended.",
            value=self._in_flight(),
        )
        yield GaugeMetricFamily(
            "pdrouter_pods_synced",
            "1 once the pods are known.",
            value=float(self._cache.synced),
        )
        names = ("namespace", "pod", "model", "role")
        ready = GaugeMetricFamily(
            "pdrouter_pod_ready", "1 if the pod may get requests.", None, names
        )
        ejected = GaugeMetricFamily(
            "pdrouter_pod_ejected",
            "1 if the pod has failed, and gets no requests, or one at a time.",
            None,
            names,
        )
        requests = {
            leg: GaugeMetricFamily(f"pdrouter_pod_{leg}_requests", text, None, names)
            for leg, text in _IN_FLIGHT.items()
        }
        tokens = GaugeMetricFamily(
            "pdrouter_pod_prefill_tokens",
            "Estimated prompt tokens of the prefill legs in flight on the pod.",
            None,
            names,
        )
        out = self._failures.list_ejected()
        for pod in self._cache.view.pods:
            if pod.refused:
                continue
            labels = (pod.namespace, pod.name, pod.model, pod.role)
            ready.add_metric(labels, float(pod.ready))
            ejected.add_metric(labels, float(pod.uid in out))
            tokens.add_metric(labels, self._ledger.load(Leg.PREFILL, pod.uid).tokens)
            for leg, gauge in requests.items():
                gauge.add_metric(labels, self._ledger.load(leg, pod.uid).requests)
        yield from (ready, ejected, tokens, *requests.values())
        yield from self._count_pods()
        asked = CounterMetricFamily(
            "pdrouter_pod_questions",
            "Requests of the router's own to pods that were left out, by result: answered, failed.",
            None,
            ("result",),
        )
        for result, number in self._failures.asked.copy().items():
            asked.add_metric((result,), number)
        yield asked

    def _count_pods(self) -> Iterable[Metric]:
        view = self._cache.view
        counts = GaugeMetricFamily(
            "pdrouter_pods",
            "Pods by model, role and state: ready, unready, terminating, refused, unsupported.",
            None,
            ("model", "role", "state"),
        )
        states = Counts((pod.model, pod.role, pod.state) for pod in view.pods)
        for key, count in states.items():
            counts.add_metric(key, count)
        yield counts
        unmatched = GaugeMetricFamily(
            "pdrouter_pods_unmatched",
            "Ready pods that have no ready partner because of their revision alone.",
            None,
            ("model", "role", "revision"),
        )
        waiting = Counts((pod.model, pod.role, pod.pairing.revision) for pod in view.unmatched)
        for key, count in waiting.items():
            unmatched.add_metric(key, count)
        yield unmatched
