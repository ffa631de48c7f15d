"""Requests and answers in words: the fields of log lines and of debug pages.

Bodies, prompts and keys are not among them.
"""

from typing import Any, Protocol

from pdrouter.cluster.pods import Pod
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Decision
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.record import RequestRecord, describe_decision
from pdrouter.telemetry.attempts import describe_failed_attempts


def describe_request(record: RequestRecord) -> dict[str, Any]:
    """Return the fields of a request's log line."""
    decision, prefill_pod = record.standing_decision, record.prefill_pod
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "client_request_id": record.client_request_id,
        "method": record.method,
        "path": record.path[:200],
        "model": record.model,
        "stream": record.stream,
        "body_bytes": record.body_bytes,
        "outcome": record.outcome,
        "status": record.status,
        "strategy": record.strategy,
        "decision": describe_decision(record) if decision else "",
        "prefill_pod": prefill_pod.name if prefill_pod else None,
        "decode_pod": decision.last.pod.name if decision else None,
        "prefill_attempts": record.prefill_attempts,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "routing_ms": _milliseconds(record.routing_s),
        "predicted_prefill_ms": _milliseconds(record.predicted_prefill_s),
        "prefill_ms": _milliseconds(record.prefill_s),
        "overhead_ms": _milliseconds(record.overhead_s),
        "headers_ms": _milliseconds(record.headers_s),
        "first_token_ms": _milliseconds(record.first_token_s),
        "total_ms": _milliseconds(record.total_s if record.outcome else None),
    }
    if record.trace is not None:
        fields["trace_id"] = f"{record.trace.own.trace_id:032x}"
    if record.user:
        fields["user"] = record.user
    if record.queued_s:
        fields["queue_ms"] = _milliseconds(record.queued_s)
    if record.deadline is not None:
        fields |= describe_deadline(record.deadline, record)
    if decision is not None and (decision.session is not None or decision.encode):
        _add_session_and_media(fields, decision, record)
    _add_troubles(fields, record)
    return fields


def _add_session_and_media(
    fields: dict[str, Any], decision: Decision, record: RequestRecord
) -> None:
    if decision.session is not None:
        fields["session"] = decision.session
    if decision.encode:
        fields |= {
            "encoded_items": len(decision.encode),
            "encode_attempts": record.encode_attempts,
            "encode_ms": _milliseconds(record.encode_s),
        }


def _add_troubles(fields: dict[str, Any], record: RequestRecord) -> None:
    """Add what has not gone as it was meant to, and where to."""
    failed = describe_failed_attempts(record)
    if failed:
        fields["failed_attempts"] = failed
    if record.kv_source is not None:
        fields["kv_source_pod"] = record.kv_source.name
    if record.retries:
        fields["retries"] = record.retries
    if record.unreached is not None:
        fields["unreached_pod"] = record.unreached.name
    if record.served_by:
        fields["served_by"] = record.served_by
    if record.local_reply:
        fields["local_reply"] = record.local_reply[:200]
    if record.code or record.message:
        fields |= {"error_code": record.code, "error": record.message}


def describe_answer(report: AnswerReport, pod: Pod | None) -> dict[str, Any]:
    """Return the fields of the line for an answer that is told of after its request's line."""
    request = report.request
    return {
        "request_id": request.request_id,
        "client_request_id": request.client_request_id,
        "model": request.model,
        "stream": request.stream,
        "status": report.status,
        "pod": report.served_by if pod is None else pod.name,
        **_describe_tokens(report.usage),
        "first_token_ms": _milliseconds(report.first_token_s),
        "inter_token_ms": _milliseconds(report.inter_token_s),
    }


def describe_result(record: RequestRecord) -> dict[str, Any]:
    """Return what came of a request so far."""
    corrected = {"prefixes_gone": record.prefixes_gone, "prefixes_found": record.prefixes_found}
    return {
        "outcome": record.outcome,
        "status": record.status,
        **_describe_tokens(record),
        **{name: blocks for name, blocks in corrected.items() if blocks},
        "predicted_prefill_ms": _milliseconds(record.predicted_prefill_s),
        "prefill_ms": _milliseconds(record.prefill_s),
        "headers_ms": _milliseconds(record.headers_s),
        "first_token_ms": _milliseconds(record.first_token_s),
        "total_ms": _milliseconds(record.total_s if record.outcome else None),
    }


def describe_deadline(deadline: Deadline, record: RequestRecord) -> dict[str, Any]:
    """Return when a request's first token was due, and who was told."""
    return {
        "target_ms": _milliseconds(deadline.target_s),
        "target_source": deadline.source or "default",
        "priority": record.priority,
        "priority_legs": record.ranked_legs,
    }


def describe_choice(record: RequestRecord) -> dict[str, Any]:
    """Return what was chosen, in short."""
    fields: dict[str, Any] = {"request_id": record.request_id, "reason": record.aggregated}
    decision = record.decision
    if decision is not None:
        if decision.ways is not None:
            fields["ways"] = decision.ways.describe()
        for choice in decision.legs:
            fields[choice.leg] = {
                "pod": choice.pod.name,
                "policy": choice.policy,
                "score": choice.score,
                "candidates": len(choice.candidates),
            }
    return fields


class _Counted(Protocol):
    @property
    def prompt_tokens(self) -> int | None: ...

    @property
    def cached_tokens(self) -> int | None: ...

    @property
    def output_tokens(self) -> int | None: ...


def _describe_tokens(counted: _Counted | None) -> dict[str, int | None]:
    if counted is None:
        return dict.fromkeys(("prompt_tokens", "cached_tokens", "output_tokens"))
    return {
        "prompt_tokens": counted.prompt_tokens,
        "cached_tokens": counted.cached_tokens,
        "output_tokens": counted.output_tokens,
    }


def _milliseconds(seconds: float | None) -> float | None:
    # To round to a number of digits takes several times as long.
    return None if seconds is None else round(seconds * 1_000_000) / 1000
