"""Requests that one token cannot satisfy: engines fail their prefill leg, and serve them whole."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from expectations import chat, expect_disaggregated, expect_error, expect_whole
from failures import (
    CHAT,
    DECODE,
    FOLLOW_ENDPOINTS,
    PREFILL,
    failing,
    list_ids,
    list_pods,
    read_line,
    run_small_stack,
    try_first,
)

from pdrouter.tools.local_stack import LocalStack
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.legs import SimulatedLeg

FORCED = Fault(status=500, leg=SimulatedLeg.PREFILL, forces_tool=True)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
REASON = "not-prefillable"


def demand(choice: Any = "required", **members: Any) -> dict[str, Any]:
    return chat(tools=TOOLS, tool_choice=choice, **members)


@asynccontextmanager
async def run() -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    async with run_small_stack({}) as (stack, client):
        yield stack, client


def count_prefills(stack: LocalStack, response: httpx.Response) -> int:
    request_id = response.headers["x-request-id"]
    return sum(len(list_ids(engine, request_id)) for engine in stack.prefill)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "f"}}], ids=["any", "named"]
)
async def test_a_call_that_one_token_cannot_hold_is_served_whole_and_remembered(
    choice: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with run() as (stack, client):
        with failing(stack.prefill, FORCED):
            response = await client.post(CHAT, json=demand(choice))
            assert response.status_code == 200
            assert response.headers["x-pd-decision"] == f"aggregated;reason={REASON}"
            assert count_prefills(stack, response) == 2
            line = await read_line(caplog, response.headers["x-request-id"])
            assert [each["status"] for each in line["failed_attempts"]] == [500, 500]
            assert "Simulated fault: status 500" in line["failed_attempts"][0]["message"]
            for _ in range(3):
                response = await client.post(CHAT, json=demand(choice))
                expect_whole(stack, response, REASON)
            response = await client.post(CHAT, json=chat(tools=TOOLS, tool_choice="auto"))
            expect_disaggregated(stack, response)
            expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        assert stack.router.failures.calm
        (said,) = [each for each in caplog.records if each.message.startswith("served whole")]
        assert said.fields["members"] == ("tool_choice", "tools")  # type: ignore[attr-defined]


async def test_a_burst_of_them_ejects_nobody() -> None:
    async with run() as (stack, client):
        with failing(stack.prefill, FORCED):
            for _ in range(10):
                response = await client.post(CHAT, json=demand())
                assert response.status_code == 200
                expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        assert stack.router.failures.calm


async def test_a_pod_that_fails_what_another_serves_is_to_blame() -> None:
    async with run() as (stack, client):
        broken, other = stack.prefill
        with failing([broken], FORCED):
            for _ in range(8):
                with try_first(stack, broken, other):
                    response = await client.post(CHAT, json=demand())
                assert response.headers["x-pd-decision"] == "disaggregated"
        assert broken.address in stack.router.failures.list_ejected()


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_pods_that_fail_everything_do_not_make_requests_whole(status: int) -> None:
    async with run() as (stack, client):
        with failing(stack.prefill, Fault(status=status)):
            for _ in range(3):
                response = await client.post(CHAT, json=chat())
                assert response.status_code == (503 if status == 503 else 502)
            response = await client.post(CHAT, json=demand())
            assert response.status_code == (503 if status == 503 else 502)
        assert not stack.decode[0].requests


async def test_a_broken_pod_of_one_roleset_does_not_make_a_kind_whole_everywhere() -> None:
    three = {"prefill": PREFILL, "decode": [DECODE] * 3}
    async with run_small_stack(FOLLOW_ENDPOINTS, **three) as (stack, client):
        pairs = zip(stack.prefill, stack.decode, strict=True)
        await list_pods(stack, {f"r{n}": ([p], [d]) for n, (p, d) in enumerate(pairs)})
        with failing(stack.prefill[:1], FORCED):
            decisions = []
            for _ in range(40):
                response = await client.post(CHAT, json=demand())
                decisions.append(response.headers["x-pd-decision"])
            assert decisions[20:].count("disaggregated") >= 17


async def test_what_the_engine_says_to_the_whole_request_is_what_the_client_gets() -> None:
    async with run() as (stack, client):
        with failing(stack.prefill, FORCED), failing(stack.decode, Fault(status=500)):
            response = await client.post(CHAT, json=demand())
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "Simulated fault: status 500"
        assert response.headers["x-pd-decision"] == f"aggregated;reason={REASON}"


async def test_a_plain_request_that_all_fail_is_an_error_with_the_engines_words() -> None:
    async with run() as (stack, client):
        with failing(stack.prefill, Fault(status=500)):
            response = await client.post(CHAT, json=chat())
        error = expect_error(response, 502, "prefill_failed")
        assert error["message"].count("answered 500: Simulated fault: status 500") == 2
