"""Users that take turns, through the real Envoy: a flood of one keeps nobody else waiting."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from expectations import (
    DECODE,
    PREFILL,
    eventually,
    read_admin,
    read_metrics,
)
from failures import expect_running

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 4000
LENGTH = 1200
"""Tokens of a prompt: more than the engine may have waiting when it gets another one."""
LONGEST = 30_000
"""The same of one that takes the engine longer than a test does until it is taken back."""


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(
        prefill=(replace(PREFILL[0], prefill_tokens_per_s=RATE),),
        decode=DECODE[:1],
        environment={
            "PDROUTER_FAIRNESS": "tokens",
            "PDROUTER_USERS": "header",
            "PDROUTER_AGGREGATE": "never",
            "PDROUTER_PREFILL_TOKENS_PER_S": str(RATE),
            "PDROUTER_OBSERVE_TOKENS": "all",
        },
    )


async def ask(
    client: httpx.AsyncClient, user: str, number: int, length: int = LENGTH
) -> httpx.Response:
    """Send a prompt that is computed in full, and begins with its number."""
    body = {"model": "demo", "prompt": [number, *[7] * (length - 1)], "max_tokens": 2}
    return await client.post("/v1/completions", json=body, headers={"user": user})


@asynccontextmanager
async def busy(stack: LocalStack, client: httpx.AsyncClient, number: int) -> AsyncIterator[None]:
    """Have the engine compute a prompt of ann's until the context ends."""
    work = asyncio.create_task(ask(client, "ann", number, LONGEST))
    await expect_running(stack.prefill[0], 1)
    try:
        yield
    finally:
        work.cancel()
        await asyncio.wait([work])


def list_prompts(stack: LocalStack) -> list[int]:
    """The numbers of the prompts that the engine has got, in order."""
    return [json.loads(request.body)["prompt"][0] for request in stack.prefill[0].requests]


async def wait_for_queue(stack: LocalStack, requests: int) -> None:
    async def check() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_fair_queue_requests", model="demo") == requests

    await eventually(check)


async def test_who_comes_after_a_flood_is_served_before_it(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as tasks, busy(stack, client, 0):
        flood = [tasks.create_task(ask(client, "ann", number)) for number in range(1, 4)]
        await wait_for_queue(stack, 3)
        late = tasks.create_task(ask(client, "bob", 99))
        await wait_for_queue(stack, 4)
    assert all(task.result().status_code == 200 for task in (*flood, late))
    order = list_prompts(stack)
    # Of those that waited, one had its turn at the most: both had been served as much.
    assert order.index(99) <= 2
    assert sorted(order) == [*range(4), 99]
    page = await read_admin(stack, f"/debug/decisions?id={late.result().headers['x-request-id']}")
    (decision,) = page.json()["decisions"]
    assert any(" s for its turn" in note for note in decision["notes"])
    assert decision["steps_ms"]["queue"] > 0
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_fair_queue_seconds_count", model="demo") == 4


async def test_who_leaves_while_waiting_leaves_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as tasks, busy(stack, client, 200):
        second = tasks.create_task(ask(client, "ann", 201))
        await wait_for_queue(stack, 1)
        leaves = asyncio.create_task(ask(client, "bob", 202))
        await wait_for_queue(stack, 2)
        leaves.cancel()
        await wait_for_queue(stack, 1)
    assert second.result().status_code == 200
    assert 202 not in list_prompts(stack)


async def test_what_comes_when_there_is_room_does_not_wait(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    response = await ask(client, "bob", 300)
    assert response.status_code == 200, response.text
    page = await read_admin(stack, f"/debug/decisions?id={response.headers['x-request-id']}")
    (decision,) = page.json()["decisions"]
    assert "queue" not in decision["steps_ms"]
