"""Users that take turns, through the real Envoy: a flood of one keeps nobody else waiting."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from expectations import (
    DECODE,
    PREFILL,
    eventually,
    read_admin,
    read_metrics,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 4000
LONG = 2400
"""Tokens of a prompt that takes the engine 0.6 s: much longer than anything else here."""


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


async def ask(client: httpx.AsyncClient, user: str, number: int, **more: Any) -> httpx.Response:
    """Send a prompt that is computed in full, and begins with its number."""
    body = {"model": "demo", "prompt": [number, *[7] * (LONG - 1)], "max_tokens": 2, **more}
    return await client.post("/v1/completions", json=body, headers={"user": user})


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
    async with asyncio.TaskGroup() as tasks:
        flood = [tasks.create_task(ask(client, "ann", number)) for number in range(4)]
        await wait_for_queue(stack, 3)
        before = len(list_prompts(stack))
        late = await ask(client, "bob", 99)
        assert late.status_code == 200, late.text
        assert sum(task.done() for task in flood) <= before + 1
    assert all(task.result().status_code == 200 for task in flood)
    order = list_prompts(stack)
    # Of those that waited, one had its turn at the most: both had been served as much.
    assert order.index(99) <= before + 1
    assert sorted(order) == [*range(4), 99]
    page = await read_admin(stack, f"/debug/decisions?id={late.headers['x-request-id']}")
    (decision,) = page.json()["decisions"]
    assert any(" s for its turn" in note for note in decision["notes"])
    assert decision["steps_ms"]["queue"] > 0
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_fair_queue_seconds_count", model="demo") == 4


async def test_who_leaves_while_waiting_leaves_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(ask(client, "ann", 200))
        second = tasks.create_task(ask(client, "ann", 201))
        await wait_for_queue(stack, 1)
        leaves = asyncio.create_task(ask(client, "bob", 202))
        await wait_for_queue(stack, 2)
        leaves.cancel()
        await wait_for_queue(stack, 1)
    assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert 202 not in list_prompts(stack)


async def test_what_comes_when_there_is_room_does_not_wait(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    response = await ask(client, "bob", 300)
    assert response.status_code == 200, response.text
    page = await read_admin(stack, f"/debug/decisions?id={response.headers['x-request-id']}")
    (decision,) = page.json()["decisions"]
    assert "queue" not in decision["steps_ms"]
