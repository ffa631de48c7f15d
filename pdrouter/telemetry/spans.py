"""The spans of a request, described from its record: names, times and attributes.

Names of attributes are those of OpenTelemetry's semantic conventions where these have one, and
begin with `pdrouter.` elsewhere. Bodies, prompts and keys are not among them.
"""

import time
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.record import Outcome, RequestRecord, describe_decision
from pdrouter.serving.trace import LegSpan, RequestTrace, create_span_id

Attributes: TypeAlias = dict[str, str | bool | int | float]

_OPERATIONS: Mapping[str, str] = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/completions": "text_completion",
        "/v1/responses": "chat",
        "/v1/messages": "chat",
        "/v1/embeddings": "embeddings",
    }
)
_UNANSWERED = frozenset({Outcome.CLIENT_LEFT, Outcome.PROTOCOL_ERROR})
_LEGS = frozenset(Leg)
_LONGEST_TEXT = 500


class SpanKind(Enum):
    """What a span stands for."""

    SERVER = auto()
    """A request that is served."""
    CLIENT = auto()
    """A request that is sent."""
    INTERNAL = auto()
    """What goes on in between."""


class SpanData(msgspec.Struct, frozen=True):
    """One span.

    Attributes:
        name: its name.
        kind: what it stands for.
        span_id: its id.
        parent_id: that of the span that it belongs to; None where it begins the trace.
        start_ns: when it began, in nanoseconds of the Unix epoch.
        end_ns: when it ended.
        attributes: what is said of it.
        events: names of what happened in it, with the times.
        error: what went wrong; None if nothing did.
    """

    name: str
    kind: SpanKind
    span_id: int
    parent_id: int | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: tuple[tuple[str, int], ...] = ()
    error: str | None = None


class _Clock:
    """Gives the time of day of performance counters' values, as it is when this is made."""

    def __init__(self) -> None:
        self._origin_ns = time.time_ns() - time.perf_counter_ns()

    def read(self, seconds: float) -> int:
        return self._origin_ns + int(seconds * 1e9)


def describe_spans(record: RequestRecord, trace: RequestTrace) -> Iterator[SpanData]:
    """Yield the spans of a request that has ended; its own first."""
    clock = _Clock()
    end = record.began + record.total_s
    yield _describe_request(record, trace, clock)
    for name, began, ended in record.steps.intervals or ():
        if name not in _LEGS:  # Of which each try has a span.
            yield SpanData(
                name,
                SpanKind.INTERNAL,
                create_span_id(),
                trace.own.span_id,
                clock.read(began),
                clock.read(ended),
                {},
            )
    for leg in trace.legs:
        yield SpanData(
            leg.leg,
            SpanKind.CLIENT,
            leg.span_id,
            trace.own.span_id,
            clock.read(leg.began),
            clock.read(end if leg.ended is None else leg.ended),
            _describe_try(leg),
            error=_describe_fault(leg.attempt),
        )
    if trace.last is not None:
        yield _describe_last(record, trace, trace.last, clock)


def _describe_request(record: RequestRecord, trace: RequestTrace, clock: _Clock) -> SpanData:
    operation = _OPERATIONS.get(record.path, "")
    name = " ".join(filter(None, [operation or record.method, record.model])) or "request"
    return SpanData(
        name,
        SpanKind.SERVER,
        trace.own.span_id,
        None if trace.parent is None else trace.parent.span_id,
        clock.read(record.began),
        clock.read(record.began + record.total_s),
        _keep_known(
            {
                "http.request.method": record.method,
                "url.path": record.path[:_LONGEST_TEXT],
                "http.response.status_code": record.status,
                "gen_ai.operation.name": operation,
                "error.type": _name_error(record),
                "pdrouter.request_id": record.request_id,
                "pdrouter.client_request_id": record.client_request_id,
                "pdrouter.stream": record.stream,
                "pdrouter.body_bytes": record.body_bytes,
                "pdrouter.outcome": record.outcome,
                **_describe_generation(record),
                **_describe_routing(record),
            }
        ),
        error=_describe_error(record),
    )


def _describe_generation(record: RequestRecord) -> dict[str, str | int | float | None]:
    return {
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.latency.time_to_first_token": record.first_token_s,
    }


def _describe_routing(record: RequestRecord) -> dict[str, str | int | float | None]:
    decision = record.standing_decision
    return {
        "pdrouter.strategy": record.strategy,
        "pdrouter.profile": record.profile,
        "pdrouter.decision": describe_decision(record) if decision else "",
        "pdrouter.prefill_pod": record.prefill_pod.name if record.prefill_pod else None,
        "pdrouter.decode_pod": decision.last.pod.name if decision else None,
        "pdrouter.kv_source_pod": record.kv_source.name if record.kv_source else None,
        "pdrouter.handoff": record.handoff,
        "pdrouter.retries": ",".join(record.retries),
        "pdrouter.predicted_prefill_seconds": record.predicted_prefill_s,
        "pdrouter.overhead_seconds": record.overhead_s,
        "pdrouter.unreached_pod": record.unreached.name if record.unreached else None,
        "pdrouter.served_by": record.served_by,
        "pdrouter.local_reply": record.local_reply[:_LONGEST_TEXT],
    }


def _describe_try(leg: LegSpan) -> Attributes:
    attempt = leg.attempt
    said: dict[str, str | bool | int | float | None] = {"pdrouter.unfinished": leg.ended is None}
    if attempt is not None:
        said |= {
            "pdrouter.request_id": attempt.request_id,
            "pdrouter.stale_connections": attempt.stale_connections or None,
            "http.response.status_code": attempt.status,
            "error.type": _name_fault(attempt),
        }
    return _keep_known({**_describe_target(leg.leg, leg.pod), **said})


def _describe_last(
    record: RequestRecord, trace: RequestTrace, leg: LegSpan, clock: _Clock
) -> SpanData:
    """Describe the leg that Envoy has sent: of it, only what the router sees is known."""
    began, decision = record.began, record.decision
    moved = None if record.unreached is None or decision is None else decision.last.pod
    failed = _is_error(record.status)
    seen = (("response headers", record.headers_s), ("first token", record.first_token_s))
    return SpanData(
        leg.leg,
        SpanKind.CLIENT,
        leg.span_id,
        trace.own.span_id,
        clock.read(leg.began),
        clock.read(began + record.total_s),
        _keep_known(
            {
                **_describe_target(leg.leg, moved or leg.pod),
                **_describe_generation(record),
                "http.response.status_code": record.status,
                "error.type": _name_error(record),
            }
        ),
        tuple((name, clock.read(began + seconds)) for name, seconds in seen if seconds is not None),
        _describe_error(record) or (f"status {record.status}" if failed else None),
    )


def _describe_target(leg: Leg, pod: Pod | None) -> dict[str, str | int | None]:
    if pod is None:
        return {"pdrouter.leg": leg}
    return {
        "server.address": pod.ip,
        "server.port": pod.port,
        "gen_ai.provider.name": pod.engine,
        "pdrouter.pod": pod.name,
        "pdrouter.leg": leg,
    }


def _name_fault(attempt: Attempt) -> str | None:
    """Return what kind of fault ended a try; None if there was none."""
    if attempt.failure is not None and attempt.status is None:
        return attempt.failure
    return str(attempt.status) if _is_error(attempt.status) else None


def _describe_fault(attempt: Attempt | None) -> str | None:
    if attempt is None or _name_fault(attempt) is None:
        return None
    return attempt.message[:_LONGEST_TEXT]


def _name_error(record: RequestRecord) -> str | None:
    if record.code:
        return record.code
    if _is_error(record.status):
        return str(record.status)
    return record.outcome if record.outcome in _UNANSWERED else None


def _describe_error(record: RequestRecord) -> str | None:
    """Return why a request has failed; None where it has not, or the client is why."""
    if record.outcome is Outcome.PROTOCOL_ERROR or (record.status or 0) >= 500:
        said = record.message or record.local_reply or f"status {record.status}"
        return said[:_LONGEST_TEXT]
    return None


def _is_error(status: int | None) -> bool:
    return status is not None and status >= 400


def _keep_known(attributes: Mapping[str, str | bool | int | float | None]) -> Attributes:
    """Return the attributes that say something."""
    return {
        name: value
        for name, value in attributes.items()
        if value is not None and value is not False and value != ""
    }
