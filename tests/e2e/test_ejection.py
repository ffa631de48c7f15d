"""A pod that fails draws no traffic: what a broken pod may cost the clients of an installation."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from expectations import (
    chat,
    connect,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, FOLLOW_ENDPOINTS, failing, list_pods

from pdrouter.envoy_config import Routing
from pdrouter.local_stack import LocalStack, StackOptions
from pdrouter.simulation.config import EngineConfig
from pdrouter.simulation.engine import SimulatedEngine
from pdrouter.simulation.faults import Fault

FIRST, FIRST_ERRORS = 20, 6
NEXT, NEXT_ERRORS = 60, 3

PREFILLS = tuple(
    # Blocks that a dead decode pod never fetches are given up soon enough to wait for it.
    EngineConfig(role="prefill", host=f"127.0.0.{number}", itl_ms=1, kv_lease_s=0.5)
    for number in range(2, 6)
)
DECODES = tuple(
    EngineConfig(role="decode", host=f"127.0.0.{number}", itl_ms=1) for number in range(6, 10)
)
SPLIT = "split"


@asynccontextmanager
async def run(
    prefill: int,
    decode: int,
    environment: Mapping[str, str] | None = None,
    *,
    rolesets: bool = False,
    **options: Any,
) -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    """Run so many engines, in one roleset or as pairs, each in a roleset of its own."""
    chosen = StackOptions(
        prefill=PREFILLS[:prefill],
        decode=DECODES[:decode],
        environment={**FOLLOW_ENDPOINTS, **(environment or {})},
        **options,
    )
    async with run_checked_stack(chosen) as stack, connect(stack) as client:
        if rolesets:
            pairs = zip(stack.prefill, stack.decode, strict=True)
            await list_pods(stack, {f"r{n}": ([p], [d]) for n, (p, d) in enumerate(pairs)})
        yield stack, client


async def count_errors(
    client: httpx.AsyncClient, requests: int, *, at_once: int = 1, **members: Any
) -> int:
    """Send requests, so many at a time, and return how many fail."""
    gate = asyncio.Semaphore(at_once)

    async def send(number: int) -> bool:
        async with gate:
            messages = [{"role": "user", "content": f"Question {number}: why? " * 8}]
            response = await client.post(CHAT, json=chat(messages=messages, **members))
            return response.status_code != 200

    return sum(await asyncio.gather(*(send(number) for number in range(requests))))


async def expect_few_errors(client: httpx.AsyncClient, *, at_once: int = 1) -> None:
    """Send requests, and check that clients see no more errors than they may."""
    first = await count_errors(client, FIRST, at_once=at_once)
    after = await count_errors(client, NEXT, at_once=at_once)
    assert first <= FIRST_ERRORS
    assert after <= NEXT_ERRORS


async def find_troubles(stack: LocalStack, engine: SimulatedEngine) -> list[dict[str, Any]]:
    """Return what `/debug/state` says of the failures of an engine."""
    pods = (await read_admin(stack, "/debug/state")).json()["pods"]
    (found,) = [pod["failures"] for pod in pods if pod["address"] == engine.address]
    assert isinstance(found, list)
    return found


async def expect_ejected(stack: LocalStack, engine: SimulatedEngine, leg: str, cause: str) -> None:
    """Check that an engine is said to be ejected, and that no other is."""
    (trouble,) = [each for each in await find_troubles(stack, engine) if each["leg"] == leg]
    assert trouble["ejected"]
    assert trouble["last_cause"] == cause
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_pod_ejected") == 1


AT_ONCE = pytest.mark.parametrize("at_once", [1, 8], ids=["one-by-one", "eight-at-once"])


@AT_ONCE
@pytest.mark.parametrize("routing", Routing)
async def test_one_of_two_decode_pods_is_dead(at_once: int, routing: Routing) -> None:
    async with run(1, 2, routing=routing) as (stack, client):
        dead = stack.decode[0]
        await dead.stop()
        await expect_few_errors(client, at_once=at_once)
        await expect_ejected(stack, dead, "decode", "connect")


@AT_ONCE
async def test_one_of_four_decode_pods_is_killed_under_load(at_once: int) -> None:
    async with run(2, 4) as (stack, client):
        assert await count_errors(client, 40, at_once=at_once) == 0
        load = asyncio.create_task(count_errors(client, 40, at_once=at_once))
        await asyncio.sleep(0.02)
        dead = stack.decode[1]
        await dead.stop()
        assert await load <= FIRST_ERRORS
        await expect_few_errors(client, at_once=at_once)


@AT_ONCE
async def test_one_of_three_rolesets_has_prefill_pods_that_refuse(at_once: int) -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        dead = stack.prefill[1]
        await dead.stop()
        await expect_few_errors(client, at_once=at_once)
        troubles = await find_troubles(stack, dead)
        assert [(each["leg"], each["last_cause"]) for each in troubles] == [("prefill", "connect")]


@AT_ONCE
@pytest.mark.parametrize("status", [500, 503, 429])
async def test_one_of_three_decode_pods_fails_fast(at_once: int, status: int) -> None:
    async with run(1, 3) as (stack, client):
        broken = stack.decode[2]
        with failing([broken], Fault(status=status)):
            await expect_few_errors(client, at_once=at_once)
        await expect_ejected(stack, broken, "decode", f"status-{status}")


@AT_ONCE
@pytest.mark.parametrize("status", [500, 429, 404])
async def test_the_prefill_pod_of_one_of_three_rolesets_fails_fast(
    at_once: int, status: int
) -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        broken = stack.prefill[0]
        with failing([broken], Fault(status=status)):
            await expect_few_errors(client, at_once=at_once)
