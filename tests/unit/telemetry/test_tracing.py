"""What is told of a request in spans, and which requests are traced at all."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from factories import make_attempt, make_decision, make_pod, make_record
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from pdrouter.app import Application
from pdrouter.cluster.pods import Role
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.steps import Step, StepTimes
from pdrouter.serving.trace import RequestTrace, TraceParent
from pdrouter.settings import SettingInvalid, Settings
from pdrouter.telemetry import tracing
from pdrouter.telemetry.spans import SpanData, SpanKind, describe_spans
from pdrouter.telemetry.tracing import Tracing, choose_sampler

P, D = make_pod("p0", Role.PREFILL), make_pod("d0", Role.DECODE)
CLIENT = TraceParent(0xA1, 0xB1, sampled=True)
UNSAMPLED = CLIENT._replace(sampled=False)
GATEWAY = CLIENT._replace(span_id=0xC1)


@contextmanager
def run_tracing(exporter: Any, **settings: str) -> Iterator[Tracing]:
    running = Tracing(Settings.load(settings, {}), exporter)
    try:
        yield running
    finally:
        asyncio.run(running.close())


def begin(headers: dict[str, str], gateway: str = "", **settings: str) -> RequestTrace | None:
    with run_tracing(InMemorySpanExporter(), **settings) as running:
        return running.begin(headers, gateway)


def finished(**changes: Any) -> tuple[RequestRecord, RequestTrace]:
    """A request over two pods that has ended."""
    trace = RequestTrace(TraceParent(0xA1, 1, sampled=True), CLIENT, joined=True)
    record = make_record(
        **{
            "path": "/v1/chat/completions",
            "method": "POST",
            "model": "m",
            "outcome": Outcome.OK,
            "status": 200,
            "decision": make_decision(P, D),
            "forwarded": True,
            "prefill_pod": P,
            "prompt_tokens": 7,
            "output_tokens": 3,
            "headers_s": 1.0,
            "first_token_s": 1.5,
            "total_s": 2.0,
            "trace": trace,
            "steps": StepTimes(intervals=[]),
            **changes,
        }
    )
    return record, trace


def described(record: RequestRecord, trace: RequestTrace) -> dict[str, SpanData]:
    return {span.name: span for span in describe_spans(record, trace)}


# --- Which requests are traced ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", (int("a" * 32, 16), int("b" * 16, 16), True)),
        (f"00-{'a' * 32}-{'b' * 16}-00", (int("a" * 32, 16), int("b" * 16, 16), False)),
        (f"00-{'a' * 32}-{'b' * 16}-03", (int("a" * 32, 16), int("b" * 16, 16), True)),
        (f"cc-{'a' * 32}-{'b' * 16}-01-later", (int("a" * 32, 16), int("b" * 16, 16), True)),
        (f"00-{'a' * 32}-{'b' * 16}-01-more", None),
        (f"ff-{'a' * 32}-{'b' * 16}-01", None),
        (f"00-{'0' * 32}-{'b' * 16}-01", None),
        (f"00-{'a' * 32}-{'0' * 16}-01", None),
        (f"00-{'A' * 32}-{'b' * 16}-01", None),
        (f"00-{'a' * 32}-{'b' * 16}-01,00-{'a' * 32}-{'b' * 16}-01", None),
        ("00-1-2-03", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_w3c_has_it(text: str, expected: tuple[Any, ...]) -> None:
    assert TraceParent.parse(text) == expected


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_traceparent_that_is_written_is_read_as_it_was(
    trace_id: int, span_id: int, sampled: bool
) -> None:
    parent = TraceParent(trace_id, span_id, sampled)
    assert TraceParent.parse(str(parent)) == parent


@pytest.mark.parametrize(
    ("sampler", "share", "parent", "sampled"),
    [
        ("", "", None, True),
        ("", "", CLIENT, True),
        ("", "", UNSAMPLED, False),
        ("always_on", "", UNSAMPLED, True),
        ("always_off", "", CLIENT, False),
        ("parentbased_always_off", "", None, False),
        ("parentbased_always_off", "", CLIENT, True),
        ("traceidratio", "0", CLIENT, False),
        ("traceidratio", "", None, True),
        ("parentbased_traceidratio", "0", CLIENT, True),
        ("parentbased_traceidratio", "0", None, False),
        ("parentbased_traceidratio", "1", UNSAMPLED, False),
    ],
)
def test_the_sampler_decides_and_engines_are_told(
    sampler: str, share: str, parent: TraceParent | None, sampled: bool
) -> None:
    headers = {} if parent is None else {"traceparent": str(parent)}
    variables = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": share}
    trace = begin(headers, **variables)
    told = headers.get("traceparent", "") if trace is None else trace.send_last(D)
    read = TraceParent.parse(told)
    assert read is not None
    assert read.sampled is sampled
    assert parent is None or read.trace_id == parent.trace_id


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_a_share_takes_the_same_traces_as_the_samplers_of_other_programs(
    trace_id: int, share: float
) -> None:
    """Or a trace would have holes where several of them decide."""
    settings = Settings(traces_sampler="traceidratio", traces_sampler_share=share)
    theirs = TraceIdRatioBased(share).should_sample(None, trace_id, "x").decision
    assert choose_sampler(settings)(None, trace_id) == (theirs is Decision.RECORD_AND_SAMPLE)


def test_the_span_of_the_gateway_is_the_parent_where_there_is_one() -> None:
    trace = begin({"traceparent": str(CLIENT)}, str(GATEWAY))
    assert trace is not None
    assert trace.parent == GATEWAY
    assert trace.joined


def test_what_the_gateway_leaves_out_stays_out_for_engines() -> None:
    trace = begin({"traceparent": str(CLIENT)}, str(GATEWAY._replace(sampled=False)))
    assert trace is not None
    assert trace.send_last(D) == str(GATEWAY._replace(sampled=False))


def test_a_trace_that_begins_here_has_nothing_of_the_clients_state() -> None:
    trace = begin({"traceparent": "bad", "tracestate": "v=1"})
    assert trace is not None
    with trace.time_leg(Leg.PREFILL, P) as span:
        headers = trace.replace_headers({"tracestate": "v=1", "x": "y"}, span)
    assert headers == {"x": "y", "traceparent": trace.write_parent(span)}


# --- Spans ---


def test_a_request_over_two_pods_is_described_with_its_legs_and_steps() -> None:
    record, trace = finished(first_token_s=None, cached_tokens=0)
    with Step(record.steps, "parse"), trace.time_leg(Leg.PREFILL, P) as leg:
        leg.attempt = make_attempt(P)
    with Step(record.steps, Leg.PREFILL, waits=True):
        pass
    trace.send_last(D)
    assert trace.last is not None
    spans = list(describe_spans(record, trace))
    assert [(span.name, span.kind, span.span_id, span.parent_id) for span in spans] == [
        ("chat m", SpanKind.SERVER, 1, CLIENT.span_id),
        ("parse", SpanKind.INTERNAL, spans[1].span_id, 1),
        ("prefill", SpanKind.CLIENT, leg.span_id, 1),
        ("decode", SpanKind.CLIENT, trace.last.span_id, 1),
    ]
    request, parse, prefill, decode = spans
    assert parse.start_ns <= prefill.start_ns <= prefill.end_ns <= parse.end_ns
    assert request.end_ns - request.start_ns == pytest.approx(2e9, abs=1e3)
    assert request.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 3,
        "pdrouter.request_id": "r-1",
        "pdrouter.outcome": "ok",
        "pdrouter.decision": "disaggregated",
        "pdrouter.prefill_pod": "p0",
        "pdrouter.decode_pod": "d0",
        "pdrouter.body_bytes": 0,
        "pdrouter.overhead_seconds": 0.0,
    }
    assert prefill.attributes["server.address"] == P.ip
    assert prefill.attributes["http.response.status_code"] == 200
    assert [name for name, _ in decode.events] == ["response headers"]
    assert all(span.error is None for span in spans)


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (make_attempt(P, status=None, failure=FailureKind.TIMEOUT), "timeout"),
        (make_attempt(P, status=503, failure=FailureKind.STATUS), "503"),
        (make_attempt(P, status=400), "400"),
    ],
)
def test_a_try_that_fails_says_how(attempt: Any, kind: str) -> None:
    record, trace = finished()
    with trace.time_leg(Leg.PREFILL, P) as leg:
        leg.attempt = attempt
    span = described(record, trace)["prefill"]
    assert span.attributes["error.type"] == kind
    assert span.error == attempt.message


def test_a_try_that_has_failed_before_it_was_sent_has_a_span() -> None:
    record, trace = finished()
    trace.note_try(make_attempt(P, status=None, failure=FailureKind.CONNECT))
    span = described(record, trace)["prefill"]
    assert span.attributes["error.type"] == "connect"
    assert span.end_ns - span.start_ns == pytest.approx(0.25e9, abs=1e3)


def test_a_try_that_is_cut_off_has_a_span_all_the_same() -> None:
    record, trace = finished(outcome=Outcome.CLIENT_LEFT, status=None)
    with pytest.raises(asyncio.CancelledError), trace.time_leg(Leg.PREFILL, P):
        raise asyncio.CancelledError
    running = trace.time_leg(Leg.PREFILL, P)
    running.__enter__()
    cut, open_ = [span for span in describe_spans(record, trace) if span.name == "prefill"]
    assert "pdrouter.unfinished" not in cut.attributes
    assert open_.attributes["pdrouter.unfinished"] is True
    assert described(record, trace)["chat m"].attributes["error.type"] == "client-left"


@pytest.mark.parametrize(
    ("changes", "kind", "error"),
    [
        ({"outcome": Outcome.REJECTED, "status": 400, "code": "bad", "message": "no"}, "bad", None),
        ({"outcome": Outcome.FAILED, "status": 502, "code": "f", "message": "no"}, "f", "no"),
        ({"outcome": Outcome.ENGINE_ERROR, "status": 500}, "500", "status 500"),
        ({"outcome": Outcome.LOCAL_REPLY, "status": 503, "local_reply": "uf"}, "503", "uf"),
        (
            {"outcome": Outcome.PROTOCOL_ERROR, "status": None, "message": "m"},
            "protocol-error",
            "m",
        ),
    ],
)
def test_a_request_has_failed_where_the_client_is_not_why(
    changes: dict[str, Any], kind: str, error: str | None
) -> None:
    span = described(*finished(**changes))["chat m"]
    assert (span.attributes["error.type"], span.error) == (kind, error)


def test_spans_have_the_ids_that_engines_were_told() -> None:
    exporter = InMemorySpanExporter()
    record, trace = finished()
    told = TraceParent.parse(trace.send_last(D))
    with run_tracing(exporter) as running:
        running._provider.add_span_processor(SimpleSpanProcessor(exporter))
        running.take(record, trace)
        request, decode = exporter.get_finished_spans()
    assert (decode.context.trace_id, decode.context.span_id, True) == told
    assert decode.parent is not None
    assert decode.parent.span_id == request.context.span_id == trace.own.span_id
    assert request.parent is not None
    assert request.parent.span_id == CLIENT.span_id
    assert decode.end_time == pytest.approx(request.end_time, abs=1e5)
    assert [event.name for event in decode.events] == ["response headers", "first token"]
    assert request.resource.attributes["service.name"] == "pdrouter"


# --- Exporting ---


class StuckExporter:
    """A collector that takes for ever."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.release.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """There is nothing to close."""


def test_a_collector_that_hangs_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.01)
    exporter = StuckExporter()
    with run_tracing(exporter) as running:
        for _ in range(3000):
            running.take(*finished())
    exporter.release.set()
    assert [each.getMessage() for each in caplog.records][-1].startswith("the last traces")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 10.0),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "2500"}, 2.5),
        (
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "2500", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "5000"},
            5.0,
        ),
    ],
)
def test_times_to_the_collector_are_in_milliseconds(
    protocol: str, variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the specification has them, and aibrix; the SDK would take ten seconds for three hours."""
    told: dict[str, Any] = {}
    package = f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter"
    monkeypatch.setattr(f"{package}.OTLPSpanExporter", lambda **given: told.update(given))
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    chosen = {**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, **variables}
    tracing.create_exporter(Settings.load(chosen, {}))
    assert told["timeout"] == seconds


def test_what_the_sdk_complains_of_is_said_once_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with run_tracing(InMemorySpanExporter()):
        for number in range(5):
            logging.getLogger("opentelemetry.exporter.x").warning("collector away %d", number)
    assert [each.getMessage() for each in caplog.records] == ["traces: collector away 0"]


@pytest.mark.parametrize(
    ("variables", "exports"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on(variables: dict[str, str], exports: bool) -> None:
    assert Settings.load(variables, {}).exports_traces is exports


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_start(variable: str, value: str) -> None:
    with pytest.raises(SettingInvalid, match=variable):
        Settings.load({variable: value}, {})


def test_without_the_package_the_start_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delitem(sys.modules, "pdrouter.telemetry.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    variables = {"PDROUTER_ENDPOINTS": str(tmp_path / "e"), "OTEL_TRACES_EXPORTER": "otlp"}
    with pytest.raises(SettingInvalid, match=r"pdrouter\[tracing\]"):
        Application(Settings.load(variables, {}))


def test_without_the_variables_nothing_of_it_is_loaded() -> None:
    script = (
        "import asyncio, sys\n"
        "from pdrouter.app import Application\n"
        "from pdrouter.settings import Settings\n"
        "async def build(): Application(Settings.load({'PDROUTER_ENDPOINTS': 'none'}, {}))\n"
        "asyncio.run(build())\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
