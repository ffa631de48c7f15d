"""Data-parallel ranks behind one port: each is a pod of its own, and a header names it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import yaml
from expectations import (
    chat,
    connect,
    eventually,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, FOLLOW_ENDPOINTS
from test_ejection import DECODES, PREFILLS, count_errors

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.engine import SimulatedEngine

RANKS = 2
HEADER = "x-data-parallel-rank"


@asynccontextmanager
async def run(
    prefill: int, decode: int, **options: Any
) -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    """Run so many engines, with two ranks each."""
    chosen = StackOptions(
        prefill=PREFILLS[:prefill],
        decode=DECODES[:decode],
        environment=FOLLOW_ENDPOINTS,
        **options,
    )
    async with run_checked_stack(chosen) as stack, connect(stack) as client:
        await list_ranks(stack)
        yield stack, client


async def list_ranks(stack: LocalStack) -> None:
    """Say in the endpoints file that each engine has ranks, and wait until the router knows."""

    content = yaml.safe_load(stack.endpoints_file.read_text())
    (roleset,) = content["models"][0]["rolesets"]
    for role in ("prefill", "decode"):
        said = (
            each if isinstance(each, dict) else {"address": each} for each in roleset.get(role, ())
        )
        roleset[role] = [{**each, "data_parallel_size": RANKS} for each in said]
    temporary = stack.endpoints_file.with_suffix(".new")
    temporary.write_text(yaml.safe_dump(content))
    temporary.replace(stack.endpoints_file)

    async def check() -> None:
        numbers = Counter(pod.number for pod in stack.router.cache.view.pods)
        assert numbers == dict.fromkeys(range(RANKS), len(stack.prefill) + len(stack.decode))

    await eventually(check)


def count_ranks(engine: SimulatedEngine) -> Counter[str]:
    """Return how many requests an engine has got for which rank."""
    return Counter(request.headers.get(HEADER, "none") for request in engine.requests)


async def test_each_leg_names_a_rank_and_all_ranks_get_requests() -> None:
    async with run(1, 1) as (stack, client):
        assert await count_errors(client, 40, at_once=8) == 0
        for engine in (*stack.prefill, *stack.decode):
            assert set(count_ranks(engine)) == {"0", "1"}
        metrics = await read_metrics(stack)
        ready = metrics.total("pdrouter_pod_ready")
        assert ready == 2 * RANKS


async def test_a_rank_that_a_client_asks_for_is_none_of_its_business() -> None:
    async with run(1, 1) as (stack, client):
        response = await client.post(CHAT, json=chat(), headers={HEADER: "7"})
        assert response.status_code == 200
        for engine in (*stack.prefill, *stack.decode):
            assert set(count_ranks(engine)) <= {"0", "1"}
        assert response.headers["target-pod"].partition("#")[2] in ("0", "1")


async def test_a_whole_request_names_its_rank_too() -> None:
    async with run(1, 1) as (stack, client):
        body = {"model": stack.model, "input": "hello"}
        await asyncio.gather(*(client.post("/v1/embeddings", json=body) for _ in range(4)))
        assert "none" not in count_ranks(stack.decode[0])
        assert sum(count_ranks(stack.decode[0]).values()) == 4


@pytest.mark.parametrize("routing", Routing)
async def test_a_dead_decode_pod_costs_no_more_for_having_ranks(routing: Routing) -> None:
    async with run(1, 2, routing=routing) as (stack, client):
        dead = stack.decode[0]
        await dead.stop()
        # Where Envoy goes by a list of pods, it takes the next one, of the same rank.
        most = 0 if routing is Routing.OVERRIDE_HOST else 3
        failures = stack.router.failures
        errors = 0
        while not failures.list_ejected():
            errors += await count_errors(client, 1)
        errors += await count_errors(client, 20)
        assert errors <= most
        assert await count_errors(client, 100) == 0
        out = {uid.partition("#")[0] for uid in failures.list_ejected()}
        assert out == {dead.address}


async def test_a_dead_prefill_pod_costs_nothing() -> None:
    async with run(2, 1) as (stack, client):
        await stack.prefill[0].stop()
        assert await count_errors(client, 120, at_once=2) == 0


async def test_what_is_known_of_a_rank_is_said() -> None:
    async with run(1, 1) as (stack, _):
        pods = (await read_admin(stack, "/debug/state")).json()["pods"]
        assert sorted((pod["role"], pod["rank"]) for pod in pods) == [
            *(("decode", 0), ("decode", 1), ("prefill", 0), ("prefill", 1))
        ]


async def test_sglangs_ranks_are_named_in_rooms_that_are_theirs() -> None:
    """A room that says another rank than the one that has it is failed by the prefill engine."""
    engines = [
        replace(each, kv_connector="bootstrap", data_parallel_size=RANKS)
        for each in (PREFILLS[0], DECODES[0])
    ]
    options = StackOptions(prefill=engines[:1], decode=engines[1:], environment=FOLLOW_ENDPOINTS)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        await list_ranks(stack)
        for n in (1, 3) * 6:
            body = chat(messages=[{"role": "user", "content": f"{n}: Why? " * 9}], n=n)
            response = await client.post(CHAT, json=body)
            assert response.status_code == 200, response.text
        sides = [
            [json.loads(request.body) for request in engine.requests]
            for engine in (*stack.prefill, *stack.decode)
        ]
        for prefill, decode in zip(*sides, strict=True):
            assert prefill["bootstrap_room"] == decode["bootstrap_room"]
            assert decode["disagg_prefill_dp_rank"] == prefill["routed_dp_rank"]
        assert {each["routed_dp_rank"] for each in sides[0]} == {0, 1}
