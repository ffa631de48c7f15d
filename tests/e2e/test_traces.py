"""Traces of client, Envoy, router and engines, as they arrive at a collector."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    find_sent,
    run_checked_stack,
)
from otlp import Collector, ReceivedSpan, run_collector

from pdrouter.serving.trace import TraceParent
from pdrouter.tools.envoy_config import Address
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
CLIENT_SPAN = "b7ad6b7169203331"
SERVER, CLIENT = 2, 3


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with pytest.MonkeyPatch.context() as patch, run_collector() as collector:
        # Read by the SDK itself.
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield collector


@pytest.fixture(scope="module")
def stack_options(collector: Collector) -> StackOptions:
    return StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        environment={
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        },
    )


def parent(number: int, *, sampled: bool = True) -> tuple[str, dict[str, str]]:
    """The id of a trace of the test's own, and the headers of a client that began it."""
    trace_id = f"{number:032x}"
    return trace_id, {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-{sampled:02x}"}


async def wait_for(collector: Collector, trace_id: str, *names: str) -> dict[str, ReceivedSpan]:
    """The spans of a trace that the router made, by name, once these are among them."""

    async def check() -> None:
        assert {span.name for span in collector.find(trace_id, service="pdrouter")} >= {*names}

    await eventually(check)
    return {span.name: span for span in collector.find(trace_id, service="pdrouter")}


async def test_one_trace_joins_the_client_the_router_and_both_engines(
    collector: Collector, client: httpx.AsyncClient, stack: LocalStack
) -> None:
    trace_id, headers = parent(0xA1)
    response = await client.post(CHAT, json=chat(), headers={**headers, "tracestate": "v=1"})
    prefill, decode = expect_disaggregated(stack, response)
    spans = await wait_for(collector, trace_id, "chat demo", "prefill", "decode", "parse", "route")
    request = spans["chat demo"]
    assert (request.kind, request.parent_id) == (SERVER, CLIENT_SPAN)
    assert not request.failed
    assert request.attributes["gen_ai.request.model"] == "demo"
    assert request.attributes["gen_ai.operation.name"] == "chat"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["pdrouter.decision"] == "disaggregated"
    assert request.attributes["pdrouter.decode_pod"] == response.headers["target-pod"]
    assert request.attributes["pdrouter.request_id"] == response.headers["x-request-id"]
    for name, sent in (("prefill", prefill), ("decode", decode)):
        span = spans[name]
        assert (span.kind, span.parent_id) == (CLIENT, request.span_id)
        assert request.start_ns <= span.start_ns <= span.end_ns <= request.end_ns + 1000
        address = f"{span.attributes['server.address']}:{span.attributes['server.port']}"
        assert address == sent.engine.address
        told = TraceParent.parse(sent.request.headers["traceparent"])
        assert told == (int(trace_id, 16), int(span.span_id, 16), True)
        assert sent.request.headers["tracestate"] == "v=1"
    assert spans["parse"].parent_id == request.span_id


async def test_a_try_that_failed_has_a_span_of_its_own(
    collector: Collector, client: httpx.AsyncClient, stack: LocalStack
) -> None:
    trace_id, headers = parent(0xA2)
    for engine in stack.prefill:
        engine.faults.set(Fault(status=500))
    try:
        response = await client.post(CHAT, json=chat(), headers=headers)
    finally:
        for engine in stack.prefill:
            engine.faults.clear()
    assert response.status_code == 502
    await wait_for(collector, trace_id, "chat demo", "prefill")
    tries = collector.find(trace_id, service="pdrouter", name="prefill")
    assert all(span.failed and span.attributes["error.type"] == "500" for span in tries)
    (request,) = collector.find(trace_id, service="pdrouter", name="chat demo")
    assert request.failed
    assert request.attributes["error.type"] == "prefill_failed"


async def test_a_trace_that_is_not_sampled_goes_on_unsampled(
    collector: Collector, client: httpx.AsyncClient, stack: LocalStack
) -> None:
    skipped, headers = parent(0xA3, sampled=False)
    response = await client.post(CHAT, json=chat(), headers=headers)
    for sent in expect_disaggregated(stack, response):
        assert sent.request.headers["traceparent"] == headers["traceparent"]
    taken, headers = parent(0xA4)
    await client.post(CHAT, json=chat(), headers=headers)
    await wait_for(collector, taken, "chat demo")
    assert not collector.find(skipped)


async def test_a_request_without_a_trace_begins_one(
    collector: Collector, client: httpx.AsyncClient, stack: LocalStack
) -> None:
    bad = {"traceparent": "00-bad", "tracestate": "v=1"}
    response = await client.post(CHAT, json=chat(), headers=bad)
    sent = expect_disaggregated(stack, response)
    (trace_id,) = {each.request.headers["traceparent"].split("-")[1] for each in sent}
    spans = await wait_for(collector, trace_id, "chat demo")
    assert spans["chat demo"].parent_id == ""
    assert not any("tracestate" in each.request.headers for each in sent)


@pytest_asyncio.fixture(loop_scope="module")
async def traced_stack(
    collector: Collector, stack_options: StackOptions
) -> AsyncIterator[LocalStack]:
    """Engines whose legs run at once, and an Envoy that makes spans, too."""
    options = StackOptions(
        prefill=[replace(PREFILL[0], kv_connector="bootstrap")],
        decode=[replace(DECODE[0], kv_connector="bootstrap")],
        environment=stack_options.environment,
        trace_collector=Address("127.0.0.1", collector.port),
    )
    async with run_checked_stack(options) as running:
        yield running


async def test_spans_of_envoy_stand_between_those_of_the_client_and_of_the_router(
    collector: Collector, traced_stack: LocalStack
) -> None:
    trace_id, headers = parent(0xA5)
    async with connect(traced_stack) as client:
        response = await client.post(CHAT, json=chat(), headers=headers)
        # Envoy sends its spans when it has a few.
        for number in range(3):
            await client.post(CHAT, json=chat(), headers=parent(0xB1 + number)[1])
    prefill, decode = expect_disaggregated(traced_stack, response)
    spans = await wait_for(collector, trace_id, "chat demo", "prefill")
    told = TraceParent.parse(prefill.request.headers["traceparent"])
    assert told == (int(trace_id, 16), int(spans["prefill"].span_id, 16), True)

    async def envoy_has_sent_its_own() -> None:
        assert len(collector.find(trace_id, service="envoy")) >= 3

    await eventually(envoy_has_sent_its_own)
    of_envoy = {span.span_id: span for span in collector.find(trace_id, service="envoy")}
    above = of_envoy[spans["chat demo"].parent_id]
    while above.parent_id in of_envoy:
        above = of_envoy[above.parent_id]
    assert above.parent_id == CLIENT_SPAN
    told = TraceParent.parse(decode.request.headers["traceparent"])
    assert told is not None
    assert f"{told.span_id:016x}" in of_envoy


async def test_what_is_asked_about_a_kept_response_is_a_trace_as_well(
    collector: Collector, client: httpx.AsyncClient, stack: LocalStack
) -> None:
    made = await client.post("/v1/responses", json={"model": "demo", "input": "hi"})
    trace_id, headers = parent(0xA9)
    path = f"/v1/responses/{made.json()['id']}"
    shown = await client.get(path, headers=headers)
    assert shown.status_code == 200
    spans = await wait_for(collector, trace_id, "GET demo", "decode")
    request, decode = spans["GET demo"], spans["decode"]
    assert (request.parent_id, decode.parent_id) == (CLIENT_SPAN, request.span_id)
    (sent,) = (each for each in find_sent(stack, shown))
    told = TraceParent.parse(sent.request.headers["traceparent"])
    assert told == (int(trace_id, 16), int(decode.span_id, 16), True)
