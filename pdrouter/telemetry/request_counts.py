"""Counts requests, many at once."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pdrouter.routing.decision import Decision, DecisionKind
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.refusals import DEADLINE_MISSED
from pdrouter.telemetry.aibrix_metrics import AibrixMetrics
from pdrouter.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

_AGGREGATED, _DISAGGREGATED = DecisionKind.AGGREGATED, DecisionKind.DISAGGREGATED


class Routed(NamedTuple):
    """What was known of a request when its pods were chosen.

    Attributes:
        record: the request.
        decision: the pods; None where Envoy chooses.
        seconds: time to choose them; None if they were not chosen.
    """

    record: RequestRecord
    decision: Decision | None
    seconds: float | None


class RequestCounts:
    """Counts what has become of requests, under pdrouter's names and those of aibrix."""

    def __init__(self, metrics: Metrics, aibrix: AibrixMetrics) -> None:
        self._metrics = metrics
        self._aibrix = aibrix

    def count_routed(self, routed: Sequence[Routed]) -> None:
        """Count the choices of pods, and the time that they took."""
        seconds = [each.seconds for each in routed if each.seconds is not None]
        self._metrics.requests.routing_seconds.observe_all(seconds)
        for record, decision, _ in routed:
            if decision is not None:
                self._aibrix.count_choice(decision, record)

    def count_ended(self, ended: Iterable[RequestRecord]) -> None:
        """Count requests that have ended."""
        counts = self._metrics.requests.ended.counts
        by_model: defaultdict[str, list[RequestRecord]] = defaultdict(list)
        for record in ended:
            by_model[record.model].append(record)
        for model, records in by_model.items():
            self._count_times(model, records)
            for record in records:
                decision = record.standing_decision
                counts[_describe_end(record, decision)] += 1
                self._count_details(record, decision)

    def _count_details(self, record: RequestRecord, decision: Decision | None) -> None:
        """Count what is looked at request by request."""
        try:
            self._aibrix.request_finished(record)
            self._count_rare(record, decision)
        except Exception:
            # It may cost neither the others, nor the request whose end has begun this.
            log.exception("a request cannot be counted", extra=record.log_fields)

    def _count_times(self, model: str, ended: Sequence[RequestRecord]) -> None:
        metrics = self._metrics
        requests = metrics.requests
        requests.overhead_seconds.observe_all([record.overhead_s for record in ended])
        requests.seconds.observe_all([record.total_s for record in ended], model)
        heads = [record.headers_s for record in ended if record.headers_s is not None]
        requests.headers_seconds.observe_all(heads, model)
        prefills = [record.prefill_s for record in ended if record.prefill_attempts]
        metrics.prefill.seconds.observe_all(prefills, model)

    def _count_rare(self, record: RequestRecord, decision: Decision | None) -> None:
        """Count what most requests have not met."""
        metrics, requests, model = self._metrics, self._metrics.requests, record.model
        if record.user or record.refused_by is not None:
            metrics.users.count_request(record)
        if record.encode_s is not None:
            metrics.encode.seconds.observe(record.encode_s, model)
        if record.handoff:
            metrics.prefill.handoff_failures.labels(model, record.handoff).inc()
        if record.code == DEADLINE_MISSED:
            requests.deadline_refusals.labels(model).inc()
        if record.unreached is not None:
            requests.moved.labels(model).inc()
        if record.served_by:
            requests.misrouted.labels(model).inc()
        if decision is not None and decision.session is not None:
            requests.sessions.count(model, decision.session)


def _describe_end(record: RequestRecord, decision: Decision | None) -> tuple[str, ...]:
    """Return the labels under which the end of a request counts."""
    kind = ""
    if decision is not None:
        kind = _AGGREGATED if record.aggregated else _DISAGGREGATED
    status = "" if record.status is None else str(record.status)
    return record.model, record.outcome or "", status, kind, record.aggregated
