"""Tokens of answers, counted by Envoy or by the router, against what the engines have made."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PREFILL,
    Metrics,
    chat,
    connect,
    eventually,
    find_sent,
    read_metrics,
    run_checked_stack,
)
from waiting import wait_until

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions, write_endpoints
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
PROMPT = "Why is the sky blue? " * 8
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, chat(max_tokens=5)),
    (CHAT, chat(max_tokens=7, **STREAMED)),
    (CHAT, chat(max_tokens=3, n=2)),
    ("/v1/completions", {"model": "demo", "prompt": PROMPT, "max_tokens": 4}),
    ("/v1/completions", {"model": "demo", "prompt": PROMPT, "max_tokens": 6, **STREAMED}),
    (
        "/v1/messages",
        {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5},
    ),
    (
        "/v1/messages",
        {
            "model": "demo",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": 8,
            "stream": True,
        },
    ),
    ("/v1/responses", {"model": "demo", "input": PROMPT, "max_output_tokens": 5, "store": False}),
    (
        "/v1/responses",
        {
            "model": "demo",
            "input": PROMPT,
            "max_output_tokens": 9,
            "store": False,
            "stream": True,
        },
    ),
]
"""A request for each kind of answer that says its tokens."""
OUTPUT_TOKENS = 5 + 7 + 2 * 3 + 4 + 6 + 5 + 8 + 5 + 9
STREAMS = 4

WAYS = {
    "access-log": StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        token_accounting=True,
        environment={"PDROUTER_OBSERVE_TOKENS": "access-log"},
    ),
    "body": StackOptions(
        prefill=PREFILL, decode=DECODE, environment={"PDROUTER_OBSERVE_TOKENS": "all"}
    ),
}


@pytest_asyncio.fixture(scope="module", params=WAYS, loop_scope="module")
async def stack(request: pytest.FixtureRequest) -> AsyncIterator[LocalStack]:
    async with run_checked_stack(WAYS[request.param]) as running:
        yield running


def count_tokens(stack: LocalStack, kind: str) -> float:
    """Tokens as the decode engines have counted them."""
    return sum(engine.count(f"vllm:{kind}_tokens_total") for engine in stack.decode)


class Counted:
    """What is counted from its start on: by the router, and by the decode engines."""

    def __init__(self, stack: LocalStack, before: Metrics) -> None:
        self._stack = stack
        self._before = before
        self._tokens = {kind: count_tokens(stack, kind) for kind in ("prompt", "generation")}

    @classmethod
    async def start(cls, stack: LocalStack) -> "Counted":
        return cls(stack, await read_metrics(stack))

    def made(self, kind: str) -> float:
        return count_tokens(self._stack, kind) - self._tokens[kind]

    async def expect(self, **wanted: float) -> None:
        async def check() -> None:
            now = await read_metrics(self._stack)
            assert {name: now.total(name) - self._before.total(name) for name in wanted} == wanted

        await eventually(check)


async def test_every_kind_of_answer_is_counted_exactly(stack: LocalStack) -> None:
    counted = await Counted.start(stack)
    async with connect(stack) as client:
        for path, body in REQUESTS:
            response = await client.post(path, json=body)
            assert response.status_code == 200, response.text
    assert counted.made("generation") == OUTPUT_TOKENS
    await counted.expect(
        pdrouter_counted_answers_total=len(REQUESTS),
        pdrouter_output_tokens_total=OUTPUT_TOKENS,
        pdrouter_prompt_tokens_total=counted.made("prompt"),
        gateway_output_tokens_total=OUTPUT_TOKENS,
        gateway_input_tokens_total=counted.made("prompt"),
        gateway_ttft_bucket_total=STREAMS,
        pdrouter_time_to_first_token_seconds_count=STREAMS,
        pdrouter_inter_token_latency_seconds_count=STREAMS,
        pdrouter_misrouted_total=0,
    )
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_counted_answers_total", usage="unknown") == 0


async def test_the_log_has_what_was_counted_of_a_request(
    stack: LocalStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter")
    body = chat(max_tokens=6, **STREAMED)
    async with connect(stack) as client:
        response = await client.post(CHAT, json=body, headers={"x-client-request-id": "mine"})
    usage = json.loads(response.text.split("data: ")[-2])["usage"]
    request_id = response.headers["x-request-id"]

    def find_lines() -> list[dict[str, Any]]:
        lines = (line for record in caplog.records for line in vars(record).get("lines", ()))
        own = [line for line in lines if line.get("request_id") == request_id]
        return [line for line in own if line["output_tokens"] is not None]

    # Envoy's log tells after the end of a request, when its line is written: that has another.
    await wait_until(lambda: bool(find_lines()))
    (line,) = find_lines()
    assert line["client_request_id"] == "mine"
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["output_tokens"] == usage["completion_tokens"] == 6
    assert line["cached_tokens"] is not None
    assert line["first_token_ms"] > 0


async def test_an_answer_that_does_not_say_its_tokens_is_counted_as_unknown(
    stack: LocalStack,
) -> None:
    counted = await Counted.start(stack)
    async with connect(stack) as client:
        await client.post(CHAT, json=chat(stream=True))
    await counted.expect(
        pdrouter_counted_answers_total=1,
        pdrouter_output_tokens_total=0,
        pdrouter_time_to_first_token_seconds_count=1,
        pdrouter_inter_token_latency_seconds_count=0,
    )


async def test_what_is_no_answer_of_an_engine_is_not_counted(stack: LocalStack) -> None:
    counted = await Counted.start(stack)
    async with connect(stack) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.post(CHAT, json=chat(model="absent"))).status_code == 404
        refused = await client.post("/v1/completions", json={"model": "demo", "prompt": "", "n": 2})
        assert refused.status_code == 400
        assert (await client.post(CHAT, json=chat())).status_code == 200
    await counted.expect(pdrouter_counted_answers_total=1)


async def test_tokens_reach_the_client_while_the_engine_makes_more(stack: LocalStack) -> None:
    async with (
        connect(stack) as client,
        client.stream("POST", CHAT, json=chat(max_tokens=2_000, **STREAMED)) as response,
    ):
        assert (await anext(response.aiter_lines())).startswith("data: {")
        *_, decode = find_sent(stack, response)
        assert decode.request.outcome == "running"


@pytest.mark.parametrize("stack", ["access-log"], indirect=True)
async def test_envoy_counts_without_a_message_for_a_body(stack: LocalStack) -> None:
    async with connect(stack) as client, connect_admin(stack) as admin:
        before = await count_messages(admin)
        await client.post(CHAT, json=chat(max_tokens=50, **STREAMED))
        # Request headers, request body, response headers.
        assert await count_messages(admin) - before == 3


def connect_admin(stack: LocalStack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{stack.envoy.admin}", timeout=30, verify=False)


async def count_messages(admin: httpx.AsyncClient) -> int:
    """How many ext_proc messages Envoy has sent to the router."""
    page = await admin.get("/stats?filter=ext_proc.stream_msgs_sent")
    return int(page.text.split(": ")[1])


async def test_the_log_tells_which_requests_went_elsewhere() -> None:
    options = replace(WAYS["access-log"], routing=Routing.OVERRIDE_HOST)
    unknown = SimulatedEngine(EngineConfig(role="decode", models=("demo",)))
    async with run_checked_stack(options) as stack, connect(stack) as client, unknown:
        write_endpoints(stack.endpoints_file, stack.model, stack.prefill, [unknown])
        await wait_until(
            lambda: unknown.address in {pod.address for pod in stack.router.cache.view.pods}
        )
        response = await client.post(CHAT, json=chat(max_tokens=5))
        # Envoy does not know the chosen pod, and has fallen back to one that it knows.
        assert response.status_code == 200
        assert response.headers["target-pod-ip"] == unknown.address

        async def check() -> None:
            metrics = await read_metrics(stack)
            assert metrics.total("pdrouter_access_log_entries_total", result="counted") == 1
            assert metrics.total("pdrouter_misrouted_total") == 1
            # The pod that served it is not one that the router knows any more.
            assert metrics.total("pdrouter_output_tokens_total", pod="") == 5

        await eventually(check)
