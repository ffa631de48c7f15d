"""What is counted and written for each request."""

import asyncio
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any

import pytest
from factories import make_attempt, make_decision, make_pod, make_record, make_steps
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from pdrouter import __version__
from pdrouter.cluster.pods import Role
from pdrouter.cluster.reflector_stats import ReflectorStats
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.openai.usage import Usage
from pdrouter.routing.session_affinity import SessionOutcome
from pdrouter.serving.answers import AnswerReport, RoutedRequest
from pdrouter.serving.record import Outcome, RequestRecord, Retry, describe_decision
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.settings.choices import FIRST_TOKEN
from pdrouter.telemetry.descriptions import describe_request
from pdrouter.telemetry.held_lines import HeldLines
from pdrouter.telemetry.logs import (
    MAX_WAITING_LINES,
    JsonFormatter,
    join_lines,
    log_to_stdout,
    write_lines,
)
from pdrouter.telemetry.requests import MOST_WAITING, RequestTelemetry

P = make_pod("p0", Role.PREFILL)
D = make_pod("d0", Role.DECODE)


def create_telemetry(
    ledger: Ledger | None = None, cache: PodCache | None = None
) -> RequestTelemetry:
    return RequestTelemetry(cache or PodCache(), ledger or Ledger())


def read_metrics(
    telemetry: RequestTelemetry,
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    telemetry.flush()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(telemetry.metrics.render().decode())
        for sample in family.samples
    }


def value(telemetry: RequestTelemetry, name: str, **labels: str) -> float | None:
    return read_metrics(telemetry).get((name, frozenset(labels.items())))


def finish(telemetry: RequestTelemetry, **changes: Any) -> RequestRecord:
    record = make_record(**{"outcome": Outcome.OK, "status": 200, "model": "m", **changes})
    telemetry.request_started(record)
    telemetry.request_finished(record)
    telemetry.flush()
    return record


# --- Metrics ---


def test_an_open_request_is_in_flight_until_it_ends() -> None:
    telemetry = create_telemetry()
    records = [make_record(request_id=f"r{number}") for number in range(3)]
    for record in records:
        telemetry.request_started(record)
    assert value(telemetry, "pdrouter_requests_in_flight") == 3
    assert list(telemetry.open.values()) == records
    for record in records:
        telemetry.request_finished(record)
    assert value(telemetry, "pdrouter_requests_in_flight") == 0
    assert telemetry.open == {}


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_counted(outcome: Outcome) -> None:
    telemetry = create_telemetry()
    finish(telemetry, outcome=outcome, status=None, model="")
    labels = {"model": "", "outcome": outcome.value, "status": ""}
    assert value(telemetry, "pdrouter_requests_total", **labels) == 1


def test_requests_are_counted_by_model_outcome_and_status() -> None:
    telemetry = create_telemetry()
    finish(telemetry)
    finish(telemetry)
    finish(telemetry, status=404, outcome=Outcome.ENGINE_ERROR)
    ok = {"model": "m", "outcome": "ok", "status": "200"}
    assert value(telemetry, "pdrouter_requests_total", **ok) == 2
    error = {"model": "m", "outcome": "engine-error", "status": "404"}
    assert value(telemetry, "pdrouter_requests_total", **error) == 1


def test_times_are_histograms_in_seconds() -> None:
    telemetry = create_telemetry()
    finish(
        telemetry,
        total_s=3.0,
        headers_s=0.3,
        overhead_s=0.0004,
        steps=make_steps(prefill=0.25),
        attempts=[make_attempt(P)],
    )
    by_model = {
        "pdrouter_request_seconds": 3.0,
        "pdrouter_response_headers_seconds": 0.3,
        "pdrouter_prefill_seconds": 0.25,
    }
    for name, seconds in by_model.items():
        assert value(telemetry, f"{name}_count", model="m") == 1
        assert value(telemetry, f"{name}_sum", model="m") == seconds
        assert value(telemetry, f"{name}_bucket", model="m", le="+Inf") == 1
        assert value(telemetry, f"{name}_bucket", model="m", le="0.005") == 0
    assert value(telemetry, "pdrouter_overhead_seconds_sum") == 0.0004
    assert value(telemetry, "pdrouter_overhead_seconds_bucket", le="0.0003") == 0
    assert value(telemetry, "pdrouter_overhead_seconds_bucket", le="0.0005") == 1


def test_what_did_not_happen_has_no_time() -> None:
    telemetry = create_telemetry()
    finish(telemetry, headers_s=None)
    assert value(telemetry, "pdrouter_response_headers_seconds_count", model="m") is None
    assert value(telemetry, "pdrouter_prefill_seconds_count", model="m") is None
    assert value(telemetry, "pdrouter_routing_seconds_count") == 0


@pytest.mark.parametrize(
    ("prefill", "aggregated", "kind"),
    [(P, "", "disaggregated"), (None, "n", "aggregated"), (P, "prefill-failed", "aggregated")],
)
def test_decisions_are_counted_as_they_turned_out(prefill: Any, aggregated: str, kind: str) -> None:
    telemetry = create_telemetry()
    decision = make_decision(prefill, D)
    finish(telemetry, decision=decision, aggregated=aggregated, forwarded=True)
    labels = {"model": "m", "decision": kind, "reason": aggregated}
    assert value(telemetry, "pdrouter_decisions_total", **labels) == 1


def test_what_becomes_of_a_session_is_counted_and_told() -> None:
    telemetry = create_telemetry()
    decision = structs.replace(make_decision(P, D), session=SessionOutcome.AWAY)
    record = finish(telemetry, decision=decision, forwarded=True)
    name = "pdrouter_session_requests_total"
    assert value(telemetry, name, model="m", outcome="away") == 1
    assert describe_request(record)["session"] == "away"
    finish(telemetry, decision=make_decision(P, D), forwarded=True)
    assert [key for key, _ in read_metrics(telemetry)].count(name) == 1


def test_a_decision_that_was_not_carried_out_is_neither_counted_nor_told() -> None:
    telemetry = create_telemetry()
    record = finish(telemetry, decision=make_decision(P, D), status=502, outcome=Outcome.FAILED)
    assert not [name for name, _ in read_metrics(telemetry) if name == "pdrouter_decisions_total"]
    fields = describe_request(record)
    assert (fields["decision"], fields["decode_pod"]) == ("", None)


def test_a_request_without_a_decision_counts_as_none() -> None:
    telemetry = create_telemetry()
    finish(telemetry)
    assert not [name for name, _ in read_metrics(telemetry) if name == "pdrouter_decisions_total"]


def test_a_failed_hand_over_is_counted_with_its_reason() -> None:
    telemetry = create_telemetry()
    finish(telemetry, handoff="null-params")
    labels = {"model": "m", "reason": "null-params"}
    assert value(telemetry, "pdrouter_handoff_failures_total", **labels) == 1


@pytest.mark.parametrize("outcome", ReleaseOutcome)
def test_a_release_is_counted_by_its_outcome(outcome: ReleaseOutcome) -> None:
    telemetry = create_telemetry()
    telemetry.release_ended(outcome)
    assert value(telemetry, "pdrouter_releases_total", outcome=outcome.value) == 1


@pytest.mark.parametrize("failure", FailureKind)
def test_a_failed_try_of_the_prefill_leg_is_counted_with_its_reason(failure: FailureKind) -> None:
    telemetry = create_telemetry()
    record = make_record(model="m")
    telemetry.leg_attempted(record, make_attempt(P, status=None, failure=failure))
    assert value(telemetry, "pdrouter_prefill_attempts_total", model="m") == 1
    labels = {"model": "m", "reason": failure.value}
    assert value(telemetry, "pdrouter_prefill_failures_total", **labels) == 1


@pytest.mark.parametrize("retry", Retry)
def test_what_comes_of_a_failed_try_is_counted(retry: Retry) -> None:
    telemetry = create_telemetry()
    telemetry.leg_retried(make_record(model="m", retries=(Retry.SAME_ROLESET, retry)))
    counted = {
        dict(labels)["result"]: count
        for (name, labels), count in read_metrics(telemetry).items()
        if name == "pdrouter_prefill_retries_total"
    }
    assert counted == {retry: 1}


def test_a_refusal_is_no_failure() -> None:
    telemetry = create_telemetry()
    telemetry.leg_attempted(make_record(model="m"), make_attempt(P, status=422))
    assert value(telemetry, "pdrouter_prefill_attempts_total", model="m") == 1
    labels = {"model": "m", "status": "422"}
    assert value(telemetry, "pdrouter_prefill_refusals_total", **labels) == 1
    names = {name for name, _ in read_metrics(telemetry)}
    assert "pdrouter_prefill_failures_total" not in names


def test_a_try_that_went_well_is_neither() -> None:
    telemetry = create_telemetry()
    telemetry.leg_attempted(make_record(model="m"), make_attempt(P, stale_connections=1))
    assert value(telemetry, "pdrouter_prefill_attempts_total", model="m") == 1
    assert value(telemetry, "pdrouter_prefill_stale_connections_total") == 1
    names = {name for name, _ in read_metrics(telemetry)}
    assert not names & {"pdrouter_prefill_failures_total", "pdrouter_prefill_refusals_total"}


def test_time_to_choose_is_counted() -> None:
    telemetry = create_telemetry()
    telemetry.request_routed(make_record(steps=make_steps(route=0.00012)))
    telemetry.request_routed(make_record())
    assert value(telemetry, "pdrouter_routing_seconds_count") == 1
    assert value(telemetry, "pdrouter_routing_seconds_bucket", le="0.00015") == 1


def test_gauges_per_pod_follow_the_ledger_and_the_view() -> None:
    cache, ledger = PodCache(), Ledger()
    telemetry = create_telemetry(ledger, cache)
    assert value(telemetry, "pdrouter_pods_synced") == 0
    cache.replace([P, make_pod("d0", Role.DECODE, ready=False)])
    scopes: list[Scope] = [
        ledger.start(Leg.PREFILL, P.uid, 40),
        ledger.start(Leg.PREFILL, P.uid, 2),
    ]
    scopes.append(ledger.start(Leg.DECODE, D.uid))
    prefill = {"namespace": "default", "pod": "p0", "model": P.model, "role": "prefill"}
    decode = prefill | {"pod": "d0", "role": "decode"}

    def gauges() -> list[float | None]:
        return [
            value(telemetry, f"pdrouter_pod_{name}", **labels)
            for labels in (prefill, decode)
            for name in ("ready", "prefill_requests", "prefill_tokens", "decode_requests")
        ]

    assert value(telemetry, "pdrouter_pods_synced") == 1
    assert gauges() == [1, 2, 42, 0, 0, 0, 0, 1]
    for scope in scopes:
        scope.release()
    assert gauges() == [1, 0, 0, 0, 0, 0, 0, 0]
    cache.replace([])
    assert gauges() == [None] * 8


def test_watches_are_shown_as_they_stand() -> None:
    stats = ReflectorStats(synced=True, contact=time.monotonic(), lists=2, watches=3)
    stats.events["ADDED"] = 5
    stats.restarts["gone"] = 1
    watches = {"pods": stats, "models": ReflectorStats()}
    telemetry = RequestTelemetry(PodCache(), Ledger(), lambda: watches)
    assert value(telemetry, "pdrouter_kubernetes_synced", watch="pods") == 1
    assert value(telemetry, "pdrouter_kubernetes_synced", watch="models") == 0
    assert value(telemetry, "pdrouter_kubernetes_lists_total", watch="pods") == 2
    assert value(telemetry, "pdrouter_kubernetes_watches_total", watch="pods") == 3
    assert value(telemetry, "pdrouter_kubernetes_events_total", watch="pods", type="ADDED") == 5
    assert value(telemetry, "pdrouter_kubernetes_restarts_total", watch="pods", cause="gone") == 1
    staleness = "pdrouter_kubernetes_staleness_seconds"
    assert value(telemetry, staleness, watch="models") is None
    seconds = value(telemetry, staleness, watch="pods")
    assert seconds is not None
    assert seconds >= 0


def test_the_version_is_shown_and_every_metric_has_a_known_prefix_and_a_help_text() -> None:
    telemetry = create_telemetry()
    assert value(telemetry, "pdrouter_info", version=__version__) == 1
    for family in text_string_to_metric_families(telemetry.metrics.render().decode()):
        assert family.name.startswith(("pdrouter_", "gateway_", "pd_selected_"))
        assert len(family.documentation) > 10
        assert not family.name.endswith("_created")


# --- The log line ---


def full_record() -> RequestRecord:
    return make_record(
        client_request_id="c-1",
        method="POST",
        path="/v1/chat/completions",
        model="m",
        stream=True,
        body_bytes=123,
        strategy="pd",
        decision=make_decision(P, D),
        forwarded=True,
        prefill_pod=P,
        attempts=[
            make_attempt(P, status=None, failure=FailureKind.CONNECT),
            make_attempt(P),
        ],
        prompt_tokens=70,
        cached_tokens=64,
        output_tokens=5,
        predicted_prefill_s=0.45,
        steps=make_steps(route=0.0001234, prefill=0.5),
        overhead_s=0.0004,
        headers_s=0.6,
        first_token_s=0.65,
        total_s=2.0,
        status=200,
        outcome=Outcome.OK,
    )


def test_a_line_tells_the_whole_story() -> None:
    fields = describe_request(full_record())
    assert fields == {
        "request_id": "r-1",
        "client_request_id": "c-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "m",
        "stream": True,
        "body_bytes": 123,
        "outcome": "ok",
        "status": 200,
        "strategy": "pd",
        "decision": "disaggregated",
        "prefill_pod": "p0",
        "decode_pod": "d0",
        "prefill_attempts": 2,
        "prompt_tokens": 70,
        "cached_tokens": 64,
        "output_tokens": 5,
        "routing_ms": 0.123,
        "predicted_prefill_ms": 450.0,
        "prefill_ms": 500.0,
        "overhead_ms": 0.4,
        "headers_ms": 600.0,
        "first_token_ms": 650.0,
        "total_ms": 2000.0,
        "failed_attempts": [
            {
                "leg": "prefill",
                "pod": "p0",
                "address": "10.0.0.1:8000",
                "request_id": "id-1",
                "status": None,
                "failure": "connect",
                "message": "it was connect",
                "ms": 250.0,
            }
        ],
    }


def test_a_line_of_a_request_that_went_nowhere_has_the_same_fields() -> None:
    record = make_record(outcome=Outcome.REJECTED, status=404, code="unknown_path", message="no")
    fields = describe_request(record)
    assert fields["error_code"] == "unknown_path"
    assert fields["error"] == "no"
    assert fields["decision"] == ""
    assert fields["decode_pod"] is fields["prefill_pod"] is fields["routing_ms"] is None
    assert set(describe_request(full_record())) - set(fields) == {"failed_attempts"}


def make_report(record: RequestRecord, **changes: Any) -> AnswerReport:
    request = RoutedRequest.describe(record, generates=True)
    values = {"usage": Usage(70, 64, 5), "first_token_s": 0.65, "stream_s": 0.4, **changes}
    return AnswerReport(request, D.address, 200, **values)


def read_lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    return [(record.message, line) for record in caplog.records for line in vars(record)["lines"]]


def test_what_is_counted_of_an_open_request_is_in_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    telemetry = create_telemetry()
    record = make_record(outcome=Outcome.OK, status=200, stream=True)
    telemetry.request_started(record)
    telemetry.answer_reported(make_report(record), D)
    telemetry.request_finished(record)
    telemetry.flush()
    ((event, fields),) = read_lines(caplog)
    assert event == "request"
    counted = (fields["prompt_tokens"], fields["cached_tokens"], fields["output_tokens"])
    assert (*counted, fields["first_token_ms"]) == (70, 64, 5, 650.0)


@pytest.mark.parametrize(
    ("details", "level"),
    [("cors_response", logging.DEBUG), ("ext_authz_denied", logging.INFO), ("", logging.INFO)],
)
def test_a_preflight_is_counted_and_has_a_line_for_those_who_look_closely(
    details: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request of a web page has one, of which neither path nor method is known."""
    caplog.set_level(logging.DEBUG)
    telemetry = create_telemetry()
    telemetry.request_finished(
        make_record(model="", outcome=Outcome.LOCAL_REPLY, status=200, local_reply=details)
    )
    telemetry.flush()
    assert [record.levelno for record in caplog.records] == [level]
    page = telemetry.metrics.render().decode()
    assert 'pdrouter_requests_total{model="",outcome="local-reply",status="200"} 1.0' in page


async def test_a_line_waits_for_what_envoy_tells_of_its_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pdrouter.telemetry.held_lines.HOLD_S", 0.05)
    entries = {"counted": 0}
    telemetry = RequestTelemetry(PodCache(), Ledger(), log_entries=entries, observation=FIRST_TOKEN)

    def finish(request_id: str, **changes: object) -> RequestRecord:
        usual = {"forwarded": True, "outcome": Outcome.OK, "stream": True}
        record = make_record(request_id=request_id, **{**usual, **changes})
        telemetry.request_started(record)
        telemetry.request_finished(record)
        return record

    def list_lines() -> list[tuple[str, object]]:
        telemetry.flush()
        return [
            (fields["request_id"], fields["first_token_ms"]) for _, fields in read_lines(caplog)
        ]

    finish("before Envoy has told of any")
    telemetry.flush()
    entries["counted"] = 1
    finish("failed", outcome=Outcome.FAILED)
    finish("not streamed", stream=False)
    finish("answered by the router", forwarded=False)
    immediate = list_lines()
    assert len(immediate) == 4
    told, untold = finish("told"), finish("untold")
    finish("left", outcome=Outcome.CLIENT_LEFT)
    assert list_lines() == immediate
    telemetry.answer_reported(make_report(told), D)
    assert list_lines() == [*immediate, ("told", 650.0)]
    async with asyncio.timeout(5):
        while len(list_lines()) < len(immediate) + 3:
            await asyncio.sleep(0.01)
    assert list_lines()[-2:] == [("untold", None), ("left", None)]
    telemetry.answer_reported(make_report(untold), D)
    telemetry.flush()
    assert [event for event, _ in read_lines(caplog)][-1] == "answer"
    finish("at the end")
    telemetry.close()
    assert list_lines()[-1] == ("at the end", None)


async def test_no_more_lines_wait_than_there_is_room_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("pdrouter.telemetry.held_lines.MOST_HELD", 2)
    telemetry = RequestTelemetry(
        PodCache(), Ledger(), log_entries={"counted": 1}, observation=FIRST_TOKEN
    )
    for number in range(3):
        record = make_record(
            request_id=f"r-{number}", forwarded=True, outcome=Outcome.OK, stream=True
        )
        telemetry.request_finished(record)
    telemetry.flush()
    assert [fields["request_id"] for _, fields in read_lines(caplog)] == ["r-2"]
    telemetry.close()
    assert len(read_lines(caplog)) == 3


async def test_one_timer_lets_go_of_lines_however_many_are_held_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each further one would have set another, for as long as there is one to hold."""
    monkeypatch.setattr("pdrouter.telemetry.held_lines.HOLD_S", 0.0)
    written, timers = list[RequestRecord](), list[float]()

    def write(record: RequestRecord) -> None:
        written.append(record)
        if len(written) < 200:
            assert held.hold(make_record(request_id=f"later-{len(written)}"))

    held = HeldLines(write)
    set_timer = held._set_timer

    def count_timer(seconds: float) -> None:
        timers.append(seconds)
        set_timer(seconds)

    monkeypatch.setattr(held, "_set_timer", count_timer)
    for number in range(5):
        held.hold(make_record(request_id=f"r-{number}"))
    async with asyncio.timeout(60):
        while len(written) < 204:
            before = len(timers)
            await asyncio.sleep(0)
            assert len(timers) - before <= 1
    held.close()


@pytest.mark.parametrize("here", [True, False], ids=["same-router", "another"])
def test_what_is_told_after_a_requests_line_has_a_line_of_its_own(
    caplog: pytest.LogCaptureFixture, *, here: bool
) -> None:
    caplog.set_level(logging.INFO)
    telemetry = create_telemetry()
    record = make_record(
        client_request_id="c-1", model="m", stream=True, decision=make_decision(P, D)
    )
    if here:
        telemetry.request_started(record)
        telemetry.request_routed(record)
        telemetry.request_finished(record)
        telemetry.flush()
    caplog.clear()
    telemetry.answer_reported(make_report(record), D)
    telemetry.flush()
    assert read_lines(caplog) == [
        (
            "answer",
            {
                "request_id": "r-1",
                "client_request_id": "c-1",
                "model": "m",
                "stream": True,
                "status": 200,
                "pod": "d0",
                "prompt_tokens": 70,
                "cached_tokens": 64,
                "output_tokens": 5,
                "first_token_ms": 650.0,
                "inter_token_ms": 100.0,
            },
        )
    ]
    decisions = telemetry.decisions.describe("c-1")
    assert [decision["result"]["output_tokens"] for decision in decisions] == [5] * here


def test_an_answer_of_which_nothing_was_counted_has_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    report = make_report(make_record(), usage=None, first_token_s=None, stream_s=None)
    telemetry = create_telemetry()
    telemetry.answer_reported(report, None)
    telemetry.flush()
    assert not caplog.records


def test_a_long_path_is_cut() -> None:
    assert len(describe_request(make_record(path="/" + "x" * 10_000))["path"]) == 200


@pytest.mark.parametrize(
    ("decision", "aggregated", "expected"),
    [
        (None, "", ""),
        (make_decision(P, D), "", "disaggregated"),
        (make_decision(None, D, "n"), "n", "aggregated;reason=n"),
        (make_decision(P, D), "prefill-failed", "aggregated;reason=prefill-failed"),
    ],
)
def test_a_decision_is_described_as_the_header_gives_it(
    decision: Any, aggregated: str, expected: str
) -> None:
    record = make_record(decision=decision, aggregated=aggregated)
    assert describe_decision(record) == expected


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome.OK, logging.INFO),
        (Outcome.REJECTED, logging.INFO),
        (Outcome.CLIENT_LEFT, logging.INFO),
        (Outcome.FAILED, logging.WARNING),
        (Outcome.PROTOCOL_ERROR, logging.WARNING),
    ],
)
def test_each_request_leaves_one_line_at_the_level_of_its_outcome(
    outcome: Outcome, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pdrouter.request")
    record = finish(create_telemetry(), outcome=outcome)
    (line,) = caplog.records
    assert (line.levelno, line.getMessage()) == (level, "request")
    assert read_lines(caplog) == [("request", describe_request(record))]


async def test_requests_are_counted_and_told_of_soon(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    telemetry.start()
    telemetry.request_finished(make_record(outcome=Outcome.OK, request_id="one"))
    assert not caplog.records
    async with asyncio.timeout(60):
        while not caplog.records:
            await asyncio.sleep(0.001)
    counted = telemetry.metrics.render()
    assert b'pdrouter_requests_total{model="",outcome="ok",status=""} 1.0' in counted
    telemetry.request_finished(make_record(outcome=Outcome.OK, request_id="at the end"))
    telemetry.close()
    assert [fields["request_id"] for _, fields in read_lines(caplog)] == ["one", "at the end"]


def test_no_more_requests_wait_to_be_counted_than_are_counted_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    decision = make_decision(P, D)
    for number in range(MOST_WAITING):
        assert not caplog.records
        record = make_record(request_id=f"r-{number}", outcome=Outcome.OK, model="m")
        telemetry.request_finished(record)
    assert len(read_lines(caplog)) == MOST_WAITING
    for number in range(MOST_WAITING):
        steps = make_steps(route=0.001)
        telemetry.request_routed(
            make_record(request_id=f"r-{number}", decision=decision, steps=steps)
        )
    page = telemetry.metrics.render().decode()
    assert f"pdrouter_routing_seconds_count {MOST_WAITING}.0" in page
    assert f'status=""}} {MOST_WAITING}.0' in page


def test_a_request_that_is_routed_does_not_describe_those_that_have_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would take that for time of its own."""
    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    telemetry.request_finished(make_record(outcome=Outcome.OK))
    for _ in range(MOST_WAITING):
        telemetry.request_routed(make_record(steps=make_steps(route=0.001)))
    assert not caplog.records
    page = telemetry.metrics.render().decode()
    assert f"pdrouter_routing_seconds_count {MOST_WAITING}.0" in page


def test_lines_of_several_levels_are_written_in_their_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    outcomes = (Outcome.OK, Outcome.FAILED, Outcome.FAILED, Outcome.REJECTED)
    for number, outcome in enumerate(outcomes):
        telemetry.request_finished(make_record(request_id=f"r-{number}", outcome=outcome))
    telemetry.flush()
    assert [line.levelno for line in caplog.records] == [
        logging.INFO,
        logging.WARNING,
        logging.INFO,
    ]
    assert [fields["outcome"] for _, fields in read_lines(caplog)] == list(outcomes)


def test_a_line_has_the_time_at_which_its_request_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However long it has waited for others since then, or for what Envoy tells."""
    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    now = time.time()
    for number, ago_s in enumerate((3.0, 1.5)):
        began = time.perf_counter() - ago_s - 0.25
        record = make_record(
            request_id=f"r-{number}", outcome=Outcome.OK, began=began, total_s=0.25
        )
        telemetry.request_finished(record)
    telemetry.flush()
    (record_of_lines,) = caplog.records
    lines = map(json.loads, JsonFormatter().format_lines(record_of_lines))
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    assert times == pytest.approx([now - 3.0, now - 1.5], abs=0.5)


@pytest.mark.parametrize("fails", ["counting", "describing"])
def test_a_request_that_cannot_be_told_of_costs_no_other(
    fails: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: RequestRecord) -> dict[str, Any]:
        if record.request_id == "bad":
            raise ValueError("a bug")
        return {"request_id": record.request_id}

    caplog.set_level(logging.INFO, "pdrouter.request")
    telemetry = create_telemetry()
    if fails == "counting":
        monkeypatch.setattr(telemetry.metrics.users, "count_request", fail)
    else:
        monkeypatch.setattr("pdrouter.telemetry.request_lines.describe_request", fail)
    for name in ("before", "bad", "after"):
        record = make_record(request_id=name, outcome=Outcome.OK, model="m", user="u")
        telemetry.request_finished(record)
    telemetry.flush()
    failed, told = caplog.records
    assert (failed.levelno, vars(failed)["fields"]) == (logging.ERROR, {"request_id": "bad"})
    expected = ["before", "bad", "after"] if fails == "counting" else ["before", "after"]
    assert [fields["request_id"] for fields in vars(told)["lines"]] == expected
    assert value(telemetry, "pdrouter_request_seconds_count", model="m") == 3


def test_a_level_that_is_off_costs_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pdrouter.request")
    finish(create_telemetry())
    assert caplog.records == []


def test_the_choice_is_written_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pdrouter.request")
    telemetry = create_telemetry()
    telemetry.request_routed(make_record(decision=make_decision(P, D)))
    telemetry.request_routed(make_record(decision=make_decision(None, D, "n"), aggregated="n"))
    telemetry.request_routed(make_record())
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    decode = {"pod": "d0", "policy": "kv_capacity", "score": 2.0, "candidates": 3}
    prefill = {"pod": "p0", "policy": "ttft", "score": 0.0, "candidates": 1}
    assert fields == [
        {"request_id": "r-1", "reason": "", "prefill": prefill, "decode": decode},
        {"request_id": "r-1", "reason": "n", "decode": decode},
        {"request_id": "r-1", "reason": ""},
    ]


# --- Lines as JSON ---


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("pdrouter.test")
    yield logger
    logger.setLevel(logging.NOTSET)


def test_a_line_is_one_json_object(logger: logging.Logger) -> None:
    record = logger.makeRecord(
        logger.name,
        logging.INFO,
        "file",
        1,
        "it is %s\n",
        ("é",),
        None,
        extra={"fields": describe_request(full_record())},
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["event"] == "it is é\n"
    assert (line["level"], line["logger"]) == ("info", "pdrouter.test")
    assert line["time"].endswith("+00:00")
    assert line["failed_attempts"][0]["failure"] == "connect"


@settings(deadline=None)
@given(st.floats(0, 4e9))
@example(0.9999996)
@example(1_699_999_999.9999999)
@example(1_700_000_000.0009996)
def test_a_line_has_its_time_as_the_standard_library_writes_it(at: float) -> None:
    record = logging.makeLogRecord({"name": "pdrouter.test", "lines": [{}], "times": [at]})
    expected = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    assert json.loads(JsonFormatter().format(record))["time"] == expected


@pytest.mark.parametrize("odd", ["\udcff", 2**70, object()], ids=["text", "number", "object"])
def test_what_is_no_json_costs_no_line(odd: object, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, object]] = [{"n": 1}, {"n": odd}, {"n": 3}]
    with log_to_stdout("info"):
        log = logging.getLogger("pdrouter.test")
        write_lines(log, logging.INFO, "request", lines, [0.0, 1.0, 2.0])
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["time"][17:19] for line in written] == ["00", "01", "02"]
    assert written[1]["n"] in (odd, str(odd))


def test_an_exception_is_part_of_the_line(logger: logging.Logger) -> None:
    error = ValueError("inside")
    info = (type(error), error, None)
    record = logger.makeRecord(logger.name, logging.ERROR, "file", 1, "no", (), info)
    line = json.loads(JsonFormatter().format(record))
    assert "ValueError: inside" in line["exception"]


def test_lines_are_written_to_standard_output_before_the_context_ends(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_to_stdout("warning"):
        logger.info("unseen")
        logger.warning("seen", extra={"fields": {"a": 1}})
        logger.error("seen, too")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["seen", "seen, too"]
    assert lines[0]["a"] == 1


class StalledOutput(io.StringIO):
    """Takes no line before it is released; knows what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.released = threading.Event()
        self.texts: list[str] = []

    def write(self, text: str) -> int:
        self.asked.set()
        assert self.released.wait(60)
        self.texts.append(text)
        return super().write(text)


def test_lines_that_nobody_reads_are_dropped_and_counted(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = StalledOutput()
    monkeypatch.setattr("sys.stdout", output)
    telemetry = create_telemetry()
    name = "pdrouter_log_lines_dropped_total"
    assert value(telemetry, name) == 0
    with log_to_stdout("warning"):
        try:
            logger.warning("first")
            assert output.asked.wait(60)
            for number in range(MAX_WAITING_LINES + 7):
                logger.warning("line %d", number)
            assert value(telemetry, name) == 7
        finally:
            output.released.set()
    lines = [json.loads(line)["event"] for line in output.getvalue().splitlines()]
    assert lines == ["first", *(f"line {number}" for number in range(MAX_WAITING_LINES))]


def test_logging_goes_on_once_the_lines_are_read_again(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = StalledOutput()
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr("pdrouter.telemetry.logs.MAX_WAITING_LINES", 1)
    with log_to_stdout("warning"):
        try:
            logger.warning("first")
            assert output.asked.wait(60)
            logger.warning("waits")
            logger.warning("lost")
        finally:
            output.released.set()
        deadline = time.monotonic() + 60
        while "waits" not in output.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        logger.warning("last")
    events = [json.loads(line)["event"] for line in output.getvalue().splitlines()]
    assert events == ["first", "waits", "last"]


@pytest.mark.parametrize("shared", [False, True])
def test_lines_that_wait_are_written_at_once_unless_others_write_there_too(
    shared: bool, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = StalledOutput()
    monkeypatch.setattr("sys.stdout", output)
    with log_to_stdout("warning", shared=shared):
        try:
            logger.warning("first")
            assert output.asked.wait(60)
            for number in range(1000):
                logger.warning("line %d", number)
        finally:
            output.released.set()
    others = list(filter(None, output.texts[1:]))
    assert [json.loads(line)["event"] for line in "".join(others).splitlines()] == [
        f"line {number}" for number in range(1000)
    ]
    if shared:
        assert all(0 < len(text) <= PIPE_BUF for text in others)
    else:
        assert len(others) == 1


def test_logging_is_as_before_after_the_context() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with log_to_stdout("debug"):
        assert (root.level, len(root.handlers)) == (logging.DEBUG, len(before[1]) + 1)
    assert (root.level, root.handlers) == before


@given(st.lists(st.integers(0, 3 * PIPE_BUF), max_size=20))
def test_lines_of_several_workers_are_never_mixed(lengths: list[int]) -> None:
    """A pipe takes what is no longer than PIPE_BUF whole."""
    lines = ["ä" * (length // 2) + "\n" for length in lengths]
    texts = list(join_lines(lines))
    assert "".join(texts) == "".join(lines)
    for text in texts:
        assert text.endswith("\n")
        assert len(text.encode()) <= PIPE_BUF or text.count("\n") == 1


def test_lines_say_which_worker_wrote_them() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    assert json.loads(JsonFormatter(worker=2).format(record))["worker"] == 2
    assert "worker" not in json.loads(JsonFormatter().format(record))
