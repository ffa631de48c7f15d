"""Requests and answers with many headers: a clear answer, and no prefill for what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from expectations import (
    DECODE,
    PATIENCE_S,
    PREFILL,
    chat,
    count_received,
    eventually,
    expect_settled,
)
from failures import FOLLOW_ENDPOINTS
from listeners import run_listeners
from loopback import Server, listen
from raw_requests import POST_CHAT, send_bytes, send_frames

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = json.dumps(chat()).encode()
LENGTH = str(len(BODY))
HTTP_1 = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n" % len(BODY)
)


def keep_defaults(manager: dict[str, Any]) -> None:
    """As Envoy Gateway leaves it."""
    del manager["common_http_protocol_options"]
    del manager["max_request_headers_kb"]


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(prefill=PREFILL, decode=DECODE, environment=FOLLOW_ENDPOINTS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listeners(stack: LocalStack) -> AsyncIterator[Mapping[str, str]]:
    edits = {"as printed": lambda manager: None, "with Envoy's limits": keep_defaults}
    async with run_listeners(stack, edits) as addresses:
        yield addresses


async def ask(address: str, fields: list[tuple[str, str]], *, http2: bool) -> tuple[int, bytes]:
    """Send a request; the status is 0 where Envoy ends the connection."""
    try:
        if http2:
            headers = (*POST_CHAT, ("content-length", LENGTH), *fields)
            answer, body = await send_frames(address, headers, BODY)
            return int(answer[":status"]), body
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return await send_bytes(address, HTTP_1 + lines.encode() + b"\r\n" + BODY)
    except ConnectionError:
        return 0, b""


# Beside them are four pseudo headers, content type and length, and two of Envoy.
COUNTS = [0, 40, 80, *range(86, 98), 100, 150, 200, 240]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("listener", ["as printed", "with Envoy's limits"])
async def test_any_number_of_headers(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, http2: bool
) -> None:
    seen = []
    for count in COUNTS:
        before = count_received(stack)
        fields = [(f"x-{number}", "v") for number in range(count)]
        status, answer = await ask(listeners[listener], fields, http2=http2)
        seen.append(status)
        received = count_received(stack) - before
        if status == 200:
            assert received == 2
            continue
        assert received == 0
        if listener == "as printed" or status:
            assert status == 431, answer
            assert b'"request_headers_too_large"' in answer
    served = seen.count(200)
    assert seen[:served] == [200] * served
    assert COUNTS[served - 1] == 87
    await expect_settled(stack)


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("listener", ["as printed", "with Envoy's limits"])
async def test_any_size_of_headers(
    stack: LocalStack, listeners: Mapping[str, str], listener: str, http2: bool
) -> None:
    seen = []
    for size in (1, 30, 55, 58, 59, 60, 61, 70, 90):
        before = count_received(stack)
        fields = [(f"x-{number}", "v" * 1000) for number in range(size)]
        status, answer = await ask(listeners[listener], fields, http2=http2)
        seen.append(status)
        received = count_received(stack) - before
        assert received == (2 if status == 200 else 0)
        if listener == "as printed" and status != 200:
            assert status == 431, answer
    served = seen.count(200)
    assert served >= 4
    assert seen[:served] == [200] * served
    await expect_settled(stack)


@pytest_asyncio.fixture(loop_scope="module")
async def talkative(stack: LocalStack) -> AsyncIterator[None]:
    """A pod that answers with as many headers as the prompt of a request says."""

    async def answer(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await server.read(reader)
            count = int(json.loads(request.body)["prompt"])
            lines = "".join(f"x-{number}: v\r\n" for number in range(count))
            writer.write(f"HTTP/1.1 200 OK\r\n{lines}content-length: 2\r\n\r\n{{}}".encode())

    before = stack.endpoints_file.read_text()
    async with listen(answer) as server:
        content = yaml.safe_load(before)
        content["models"].append({"name": "talkative", "endpoints": [server.address]})
        stack.endpoints_file.write_text(yaml.safe_dump(content))

        async def known() -> None:
            pods = [pod for pod in stack.router.cache.view.pods if pod.model == "talkative"]
            # Not that of the test before.
            assert [pod.address for pod in pods] == [server.address]

        await eventually(known)
        yield
    stack.endpoints_file.write_text(before)


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("listener", ["as printed", "with Envoy's limits"])
async def test_an_answer_with_many_headers(
    stack: LocalStack, listeners: Mapping[str, str], listener: str
) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://{listeners[listener]}", timeout=PATIENCE_S
    ) as client:
        for count in (5, 80, *range(86, 98), 150, 240):
            request = {"model": "talkative", "prompt": str(count)}
            response = await client.post("/v1/completions", json=request)
            assert response.status_code == 200, (count, response.text)
            assert response.headers[f"x-{count - 1}"] == "v"
            explained = {"x-request-id", "x-pd-decision", "target-pod"} & response.headers.keys()
            assert len(explained) == 3 if count <= 80 else 0 <= len(explained) <= 3
    await expect_settled(stack)
