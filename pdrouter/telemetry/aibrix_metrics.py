"""The metrics of aibrix's gateway plugin, under its names, for dashboards that were made for it.

Those of tokens, and of the times between them, stand still unless answers are counted.
"""

import socket
from bisect import bisect_right
from collections import Counter as Counts
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import Outcome, RequestRecord, Retry
from pdrouter.telemetry.tallies import Tally

_END_LABELS = ("model", "status", "status_code")
_POD_LABELS = ("namespace", "pod", "model", "engine_type", "roleset", "role", "role_replica_index")
_REPLICA_INDEX = "stormservice.orchestration.aibrix.ai/role-replica-index"
_PART_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_TOTAL_MS = (100, 250, 500, 1000, 5000, 20000, 60000)
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
        gateway_pod: str | None = None,
    ) -> None:
        """Start with nothing counted.

        Args:
            cache: the pods that are known.
            ledger: work in flight.
            open_requests: the requests that have not ended; it is read again and again.
            gateway_pod: name of the router's own pod; None for the name of the host, which is the
                same in Kubernetes.
        """
        self._cache = cache
        self._ledger = ledger
        self._open = open_requests
        self._gateway_pod = socket.gethostname() if gateway_pod is None else gateway_pod
        here = {"gateway_pod": self._gateway_pod}
        self._create_request_tallies(here, here | {"pod_name": self._gateway_pod})
        self._create_answer_tallies(here)

    def _create_request_tallies(self, here: Mapping[str, str], twice: Mapping[str, str]) -> None:
        self._requests = Tally("gateway_request", "Requests that came.", ("model",), twice)
        self._successes = Tally(
            "gateway_request_model_success", "Requests that went well.", _END_LABELS, twice
        )
        self._failures = Tally(
            "gateway_request_model_fail", "Requests that did not go well.", _END_LABELS, twice
        )
        self._prefill_successes = Tally(
            "gateway_prefill_request_success", "Prefill requests that went well.", _END_LABELS, here
        )
        self._prefill_failures = Tally(
            "gateway_prefill_request_fail", "Prefill requests that failed.", _END_LABELS, here
        )
        self._prefill_choices = _PodTally(
            "pd_selected_prefill_pod", "Choices of a prefill pod.", (), here
        )
        self._decode_choices = _PodTally(
            "pd_selected_decode_pod", "Choices of a decode pod.", (), here
        )
        self._routing_times = _TimeTally(
            "gateway_routing_time_bucket", "Requests by the time to choose.", _PART_MS, here
        )
        self._prefill_times = _TimeTally(
            "gateway_prefill_time_bucket", "Requests by the prefill leg's time.", _PART_MS, here
        )
        self._total_times = _TimeTally(
            "gateway_total_time_bucket", "Requests by their whole time.", _TOTAL_MS, here
        )

    def _create_answer_tallies(self, here: Mapping[str, str]) -> None:
        self._with_usage = Tally(
            "gateway_requests_with_usage",
            "Requests whose answer says its tokens.",
            ("model", "has_usage"),
            here,
        )
        self._input_tokens = _PodTally("gateway_input_tokens", "Tokens of prompts.", (), here)
        self._output_tokens = _PodTally("gateway_output_tokens", "Tokens of answers.", (), here)
        self._prompts = _SizeTally(
            "gateway_prompt_token_bucket", "Requests by the prompt's tokens.", here
        )
        self._completions = _SizeTally(
            "gateway_completion_token_bucket", "Requests by the answer's tokens.", here
        )
        self._first_token_times = _TimeTally(
            "gateway_ttft_bucket", "Streams by the time to the first token.", _PART_MS, here
        )
        self._output_token_times = _TimeTally(
            "gateway_tpot_bucket", "Streams by the time per output token.", _PART_MS, here
        )

    def request_started(self) -> None:
        """Count a request that came."""
        self._requests.count("")

    def request_routed(self, record: RequestRecord) -> None:
        """Count the choice of pods."""
        decision = record.decision
        if decision is None or record.strategy != _PD:
            return
        self._decode_choices.count_pod(_label(decision.last.pod, record.model))
        prefill = decision.prefill
        if prefill is not None:
            self._prefill_choices.count_pod(_label(prefill.pod, record.model))

    def leg_retried(self, record: RequestRecord) -> None:
        """Count the choice of other pods for a further try."""
        decision = record.decision
        if decision is None or record.retries[-1] is Retry.OVER_BUDGET or record.strategy != _PD:
            return
        if decision.prefill is not None:
            self._prefill_choices.count_pod(_label(decision.prefill.pod, record.model))
        if record.retries[-1] is Retry.OTHER_PAIR:
            self._decode_choices.count_pod(_label(decision.last.pod, record.model))

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        """Count a try of the prefill leg, which is one HTTP request; aibrix encodes nothing."""
        if attempt.leg is Leg.ENCODE:
            return
        if _was_carried_out(attempt):
            status, code = "pd-prefill-request-success", str(attempt.status)
            self._prefill_successes.count(record.model, status, code)
        else:
            self._prefill_failures.count(record.model, *_describe_failed_attempt(attempt))

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request that has ended and, if it went well, its times."""
        model = record.model
        if record.outcome in (Outcome.OK, Outcome.ANSWERED):
            self._successes.count(model, "gateway_request_success", str(record.status))
        else:
            self._failures.count(model, *_describe_failure(record))
        if record.outcome is not Outcome.OK:
            return
        pod = _label(None if record.decision is None else record.decision.last.pod, model)
        self._total_times.count_time(pod, record.total_s)
        if record.strategy != _PD:
            return
        if record.routing_s is not None:
            self._routing_times.count_time(pod, record.routing_s)
        if record.prefill_attempts and not record.aggregated:
            self._prefill_times.count_time(pod, record.prefill_s)

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        """Count an answer's tokens, and a streamed one's times."""
        usage, model = report.usage, report.request.model
        if not 200 <= report.status < 400:
            return
        labels = _label(pod, model)
        if report.first_token_s is not None:
            self._first_token_times.count_time(labels, report.first_token_s)
        if usage is None:
            return
        self._with_usage.count(model, "true")
        output = usage.output_tokens or 0
        self._input_tokens.count_pod(labels, number=usage.prompt_tokens)
        self._output_tokens.count_pod(labels, number=output)
        self._prompts.count_size(labels, usage.prompt_tokens)
        self._completions.count_size(labels, output)
        if report.stream_s is not None and output:
            self._output_token_times.count_time(labels, report.stream_s / output)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series that have these labels."""
        for tally in (*self._list_pod_tallies(), *self._list_request_tallies()):
            tally.remove_by_labels(labels)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they stand now."""
        known = {(pod.namespace, pod.name) for pod in self._cache.view.pods}
        for tally in self._list_pod_tallies():
            tally.forget_others(known)
            yield from tally.collect()
        for counter in self._list_request_tallies():
            yield from counter.collect()
        yield from self._show_gauges()

    def _list_pod_tallies(self) -> "tuple[_PodTally, ...]":
        return (
            self._prefill_choices,
            self._decode_choices,
            self._routing_times,
            self._prefill_times,
            self._total_times,
            self._input_tokens,
            self._output_tokens,
            self._prompts,
            self._completions,
            self._first_token_times,
            self._output_token_times,
        )

    def _list_request_tallies(self) -> tuple[Tally, ...]:
        return (
            self._requests,
            self._successes,
            self._failures,
            self._prefill_successes,
            self._prefill_failures,
            self._with_usage,
        )

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


_PodLabels: TypeAlias = tuple[str, ...]
"""Values of the labels that say which pod, in the order of `_POD_LABELS`."""


def _label(pod: Pod | None, model: str) -> _PodLabels:
    """Return the labels of a pod; without one, of requests whose pod Envoy chooses."""
    if pod is None:
        return "", "", model, "", "", "", ""
    index = pod.labels.get(_REPLICA_INDEX, "")
    return pod.namespace, pod.name, model, pod.engine, pod.roleset, pod.role, index


class _PodTally(Tally):
    """A counter for each pod, and for requests whose pod Envoy chooses."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], constants: Mapping[str, str]
    ) -> None:
        super().__init__(name, text, (*_POD_LABELS, *labels), constants)

    def count_pod(self, pod: _PodLabels, *labels: str, number: int = 1) -> None:
        """Count so many more for a pod and these values of the other labels."""
        self.counts[pod + labels] += number

    def forget_others(self, known: Collection[tuple[str, str]]) -> None:
        """Forget what was counted for pods that are not among these (namespace, name)."""
        for labels in self.counts.copy():
            if labels[1] and labels[:2] not in known:
                self.counts.pop(labels, None)


class _TimeTally(_PodTally):
    """A counter for each pod and bucket of time."""

    def __init__(
        self, name: str, text: str, bounds_ms: Sequence[int], constants: Mapping[str, str]
    ) -> None:
        super().__init__(name, text, ("bucket",), constants)
        self._bounds = tuple(bound / 1000 for bound in bounds_ms)
        self._buckets = (
            *(f"{low}-{high}ms" for low, high in pairwise((0, *bounds_ms))),
            f"{bounds_ms[-1]}ms+",
        )

    def count_time(self, pod: _PodLabels, seconds: float) -> None:
        """Count once more for a pod, in the bucket of the time."""
        self.count_pod(pod, self._buckets[bisect_right(self._bounds, seconds)])


class _SizeTally(_PodTally):
    """A counter for each pod and bucket of a number of tokens."""

    _BUCKETS = (*(f"{low}-{high}" for low, high in pairwise((0, *_TOKENS))), f"{_TOKENS[-1]}+")

    def __init__(self, name: str, text: str, constants: Mapping[str, str]) -> None:
        super().__init__(name, text, ("bucket",), constants)

    def count_size(self, pod: _PodLabels, tokens: int) -> None:
        """Count once more for a pod, in the bucket of the size."""
        self.count_pod(pod, self._BUCKETS[bisect_right(_TOKENS, tokens)])


def _was_carried_out(attempt: Attempt) -> bool:
    return attempt.failure is None and attempt.status is not None and attempt.status < 300


def _describe_failed_attempt(attempt: Attempt) -> tuple[str, str]:
    """Return `status` and `status_code` of a try of the prefill leg."""
    if attempt.status is not None:
        return "http_error", str(attempt.status)
    if attempt.failure is FailureKind.TIMEOUT:
        return "deadline_exceeded", "504"
    return "error", "502"


def _describe_failure(record: RequestRecord) -> tuple[str, str]:
    """Return `status` and `status_code` of a request that did not go well."""
    outcome = record.outcome
    if outcome is Outcome.CLIENT_LEFT:
        return "client_cancelled_eof", "499"
    if outcome is Outcome.PROTOCOL_ERROR:
        return "gateway_request_fail", "500"
    return f"{_find_stage(record)}_fail", str(record.status)


def _find_stage(record: RequestRecord) -> str:
    """Return what the router was looking at when a request turned out not to go well."""
    if record.outcome in (Outcome.REJECTED, Outcome.FAILED):
        return "gateway_req_body" if record.body_bytes else "gateway_req_headers"
    if record.outcome is Outcome.ENGINE_ERROR and record.attempts:
        last = record.attempts[-1]
        if last.failure is None and not _was_carried_out(last):
            return "gateway_req_body"  # The prefill engine refused it.
    return "gateway_rsp_headers"
