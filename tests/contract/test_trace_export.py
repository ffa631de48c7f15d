"""What a collector gets of the router, in each protocol that OTLP has."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import grpc
import pytest
from factories import make_record
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from otlp import Collector, run_collector

from pdrouter.app import SERVERS
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.server import SERVICE, ServerOptions
from pdrouter.serving.record import Outcome
from pdrouter.settings import Settings
from pdrouter.settings.choices import Transport
from pdrouter.telemetry.tracing import create_tracing

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
COLLECTOR = "opentelemetry.proto.collector.trace.v1.TraceService"


@contextmanager
def run_grpc_collector() -> Iterator[Collector]:
    def export(request: bytes, _: Any) -> bytes:
        collector.take(request)
        answer: bytes = ExportTraceServiceResponse().SerializeToString()
        return answer

    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(COLLECTOR, handlers)])
        collector = Collector(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        try:
            yield collector
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize(
    ("run", "variables"),
    [
        (run_grpc_collector, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{port}"}),
        (
            run_collector,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:{port}/",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
        ),
        (
            run_collector,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:{port}/v1/traces",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http",
            },
        ),
    ],
    ids=["grpc", "http", "traces-of-their-own"],
)
async def test_what_is_queued_arrives_before_the_router_ends(
    run: Any, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    with run() as collector:
        filled = {name: value.format(port=collector.port) for name, value in variables.items()}
        tracing = create_tracing(Settings.load(filled, {}), 0)
        record = make_record(outcome=Outcome.ANSWERED, status=200, method="GET")
        record.trace = tracing.begin({}, "")
        assert record.trace is not None
        tracing.take(record, record.trace)
        async with asyncio.timeout(30):
            await tracing.close()
        (span,) = collector.spans
    assert (span.service, span.name) == ("mine", "GET")
    assert span.trace_id == f"{record.trace.own.trace_id:032x}"


class Follower:
    """In place of an exchange: it ends with the stream's first message."""

    def __init__(self, told: list[str]) -> None:
        self._told = told
        self.call = self
        self.ended = self.cut = False

    def follow(self, read_gateway_trace: Callable[[], str]) -> None:
        self._told.append(read_gateway_trace())

    async def receive(self, message: bytes) -> None:
        self.ended = bool(message)

    async def admit(self, size: int) -> bool:
        return size > 0

    def close(self) -> None:
        self.ended = True

    async def wait_closed(self) -> None:
        assert self.ended


@pytest.mark.parametrize("transport", SERVERS)
async def test_the_span_of_the_gateway_is_in_the_metadata_of_its_stream(
    transport: Transport,
) -> None:
    told: list[str] = []
    options = ServerOptions("127.0.0.1", 0, 1 << 20, 60, None)
    server = SERVERS[transport](lambda *_: cast("Exchange", Follower(told)), options, {})
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            process = channel.stream_stream(f"/{SERVICE}/Process")
            for metadata in ([("traceparent", PARENT)], []):
                stream = process(metadata=metadata, timeout=30)
                await stream.write(b"x")
                assert await stream.read() is grpc.aio.EOF
    finally:
        await server.stop()
    assert told == [PARENT, ""]
