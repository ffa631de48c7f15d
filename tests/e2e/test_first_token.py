"""When the first token came is known by default, without a message for it where Envoy tells."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import PREFILL, chat, connect, eventually, read_metrics, run_checked_stack

from pdrouter.tools.envoy_config import ResponseBodyMode
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
SLOW_DECODE = (EngineConfig(role="decode", itl_ms=30, slots=1),)
"""It works on one answer at a time; the head of the next one comes before its first token."""
WAYS = {
    "told by Envoy": StackOptions(prefill=PREFILL, decode=SLOW_DECODE),
    # As aibrix configures Envoy: every piece of an answer passes through the router.
    "seen in passing, and told": StackOptions(
        prefill=PREFILL,
        decode=SLOW_DECODE,
        response_body=ResponseBodyMode.STREAMED,
        allow_mode_override=False,
    ),
    "seen in passing": StackOptions(
        prefill=PREFILL,
        decode=SLOW_DECODE,
        response_body=ResponseBodyMode.STREAMED,
        allow_mode_override=False,
        router_log=False,
    ),
}


@pytest_asyncio.fixture(scope="module", params=WAYS, loop_scope="module")
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[LocalStack]:
    async with run_checked_stack(WAYS[request.param]) as running:
        yield running


async def test_a_stream_has_one_time_of_its_first_token(
    stack: LocalStack, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    way = request.node.callspec.params["stack"]
    caplog.set_level(logging.INFO, logger="pdrouter")
    async with connect(stack) as client:
        body = chat(stream=True, max_tokens=10)
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(2)))
        plain = await client.post(CHAT, json=chat())
    assert {response.status_code for response in (*responses, plain)} == {200}
    ids = {response.headers["x-request-id"] for response in responses}

    async def check() -> None:
        metrics = await read_metrics(stack)
        told = metrics.total("pdrouter_access_log_entries_total", result="counted")
        assert told == 3 * WAYS[way].router_log
        assert metrics.total("pdrouter_time_to_first_token_seconds_count") == 2
        assert metrics.total("gateway_ttft_bucket_total") == 2
        assert metrics.total("pdrouter_counted_answers_total") == 0

    await eventually(check)

    def list_lines() -> list[dict[str, Any]]:
        return [line for record in caplog.records for line in vars(record).get("lines", ())]

    async def check_lines() -> None:
        timed = [line for line in list_lines() if line.get("first_token_ms") is not None]
        assert {line["request_id"] for line in timed} == ids

    # A request's line comes at its end, whoever has told of it before.
    await eventually(check_lines)
    lines = list_lines()
    timed = [line for line in lines if line.get("first_token_ms") is not None]
    metrics = await read_metrics(stack)
    total_s = metrics.total("pdrouter_time_to_first_token_seconds_sum")
    heads = [line.get("headers_ms", 0.0) for line in lines if line.get("stream")]
    assert total_s > sum(heads) / 1000
    assert sum(line["first_token_ms"] for line in timed) == pytest.approx(1000 * total_s, abs=0.1)


@pytest.mark.parametrize("stack", ["told by Envoy"], indirect=True)
async def test_envoy_tells_without_a_message_for_a_body(stack: LocalStack) -> None:
    async with (
        connect(stack) as client,
        httpx.AsyncClient(base_url=f"http://{stack.envoy.admin}", timeout=30) as admin,
    ):

        async def count() -> int:
            page = await admin.get("/stats?filter=ext_proc.stream_msgs_sent")
            return int(page.text.split(": ")[1])

        before = await count()
        await client.post(CHAT, json=chat(stream=True, max_tokens=5))
        # Request headers, request body, response headers.
        assert await count() - before == 3
