"""Numbers and a log line for every request."""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.scrape_stats import ScrapeStats
from pdrouter.routing.decision import DecisionKind
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.refusals import DEADLINE_MISSED
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.serving.tokenizers import TokenizerStats
from pdrouter.serving.trace import RequestTrace
from pdrouter.settings.choices import NO_OBSERVATION, TokenObservation
from pdrouter.telemetry.aibrix_metrics import AibrixMetrics
from pdrouter.telemetry.bodies import BodyMetrics
from pdrouter.telemetry.decisions import DecisionLog
from pdrouter.telemetry.descriptions import (
    describe_answer,
    describe_choice,
    describe_request,
)
from pdrouter.telemetry.held_lines import HeldLines
from pdrouter.telemetry.metrics import Metrics
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.redis.stats import LinkStats

log = logging.getLogger("pdrouter.request")

TakeTrace: TypeAlias = Callable[[RequestRecord, RequestTrace], None]
"""Takes the trace of a request that has ended."""

_LOUD = frozenset({Outcome.FAILED, Outcome.PROTOCOL_ERROR})
_PREFLIGHT = "cors_response"
"""What Envoy calls its answer to a browser's question whether a page may ask: it is no request."""
_TOLD_OF = frozenset({Outcome.OK, Outcome.CLIENT_LEFT})
"""How requests end whose answers Envoy's access log has more to say of."""


class RequestTelemetry:
    """Counts requests and writes one line for each at its end.

    Attributes:
        metrics: the metrics of the process.
        open: records of the requests that have not ended, by request id.
        decisions: the last decisions.
    """

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        watches: Callable[[], Mapping[str, ReflectorStats]] = dict,
        kept_decisions: int = 100,
        *,
        gateway_pod: str | None = None,
        scrapes: ScrapeStats | None = None,
        tokenizers: TokenizerStats | None = None,
        log_entries: Mapping[str, int] = MappingProxyType({}),
        failures: FailureMemory | None = None,
        wanted: PodsWanted | None = None,
        bodies: HeldBodies | None = None,
        trace: TakeTrace | None = None,
        redis: LinkStats | None = None,
        keys: KeysFile | None = None,
        observation: TokenObservation = NO_OBSERVATION,
    ) -> None:
        """Start with no requests.

        Args:
            cache: the pods, for metrics.
            ledger: work in flight, for metrics.
            watches: gives what the reflectors of Kubernetes objects have met, for metrics.
            kept_decisions: how many decisions are kept for `/debug/decisions`.
            gateway_pod: name of the router's own pod, for metrics; None for the host's name.
            scrapes: what scraping engines has met, for metrics; None where they are not scraped.
            tokenizers: what counting prompts' tokens has met; None where they are not counted.
            log_entries: entries of Envoy's access log by what became of them, for metrics.
            failures: which pods have failed of late, for metrics.
            wanted: tells how many pods the load wants, for metrics; None where engines say nothing.
            bodies: the request bodies that wait, for metrics; None where nobody counts them.
            trace: takes the trace of a request that has ended; None where there are none.
            redis: what has become of calls to Redis, for metrics; None where no server is named.
            keys: the users of the file, for metrics; None for none.
            observation: who tells when the first token of an answer came, and of its tokens.
        """
        self.decisions = DecisionLog(kept_decisions)
        self._trace = trace
        self._observation = observation
        self._log_entries = log_entries
        self._held = HeldLines(self._write_line)
        self.open: dict[str, RequestRecord] = {}
        self.metrics = Metrics(
            cache,
            ledger,
            lambda: len(self.open),
            watches,
            scrapes=scrapes,
            tokenizers=tokenizers,
            log_entries=log_entries,
            failures=failures,
            redis=redis,
            keys=keys,
            wanted=wanted,
        )
        self._aibrix = AibrixMetrics(cache, ledger, self.open.values(), gateway_pod)
        self.metrics.add(self._aibrix)
        self.metrics.add(BodyMetrics(bodies or HeldBodies(0, 0)))

    def request_started(self, record: RequestRecord) -> None:
        """Note an open request."""
        self.open[record.request_id] = record
        self._aibrix.request_started()

    def request_routed(self, record: RequestRecord) -> None:
        """Count the time to choose, keep the decision, and log it at debug level."""
        self.decisions.note(record)
        self._aibrix.request_routed(record)
        if record.routing_s is not None:
            self.metrics.requests.routing_seconds.observe(record.routing_s)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("routed", extra={"fields": describe_choice(record)})

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        """Count a try of a side leg."""
        self._aibrix.leg_attempted(record, attempt)
        encodes = attempt.leg is Leg.ENCODE
        metrics = self.metrics.encode if encodes else self.metrics.prefill
        metrics.attempts.count(record.model)
        if attempt.stale_connections:
            metrics.stale_connections.inc(attempt.stale_connections)
        if attempt.failure is not None:
            metrics.failures.labels(record.model, attempt.failure).inc()
        elif attempt.status is not None and attempt.status >= 400:
            metrics.refusals.labels(record.model, str(attempt.status)).inc()

    def leg_retried(self, record: RequestRecord) -> None:
        """Count where a prefill leg is tried again, or that it may not be."""
        self.metrics.prefill.retries.labels(record.model, record.retries[-1]).inc()
        self._aibrix.leg_retried(record)

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        """Count an answer's tokens and times; say if another pod than the chosen one gave it.

        Envoy's access log tells of answers after their end: their requests' lines wait for that.
        Where it tells another router, what was counted has a line of its own.
        """
        self.metrics.tokens.count(report, pod)
        self.metrics.users.count_answer(report)
        self._aibrix.answer_reported(report, pod)
        request = report.request
        record = self.open.get(request.request_id)
        held = None if record is not None else self._held.take(request.request_id)
        record = record or held or self.decisions.find(request.request_id)
        if record is not None:
            record.note_answer(report.usage, report.first_token_s)
        if held is not None:
            self._write_line(held)
        elif self._has_line(request.request_id, report):
            _write(logging.INFO, "answer", describe_answer(report, pod))
        if report.misrouted:
            self.metrics.requests.misrouted.labels(request.model).inc()
            fields = {
                "request_id": request.request_id,
                "model": request.model,
                "chosen": request.endpoint,
                "served_by": report.served_by,
            }
            log.warning("served elsewhere", extra={"fields": fields})

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        """Count blocks that nobody fetches."""
        self.metrics.prefill.releases.labels(outcome).inc()

    def priority_refused(self, model: str) -> None:
        """Count an engine's refusal of a priority."""
        self.metrics.prefill.priority_refusals.labels(model).inc()

    def turn_came(self, model: str, line: str, seconds: float) -> None:
        """Count the time for which a request has waited for its turn."""
        self.metrics.turns.seconds.observe(seconds, model, line)

    def turn_refused(self, model: str, line: str, reason: str) -> None:
        """Count a request that has not had its turn."""
        self.metrics.turns.refusals.count(model, line, reason)

    def prefixes_corrected(self, record: RequestRecord) -> None:
        """Count the blocks of prompts of which the index of prefixes was wrong."""
        corrections = self.metrics.prefill.prefix_corrections
        for result, blocks in (("gone", record.prefixes_gone), ("found", record.prefixes_found)):
            if blocks:
                corrections.labels(record.model, result).inc(blocks)

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request that has ended, and write its line."""
        self.open.pop(record.request_id, None)
        self._count(record)
        self._aibrix.request_finished(record)
        trace = record.trace
        if trace is not None and trace.own.sampled and self._trace is not None:
            self._trace(record, trace)
        if self._expects_answer(record):
            self._held.hold(record)
        else:
            self._write_line(record)

    def _has_line(self, request_id: str, report: AnswerReport) -> bool:
        """Return whether an answer has a line of its own, since that of its request is written."""
        told = report.usage is not None or report.first_token_s is not None
        return told and request_id not in self.open and log.isEnabledFor(logging.INFO)

    def close(self) -> None:
        """Write the lines that wait."""
        self._held.close()

    def _expects_answer(self, record: RequestRecord) -> bool:
        """Return whether Envoy, which has told this router of others, will tell of its answer."""
        observation = self._observation
        if record.outcome not in _TOLD_OF or not record.forwarded:
            return False
        if not observation.access_log or not self._log_entries.get("counted"):
            return False
        if record.stream and record.first_token_s is None:
            return True
        return observation.counts and record.output_tokens is None

    def _write_line(self, record: RequestRecord) -> None:
        level = logging.WARNING if record.outcome in _LOUD else logging.INFO
        if record.local_reply == _PREFLIGHT:
            level = logging.DEBUG
        if log.isEnabledFor(level):
            fields = describe_request(record)
            if log.isEnabledFor(logging.DEBUG):
                fields["steps_ms"] = record.steps.describe()
            _write(level, "request", fields)

    def _count(self, record: RequestRecord) -> None:
        self.metrics.users.count_request(record)
        metrics, prefill, model = self.metrics.requests, self.metrics.prefill, record.model
        status = "" if record.status is None else str(record.status)
        metrics.ended.count(model, record.outcome or "", status)
        metrics.overhead_seconds.observe(record.overhead_s)
        metrics.seconds.observe(record.total_s, model)
        if record.headers_s is not None:
            metrics.headers_seconds.observe(record.headers_s, model)
        if record.encode_s is not None:
            self.metrics.encode.seconds.observe(record.encode_s, model)
        if record.prefill_attempts:
            prefill.seconds.observe(record.prefill_s, model)
        if record.handoff:
            prefill.handoff_failures.labels(model, record.handoff).inc()
        if record.code == DEADLINE_MISSED:
            metrics.deadline_refusals.labels(model).inc()
        if record.unreached is not None:
            metrics.moved.labels(model).inc()
        if record.served_by:
            metrics.misrouted.labels(model).inc()
        decision = record.standing_decision
        if decision is not None:
            if decision.session is not None:
                metrics.sessions.count(model, decision.session)
            kind = DecisionKind.AGGREGATED if record.aggregated else DecisionKind.DISAGGREGATED
            metrics.decisions.count(model, kind, record.aggregated)


def _write(level: int, event: str, fields: Mapping[str, Any]) -> None:
    # To look for the caller would take as long as all the rest of the line.
    extra = {"fields": fields}
    log.handle(log.makeRecord(log.name, level, "", 0, event, (), None, extra=extra))
