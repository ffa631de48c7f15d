"""Requests that decode pods serve whole since they are faster, and what keeps them from it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from expectations import (
    chat,
    eventually,
    expect_disaggregated,
    expect_settled,
    expect_whole,
    read_admin,
)
from failures import failing
from waiting import wait_until

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.whole_serving import ENOUGH_ANSWERS
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.legs import SimulatedLeg

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
TOKENS_PER_S = 4000.0


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    """A prefill engine that is slow, and decode engines that compute prompts in no time."""
    return StackOptions(
        prefill=(EngineConfig(role="prefill", prefill_tokens_per_s=TOKENS_PER_S),),
        decode=(EngineConfig(role="decode", itl_ms=10),) * 2,
        environment={
            "PDROUTER_AGGREGATE": "when-faster",
            "PDROUTER_PREFILL_TOKENS_PER_S": str(TOKENS_PER_S),
            "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "300",
            # What else the machine does must not count.
            "PDROUTER_INTER_TOKEN_TARGET": "60",
        },
    )


async def stream(client: httpx.AsyncClient, topic: str, **members: Any) -> httpx.Response:
    body = chat(
        messages=[{"role": "user", "content": f"{topic}? {'Why so? ' * 12}"}],
        stream=True,
        **members,
    )
    return await client.post(CHAT, json=body)


async def find_ways(stack: LocalStack, response: httpx.Response) -> dict[str, Any]:
    """Return what was predicted for the two ways of a request."""
    page = await read_admin(stack, f"/debug/decisions?id={response.headers['x-request-id']}")
    (decision,) = page.json()["decisions"]
    ways: dict[str, Any] = decision["ways"]
    return ways


@asynccontextmanager
async def busy_prefill(stack: LocalStack, client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Have the prefill engine work on a prompt that takes it some seconds."""
    prompt = chat(messages=[{"role": "user", "content": "A long story. " * 6000}])
    work = asyncio.create_task(client.post(CHAT, json=prompt))
    await wait_until(lambda: bool(stack.router.ledger.loads[Leg.PREFILL]))
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await expect_settled(stack)


async def test_it_is_two_pods_until_it_is_measured_what_they_take(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    for number in range(ENOUGH_ANSWERS):
        response = await stream(client, f"first {number}")
        expect_disaggregated(stack, response)
        ways = await find_ways(stack, response)
        assert ways["two_legs_s"] is None
        assert ways["obstacle"].startswith(f"the hand-over is not known: {number} of ")

    async def expect_known() -> None:
        state = (await read_admin(stack, "/debug/state")).json()
        decode = [pod for pod in state["pods"] if pod["role"] == "decode"]
        assert all(pod["computes_prompts"] for pod in decode)
        assert any(pod["inter_token_s"] for pod in decode)

    await eventually(expect_known)


async def test_while_the_prefill_pods_are_busy_a_decode_pod_is_faster(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    async with busy_prefill(stack, client):
        response = await stream(client, "second")
        expect_whole(stack, response, "faster")
        ways = await find_ways(stack, response)
        assert 0 < ways["whole_s"] < ways["two_legs_s"]


async def test_one_that_refuses_gets_no_more_of_them(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    refusing = Fault(status=500, leg=SimulatedLeg.WHOLE)
    prefill = next(pod for pod in stack.router.cache.view.pods if pod.role is Role.PREFILL)
    queue = stack.router.ledger.start(Leg.PREFILL, prefill.uid, 100_000)
    with queue, failing(stack.decode, refusing):
        for number in range(2):
            refused = await stream(client, f"third {number}")
            assert refused.headers["x-pd-decision"] == "aggregated;reason=faster"
            assert refused.status_code == 500
    state = (await read_admin(stack, "/debug/state")).json()
    refusals = [pod["whole"].get("refused") for pod in state["pods"] if pod["role"] == "decode"]
    assert refusals == [True, True]
    response = await stream(client, "fourth")
    expect_disaggregated(stack, response)
    # One that is asked just now whether it is well again is not even looked at.
    assert (await find_ways(stack, response))["obstacle"].startswith("has refused (")
