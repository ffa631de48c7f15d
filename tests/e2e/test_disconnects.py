"""A client that leaves stops the work it caused, whenever it leaves and however."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import h2.config
import h2.connection
import pytest
from expectations import chat, count_received, eventually, expect_settled, read_metrics
from failures import CHAT, expect_running, try_first

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Blocks that are not fetched stay for longer than the tests wait.
SLOW = EngineConfig(role="prefill", host="127.0.0.2", kv_lease_s=600, prefill_tokens_per_s=1)
FAST = EngineConfig(role="prefill", host="127.0.0.3", kv_lease_s=600)
DECODE = EngineConfig(role="decode", itl_ms=20)
ENDLESS = 10_000

Leave = Callable[[], None]
Client = Callable[[LocalStack, dict[str, Any]], AbstractAsyncContextManager[Leave]]


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(prefill=[SLOW, FAST], decode=[DECODE])


@asynccontextmanager
async def post_over_http1(stack: LocalStack, body: dict[str, Any]) -> AsyncIterator[Leave]:
    """Send a request; leaving closes the connection."""
    async with open_connection(stack) as (reader, writer):
        content = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        drain = asyncio.create_task(reader.read())
        try:
            yield writer.close
        finally:
            drain.cancel()


@asynccontextmanager
async def post_over_http2(
    stack: LocalStack, body: dict[str, Any], *, reset: bool
) -> AsyncIterator[Leave]:
    """Send a request; leaving resets its stream or closes the connection."""
    async with open_connection(stack) as (reader, writer):
        connection = h2.connection.H2Connection(h2.config.H2Configuration())
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        pseudo = {
            ":method": "POST",
            ":scheme": "http",
            ":authority": "gateway",
            ":path": CHAT,
            "content-type": "application/json",
        }
        connection.send_headers(stream, list(pseudo.items()))
        connection.send_data(stream, json.dumps(body).encode(), end_stream=True)
        writer.write(connection.data_to_send())

        async def answer_frames() -> None:
            while data := await reader.read(65_536):
                connection.receive_data(data)
                writer.write(connection.data_to_send())

        def leave() -> None:
            if reset:
                connection.reset_stream(stream)
                writer.write(connection.data_to_send())
            else:
                writer.close()

        answering = asyncio.create_task(answer_frames())
        try:
            yield leave
        finally:
            answering.cancel()


@asynccontextmanager
async def open_connection(
    stack: LocalStack,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to an installation's Envoy."""
    host, port = stack.envoy.listener.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


CLIENTS = [
    pytest.param(post_over_http1, id="HTTP/1.1-close"),
    pytest.param(partial(post_over_http2, reset=True), id="HTTP/2-reset"),
    pytest.param(partial(post_over_http2, reset=False), id="HTTP/2-close"),
]


async def expect_aborted(engine: SimulatedEngine, count: float, *, running: int = 0) -> None:
    async def check() -> None:
        assert engine.count("simulation:aborted_requests_total") == count
        assert engine.count("vllm:num_requests_running") == running

    await eventually(check)


async def expect_outcome(stack: LocalStack, outcome: str, count: float) -> None:
    async def check() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_requests_total", outcome=outcome) == count

    await eventually(check)


async def count_outcome(stack: LocalStack, outcome: str) -> float:
    return (await read_metrics(stack)).total("pdrouter_requests_total", outcome=outcome)


@pytest.mark.parametrize("post", CLIENTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_during_prefill_stops_prefill(
    stack: LocalStack, post: Client, stream: bool
) -> None:
    slow = stack.prefill[0]
    left = await count_outcome(stack, "client-left")
    aborted = slow.count("simulation:aborted_requests_total")
    decoded = len(stack.decode[0].requests)
    # The second of two waits in the engine until the first is through.
    with try_first(stack, slow):
        async with post(stack, chat(stream=stream)) as leave_running:
            await expect_running(slow, 1)
            async with post(stack, chat(stream=stream)) as leave_waiting:
                await expect_running(slow, 2)
                leave_waiting()
                await expect_aborted(slow, aborted + 1, running=1)
                leave_running()
                await expect_aborted(slow, aborted + 2, running=0)
    await expect_outcome(stack, "client-left", left + 2)
    await expect_settled(stack)
    assert len(stack.decode[0].requests) == decoded
    assert [request.outcome for request in slow.requests[-2:]] == ["aborted", "aborted"]


async def test_leaving_in_the_middle_of_the_body_leaves_nothing_behind(stack: LocalStack) -> None:
    left = await count_outcome(stack, "client-left")
    received = count_received(stack)
    async with open_connection(stack) as (_, writer):
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: gateway\r\ncontent-length: 1000\r\n\r\n{{".encode()
        )

        async def check() -> None:
            assert (await read_metrics(stack)).total("pdrouter_requests_in_flight") == 1

        await eventually(check)
    await expect_outcome(stack, "client-left", left + 1)
    await expect_settled(stack)
    assert count_received(stack) == received


@pytest.mark.parametrize("post", CLIENTS)
async def test_leaving_while_tokens_stream_stops_decode(stack: LocalStack, post: Client) -> None:
    (engine,) = stack.decode
    finished = await count_outcome(stack, "ok")
    aborted = engine.count("simulation:aborted_requests_total")
    generated = engine.count("vllm:generation_tokens_total")

    async def expect_tokens() -> None:
        assert engine.count("vllm:generation_tokens_total") > generated

    with try_first(stack, stack.prefill[1]):
        async with post(stack, chat(stream=True, max_tokens=ENDLESS)) as leave:
            await eventually(expect_tokens)
            leave()
            await expect_aborted(engine, aborted + 1)
    # The client got its headers: for the router, that request was served.
    await expect_outcome(stack, "ok", finished + 1)
    await expect_settled(stack)


@pytest.mark.parametrize("post", CLIENTS)
async def test_leaving_before_a_plain_answer_stops_decode(stack: LocalStack, post: Client) -> None:
    (engine,) = stack.decode
    left = await count_outcome(stack, "client-left")
    aborted = engine.count("simulation:aborted_requests_total")
    with try_first(stack, stack.prefill[1]):
        async with post(stack, chat(max_tokens=ENDLESS)) as leave:
            await expect_running(engine, 1)
            leave()
            await expect_aborted(engine, aborted + 1)
    await expect_outcome(stack, "client-left", left + 1)
    await expect_settled(stack)
