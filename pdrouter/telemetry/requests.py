"""Numbers and a log line for every request."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.pods_wanted import PodsWanted
from pdrouter.load.scrape_stats import ScrapeStats
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.serving.tokenizers import TokenizerStats
from pdrouter.serving.trace import RequestTrace
from pdrouter.settings.choices import NO_OBSERVATION, TokenObservation
from pdrouter.telemetry.aibrix_metrics import AibrixMetrics
from pdrouter.telemetry.bodies import BodyMetrics
from pdrouter.telemetry.decisions import DecisionLog
from pdrouter.telemetry.held_lines import HeldLines
from pdrouter.telemetry.metrics import Metrics
from pdrouter.telemetry.request_counts import RequestCounts, Routed
from pdrouter.telemetry.request_lines import RequestLines
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.redis.stats import LinkStats

log = logging.getLogger("pdrouter.request")

TakeTrace: TypeAlias = Callable[[RequestRecord, RequestTrace], None]
"""Takes the trace of a request that has ended."""

_ENCODE = Leg.ENCODE
_TOLD_OF = frozenset({Outcome.OK, Outcome.CLIENT_LEFT})
"""How requests end whose answers Envoy's access log has more to say of."""

MOST_WAITING = 32
"""Requests that wait to be counted: so many hold the loop for less than a millisecond."""
WAIT_S = 0.03
"""How long one waits for others."""


class RequestTelemetry:
    """Counts requests and writes one line for each at its end.

    What is told of requests waits a moment, so that many are counted and described at once: that
    costs each of them less. Who looks at what is counted calls `flush` first.

    Attributes:
        metrics: the metrics of the process.
        open: records of the requests that have not ended, by request id.
        decisions: the last decisions.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _timer: asyncio.TimerHandle | None = None

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
        self._held = HeldLines(self._write_held)
        self._lines = RequestLines()
        self._routed, self._ended = list[Routed](), list[RequestRecord]()
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
        self._aibrix = AibrixMetrics(cache, ledger, self.open.values(), self.metrics, gateway_pod)
        self._counts = RequestCounts(self.metrics, self._aibrix)
        for more in (self._aibrix, BodyMetrics(bodies or HeldBodies(0, 0))):
            self.metrics.add(more)

    def start(self) -> None:
        """Count and write what waits in time, from now on, on the event loop that runs."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Count and write all that waits."""
        self._loop = None
        self.flush()
        self._held.close()
        self.flush()

    def flush(self) -> None:
        """Count what waits to be counted, and write the lines that wait for nothing else."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._count_routed()
        ended, self._ended = self._ended, []
        self._counts.count_ended(ended)
        for record in ended:
            if not (self._expects_answer(record) and self._held.hold(record)):
                self._lines.tell_request(record)
        self._lines.write()

    def request_started(self, record: RequestRecord) -> None:
        """Note an open request."""
        self.open[record.request_id] = record
        self._aibrix.request_started()

    def request_routed(self, record: RequestRecord) -> None:
        """Count the time to choose, keep the decision, and log it at debug level."""
        self.decisions.note(record)
        self._routed.append(Routed(record, record.decision, record.routing_s))
        self._lines.tell_choice(record)
        if len(self._routed) >= MOST_WAITING:
            self._count_routed()  # No more, in the midst of a request: it is time of its own.

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        """Count a try of a side leg."""
        legs = self.metrics.encode if attempt.leg is _ENCODE else self.metrics.prefill
        legs.count(record.model, attempt)

    def leg_retried(self, record: RequestRecord) -> None:
        """Count where a prefill leg is tried again, or that it may not be."""
        self.metrics.prefill.retries.labels(record.model, record.retries[-1]).inc()
        self._aibrix.leg_retried(record)

    def answer_reported(self, report: AnswerReport, pod: Pod | None) -> None:
        """Count an answer's tokens and times; say if another pod than the chosen one gave it.

        Envoy's access log tells of answers after their end: their requests' lines wait for that.
        Where it tells another router, what was counted has a line of its own.
        """
        request = report.request
        self.metrics.tokens.count(report, pod)
        if request.user:
            self.metrics.users.count_answer(report)
        self._aibrix.answer_reported(report, pod)
        record = self.open.get(request.request_id)
        if record is None:
            self._note_late_answer(report, pod)
        else:
            record.note_answer(report.usage, report.first_token_s)
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
        self._ended.append(record)
        trace = record.trace
        if trace is not None and trace.own.sampled and self._trace is not None:
            self._trace(record, trace)
        self._flush_soon(len(self._ended))

    def _count_routed(self) -> None:
        routed, self._routed = self._routed, []
        self._counts.count_routed(routed)

    def _note_late_answer(self, report: AnswerReport, pod: Pod | None) -> None:
        """Note what is told of the answer to a request that has ended, here or elsewhere."""
        if self._ended:
            self.flush()  # It may be among them.
        request_id = report.request.request_id
        held = self._held.take(request_id)
        record = held or self.decisions.find(request_id)
        if record is not None:
            record.note_answer(report.usage, report.first_token_s)
        if held is None:
            self._lines.tell_answer(report, pod)
        else:
            self._lines.tell_request(held)
        self._flush_soon(len(self._lines))

    def _write_held(self, record: RequestRecord) -> None:
        self._lines.tell_request(record)
        self._flush_soon(len(self._lines))

    def _flush_soon(self, waiting: int) -> None:
        """Flush now if so many wait, or else in time."""
        if waiting >= MOST_WAITING:
            self.flush()
        elif waiting and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(WAIT_S, self.flush)

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
