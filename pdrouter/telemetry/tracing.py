"""Traces for a collector, over OTLP. The only module that imports OpenTelemetry.

Imported only where the settings ask for traces: else they cost nothing.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from opentelemetry import trace as otel
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from pdrouter import __version__
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.trace import RequestTrace, Sample, TraceParent, begin_trace
from pdrouter.settings import Settings
from pdrouter.telemetry.spans import SpanData, SpanKind, describe_spans

log = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Time for the last spans when the router ends."""
QUIET_S = 60.0
"""Time between two log lines of the SDK's troubles."""

_SAMPLED_BITS = 2**64 - 1
_KINDS = MappingProxyType(
    {
        SpanKind.SERVER: otel.SpanKind.SERVER,
        SpanKind.CLIENT: otel.SpanKind.CLIENT,
        SpanKind.INTERNAL: otel.SpanKind.INTERNAL,
    }
)


class Tracing:
    """Decides which requests are traced, and exports their spans from a thread of its own."""

    def __init__(self, settings: Settings, exporter: SpanExporter, worker: int = 0) -> None:
        """Begin without spans.

        Args:
            settings: what the operator decided.
            exporter: sends spans.
            worker: which of several workers this is.
        """
        self._sample = choose_sampler(settings)
        self._ids = _PresetIds()
        # Which spans there are is decided when a request comes: all that are made are exported.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=describe_process(worker),
            shutdown_on_exit=False,
            id_generator=cast("Any", self._ids),
        )
        self._processor = BatchSpanProcessor(exporter)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("pdrouter", __version__)
        self._quiet = _QuietHandler()
        sdk = logging.getLogger("opentelemetry")
        sdk.addHandler(self._quiet)
        sdk.propagate = False

    def begin(self, headers: Mapping[str, str], gateway: str) -> RequestTrace | None:
        """Begin the trace of a request; see `BeginTrace`."""
        return begin_trace(self._sample, headers, gateway)

    def take(self, record: RequestRecord, trace: RequestTrace) -> None:
        """Queue the spans of a request that has ended. If the queue is full, the oldest go."""
        for span in describe_spans(record, trace):
            self._queue(span, trace)

    def _queue(self, span: SpanData, trace: RequestTrace) -> None:
        trace_id = trace.own.trace_id
        self._ids.expect(trace_id, span.span_id)
        context = (
            otel.set_span_in_context(otel.INVALID_SPAN)
            if span.parent_id is None
            else _enter(trace_id, trace.own._replace(span_id=span.parent_id))
        )
        made = self._tracer.start_span(
            span.name,
            context,
            _KINDS[span.kind],
            span.attributes,
            start_time=span.start_ns,
        )
        for name, at_ns in span.events:
            made.add_event(name, timestamp=at_ns)
        if span.error is not None:
            made.set_status(otel.StatusCode.ERROR, span.error)
        made.end(span.end_ns)

    async def close(self) -> None:
        """Send what is queued, if the collector takes it in time."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A thread of the loop's executor would keep the process from ending.
        threading.Thread(target=flush, name="traces-flush", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            log.warning("the last traces were not sent within %g s", FLUSH_S)
        finally:
            sdk = logging.getLogger("opentelemetry")
            sdk.removeHandler(self._quiet)
            sdk.propagate = True


def create_tracing(settings: Settings, worker: int) -> Tracing:
    """Return what traces requests, as it is set."""
    return Tracing(settings, create_exporter(settings), worker)


def create_exporter(settings: Settings) -> SpanExporter:
    """Return what sends spans. Headers and certificates are read by the SDK itself."""
    base, url = settings.otlp_endpoint, settings.otlp_traces_endpoint
    timeout_s = (settings.otlp_traces_timeout_ms or settings.otlp_timeout_ms) / 1000
    if (settings.otlp_traces_protocol or settings.otlp_protocol) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc  # noqa: PLC0415

        return grpc.OTLPSpanExporter(endpoint=url or base, timeout=timeout_s)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http  # noqa: PLC0415

    if url is None and base is not None:
        url = f"{base.rstrip('/')}/v1/traces"
    return http.OTLPSpanExporter(endpoint=url, timeout=timeout_s)


def choose_sampler(settings: Settings) -> Sample:
    """Return what decides which requests are traced, as the SDK's samplers of these names do.

    They would cost each request ten times as much.
    """
    name = settings.traces_sampler
    by_parent = name.startswith("parentbased-")
    share = {"always-on": 1.0, "always-off": 0.0}.get(
        name.removeprefix("parentbased-"), settings.traces_sampler_share
    )
    bound = round(share * (_SAMPLED_BITS + 1))

    def sample(parent: TraceParent | None, trace_id: int) -> bool:
        if parent is not None and by_parent:
            return parent.sampled
        return trace_id & _SAMPLED_BITS < bound

    return sample


def describe_process(worker: int) -> Resource:
    """Return what is said of the process; what `OTEL_RESOURCE_ATTRIBUTES` says wins."""
    own = {
        "service.name": "pdrouter",
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}/{worker}",
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _enter(trace_id: int, parent: TraceParent) -> Any:  # noqa: ANN401 - a context of the SDK
    flags = otel.TraceFlags(otel.TraceFlags.SAMPLED if parent.sampled else 0)
    span = otel.SpanContext(trace_id, parent.span_id, is_remote=True, trace_flags=flags)
    return otel.set_span_in_context(otel.NonRecordingSpan(span))


class _PresetIds:
    """Gives spans the ids that engines were told before the spans were made."""

    def __init__(self) -> None:
        self._trace_id = self._span_id = 0

    def expect(self, trace_id: int, span_id: int) -> None:
        """Take the ids of the span that is made next."""
        self._trace_id, self._span_id = trace_id, span_id

    def generate_span_id(self) -> int:
        """Return the id of the span."""
        return self._span_id

    def generate_trace_id(self) -> int:
        """Return the id of its trace."""
        return self._trace_id

    def is_trace_id_random(self) -> bool:
        """Return whether a flag is to say that ids are random: the client may have made them."""
        return False


class _QuietHandler(logging.Handler):
    """Passes on what the SDK says, at most once in a while: a collector may be away for hours."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = -QUIET_S
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        now = time.monotonic()
        if now - self._said < QUIET_S:
            self._left_out += 1
            return
        self._said, left_out, self._left_out = now, self._left_out, 0
        fields = {"left_out": left_out}
        log.warning("traces: %s", record.getMessage(), extra={"fields": fields})
