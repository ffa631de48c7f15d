"""How request bodies may arrive: large, in chunks, after a 100, with trailers; and how large."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PATIENCE_S,
    PREFILL,
    connect,
    count_received,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    read_metrics,
)
from raw_requests import POST_CHAT, send_frames

from pdrouter.extproc.limits import HANDLE_HEADROOM_BYTES
from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
MIB = 2**20
LARGEST_MESSAGE = 10 * MIB
ROUTER_LIMIT = LARGEST_MESSAGE - HANDLE_HEADROOM_BYTES
ENVOY_LIMIT = LARGEST_MESSAGE - 64 * 1024


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    roomy: dict[str, Any] = {
        "max_model_len": 16 * MIB,
        "block_size": 1_024,
        "prefill_tokens_per_s": 0.0,
    }
    return StackOptions(
        prefill=[dataclasses.replace(each, **roomy) for each in PREFILL],
        decode=[dataclasses.replace(each, **roomy) for each in DECODE],
        environment={"AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES": str(LARGEST_MESSAGE)},
    )


@pytest_asyncio.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"], loop_scope="module")
async def client(
    request: pytest.FixtureRequest, stack: LocalStack
) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(stack, http1=not request.param, http2=request.param) as connected:
        yield connected
    await expect_settled(stack)


def write_request(size: int, *, stream: bool = False, n: int = 1) -> bytes:
    """Return a chat request of exactly so many bytes."""
    request = {
        "model": "demo",
        "stream": stream,
        "max_tokens": 2,
        "n": n,
        "messages": [{"role": "user", "content": ""}],
        "user": "the end",
    }
    empty = json.dumps(request).encode()
    filler = b"word " * ((size - len(empty)) // 5) + b"x" * ((size - len(empty)) % 5)
    return empty.replace(b'"content": ""', b'"content": "%s"' % filler)


async def post(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    return await client.post(CHAT, content=body, headers={"content-type": "application/json"})


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("size", [1 * MIB, 8 * MIB])
async def test_a_large_body_arrives_whole_at_both_engines(
    client: httpx.AsyncClient, stack: LocalStack, size: int, stream: bool
) -> None:
    body = write_request(size, stream=stream)
    prefill, decode = expect_disaggregated(stack, await post(client, body))
    assert decode.request.body.startswith(body[:-1])
    head = body.index(b"word")
    assert prefill.request.body.count(body[head:-1]) == 1


@pytest.mark.parametrize("size", [1, 1_000], ids=["bytes", "pieces"])
async def test_a_body_may_come_in_chunks_without_a_length(
    client: httpx.AsyncClient, stack: LocalStack, size: int
) -> None:
    body = write_request(3_000)
    response = await client.post(
        CHAT, content=in_chunks(body, size), headers={"content-type": "application/json"}
    )
    _, decode = expect_disaggregated(stack, response)
    assert decode.request.body.startswith(body[:-1])


async def test_a_large_body_may_come_in_chunks(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    body = write_request(2 * MIB)
    response = await client.post(
        CHAT, content=in_chunks(body, 65_536), headers={"content-type": "application/json"}
    )
    _, decode = expect_disaggregated(stack, response)
    assert decode.request.body.startswith(body[:-1])


async def test_a_body_as_large_as_the_router_takes(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    # It grows by the handle on its way; Envoy judges its size again then.
    expect_disaggregated(stack, await post(client, write_request(ROUTER_LIMIT)))
    whole = expect_whole(stack, await post(client, write_request(ROUTER_LIMIT, n=2)), "n")
    assert len(whole.request.body) == ROUTER_LIMIT


@pytest.mark.parametrize(
    ("size", "limit"),
    [
        (ROUTER_LIMIT + 1, ROUTER_LIMIT),
        (ENVOY_LIMIT, ROUTER_LIMIT),
        (ENVOY_LIMIT + 1, ENVOY_LIMIT),
    ],
    ids=["just too large for the router", "just not too large for Envoy", "too large for Envoy"],
)
async def test_a_body_that_is_too_large_is_a_413_that_names_the_limit(
    client: httpx.AsyncClient, stack: LocalStack, size: int, limit: int
) -> None:
    before = count_received(stack)
    response = await post(client, write_request(size))
    error = expect_error(response, 413, "request_too_large")
    assert error["type"] == "invalid_request_error"
    assert str(limit) in error["message"]
    assert count_received(stack) == before
    outcome = "rejected" if limit == ROUTER_LIMIT else "local-reply"

    async def counted() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_requests_total", outcome=outcome, status="413") > 0

    await eventually(counted)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_client_that_asks_before_it_sends_its_body(
    stack: LocalStack, chunked: bool
) -> None:
    body = write_request(20_000)
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    payload = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    reader, writer = await asyncio.open_connection(*stack.envoy.listener.rsplit(":", 1))
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"content-type: application/json\r\nexpect: 100-continue\r\n%s\r\n\r\n" % framing
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(payload)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"x-pd-decision: disaggregated\r\n" in head
            await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    await expect_settled(stack)


@pytest.mark.parametrize("whole", [False, True], ids=["two legs", "one leg"])
async def test_a_body_may_end_with_trailers(stack: LocalStack, whole: bool) -> None:
    body = write_request(20_000, n=2 if whole else 1)
    trailers = [("x-trailer", "of the client")]
    headers, answer = await send_frames(stack.envoy.listener, POST_CHAT, body, trailers)
    assert headers[":status"] == "200", answer
    decision = "aggregated;reason=n" if whole else "disaggregated"
    assert headers["x-pd-decision"] == decision
    assert json.loads(answer)["usage"]["completion_tokens"] == (4 if whole else 2)
    await expect_settled(stack)
