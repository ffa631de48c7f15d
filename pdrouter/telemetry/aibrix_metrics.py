"""The metrics of aibrix's gateway plugin, under its names, for dashboards that were made for it.

Those of tokens, and of the times between them, stand still unless answers are counted.
"""

import socket
from collections import Counter as Counts
from collections.abc import Collection, Iterable, Mapping
from typing import TypeAlias

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.routing.decision import Decision
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.record import Outcome, RequestRecord, Retry
from pdrouter.telemetry.metrics import Metrics
from pdrouter.telemetry.pod_series import AllPodSeries
from pdrouter.telemetry.tallies import Derived, Tally

_END_LABELS = ("model", "status", "status_code")
_OK, _LOCAL_REPLY = Outcome.OK, Outcome.LOCAL_REPLY
_GOOD = (_OK, Outcome.ANSWERED)
_PD = "pd"
"""The only strategy whose selections and times aibrix counts."""


class AibrixMetrics(Collector):
    """Counts what it is told of requests; gauges are read when asked for.

    Every request that has ended counts once, as a success or as a failure. A `model` label is a
    served model's name, or empty. What was counted for a pod is shown while the pod is known.
    """

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        open_requests: Collection[RequestRecord],
        metrics: Metrics,
        gateway_pod: str | None = None,
    ) -> None:
        """Start with nothing counted.

        Args:
            cache: the pods that are known.
            ledger: work in flight.
            open_requests: the requests that have not ended; it is read again and again.
            metrics: the metrics of pdrouter's own names; what these count is not counted again.
            gateway_pod: name of the router's own pod; None for the name of the host, which is the
                same in Kubernetes.
        """
        self._cache = cache
        self._ledger = ledger
        self._open = open_requests
        self._gateway_pod = socket.gethostname() if gateway_pod is None else gateway_pod
        here = {"gateway_pod": self._gateway_pod}
        twice = here | {"pod_name": self._gateway_pod}
        self._started = 0
        self._requests = Tally("gateway_request", "Requests that came.", ("model",), twice)
        self._failures = Tally(
            "gateway_request_model_fail", "Requests that did not go well.", _END_LABELS, twice
        )
        self._derive_counters(metrics, here, twice)
        self._with_usage = Tally(
            "gateway_requests_with_usage",
            "Requests whose answer says its tokens.",
            ("model", "has_usage"),
            here,
        )
        self._pods = AllPodSeries(here)

    def _derive_counters(
        self, metrics: Metrics, here: Mapping[str, str], twice: Mapping[str, str]
    ) -> None:
        tries = metrics.prefill.tries
        self._derived = (
            Derived(
                "gateway_request_model_success",
                "Requests that went well.",
                _END_LABELS,
                metrics.requests.ended,
                _describe_success,
                constants=twice,
            ),
            Derived(
                "gateway_prefill_request_success",
                "Prefill requests that went well.",
                _END_LABELS,
                tries,
                _describe_good_try,
                constants=here,
            ),
            Derived(
                "gateway_prefill_request_fail",
                "Prefill requests that failed.",
                _END_LABELS,
                tries,
                _describe_failed_try,
                constants=here,
            ),
        )

    def request_started(self) -> None:
        """Count a request that came."""
        self._started += 1

    def count_choice(self, decision: Decision, record: RequestRecord) -> None:
        """Count the choice of pods for a request."""
        if record.strategy != _PD:
            return
        self._pods.find(decision.last.pod, record.model).decode_choices += 1
        prefill = decision.prefill
        if prefill is not None:
            self._pods.find(prefill.pod, record.model).prefill_choices += 1

    def leg_retried(self, record: RequestRecord) -> None:
        """Count the choice of other pods for a further try."""
        decision = record.decision
        if decision is None or record.retries[-1] is Retry.OVER_BUDGET or record.strategy != _PD:
            return
        if decision.prefill is not None:
            self._pods.find(decision.prefill.pod, record.model).prefill_choices += 1
        if record.retries[-1] is Retry.OTHER_PAIR:
            self._pods.find(decision.last.pod, record.model).decode_choices += 1

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request that has ended: how it failed or, if it went well, its times."""
        if record.outcome is not _OK:
            status = _name_status(record)
            if not _went_well(record.outcome or "", status):
                self._failures.count(record.model, *_describe_failure(record, status))
            return
        decision = record.decision
        pod = self._pods.find(None if decision is None else decision.last.pod, record.model)
        pod.total_times.count(record.total_s)
        if record.strategy != _PD:
            return
        routing_s = record.routing_s
        if routing_s is not None:
            pod.routing_times.count(routing_s)
        if record.prefill_attempts and not record.aggregated:
            pod.prefill_times.count(record.prefill_s)

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        """Count an answer's tokens, and a streamed one's times."""
        usage, first_token_s = report.usage, report.first_token_s
        if (usage is None and first_token_s is None) or not 200 <= report.status < 400:
            return
        model = report.request.model
        series = self._pods.find(pod, model)
        if first_token_s is not None:
            series.first_token_times.count(first_token_s)
        if usage is None:
            return
        self._with_usage.count(model, "true")
        output = usage.output_tokens or 0
        series.input_tokens += usage.prompt_tokens
        series.output_tokens += output
        series.prompts.count(usage.prompt_tokens)
        series.completions.count(output)
        if report.stream_s is not None and output:
            series.output_token_times.count(report.stream_s / output)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series of a model."""
        self._pods.forget_model(labels["model"])
        for tally in (self._failures, self._with_usage):
            tally.remove_by_labels(labels)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        self._pods.forget_others({(pod.namespace, pod.name) for pod in self._cache.view.pods})
        yield from self._pods.collect()
        self._requests.counts[("",)] = self._started
        for counter in (self._requests, *self._derived, self._failures, self._with_usage):
            yield from counter.collect()
        yield from self._show_gauges()

    def _show_gauges(self) -> Iterable[Metric]:
        here = (self._gateway_pod,)
        requests = tuple(self._open)
        loads = dict(self._ledger.loads[Leg.PREFILL]).values()
        for name, text, count in (
            ("gateway_in_flight_requests", "Requests that have not ended.", len(requests)),
            (
                "gateway_prefill_outstanding_requests",
                "Prefill legs in flight.",
                sum(load.requests for load in loads),
            ),
        ):
            gauge = GaugeMetricFamily(name, text, None, ("gateway_pod",))
            gauge.add_metric(here, count)
            yield gauge
        by_model = GaugeMetricFamily(
            "gateway_model_in_flight_requests",
            "Requests that have not ended, once their model is known.",
            None,
            ("gateway_pod", "model"),
        )
        for model, count in Counts(one.model for one in requests if one.model).items():
            by_model.add_metric((*here, model), count)
        yield by_model


_End: TypeAlias = tuple[str, str, str]
"""Values of `_END_LABELS`."""


def _describe_success(model: str, outcome: str, status: str, *_: str) -> _End | None:
    """Return the labels of requests that went well; None for others."""
    return (model, "gateway_request_success", status) if _went_well(outcome, status) else None


def _went_well(outcome: str, status: str) -> bool:
    """Return whether nothing failed: Envoy, too, answers preflights, and sends elsewhere."""
    return outcome in _GOOD or (outcome == _LOCAL_REPLY and "" < status < "400")


def _describe_good_try(model: str, failure: str, status: str) -> _End | None:
    """Return the labels of tries of the prefill leg that went well; None for others."""
    if not _is_good_try(failure, status):
        return None
    return model, "pd-prefill-request-success", status


def _describe_failed_try(model: str, failure: str, status: str) -> _End | None:
    """Return the labels of tries of the prefill leg that failed; None for others."""
    if _is_good_try(failure, status):
        return None
    if status:
        return model, "http_error", status
    if failure == FailureKind.TIMEOUT:
        return model, "deadline_exceeded", "504"
    return model, "error", "502"


def _is_good_try(failure: str, status: str) -> bool:
    return not failure and status.startswith("2")


def _name_status(record: RequestRecord) -> str:
    return "" if record.status is None else str(record.status)


def _describe_failure(record: RequestRecord, status: str) -> tuple[str, str]:
    """Return `status` and `status_code` of a request that did not go well.

    Args:
        record: the request.
        status: the status of its answer; empty for none.
    """
    outcome = record.outcome
    if outcome is Outcome.CLIENT_LEFT:
        return "client_cancelled_eof", "499"
    if outcome is Outcome.PROTOCOL_ERROR:
        return "gateway_request_fail", "500"
    return f"{_find_stage(record)}_fail", status


def _find_stage(record: RequestRecord) -> str:
    """Return what the router was looking at when a request turned out not to go well."""
    if record.outcome in (Outcome.REJECTED, Outcome.FAILED):
        return "gateway_req_body" if record.body_bytes else "gateway_req_headers"
    if record.outcome is Outcome.ENGINE_ERROR and record.attempts:
        last = record.attempts[-1]
        if last.failure is None and last.status is not None and last.status >= 300:
            return "gateway_req_body"  # The prefill engine refused it.
    return "gateway_rsp_headers"
