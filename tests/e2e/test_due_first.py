"""Targets for the first token: engines that take first what is due first, and those that do not."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PREFILL,
    connect,
    eventually,
    expect_disaggregated,
    expect_error,
    read_admin,
    read_metrics,
    run_checked_stack,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import KvConnector, Priorities
from pdrouter.tools.simulation.engine import SimulatedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS = "/v1/completions"
ENVIRONMENT = {
    "PDROUTER_ENGINE_PRIORITY": "auto",
    "PDROUTER_CLASSES": "interactive=2s,batch=10m",
    "PDROUTER_AGGREGATE": "never",
}


class Setup(NamedTuple):
    """An installation, and a client of it."""

    stack: LocalStack
    client: httpx.AsyncClient


@asynccontextmanager
async def run_engines(priorities: Priorities, wire: KvConnector = "nixl") -> AsyncIterator[Setup]:
    prefill = replace(
        PREFILL[0], priorities=priorities, kv_connector=wire, prefill_tokens_per_s=4000
    )
    decode = replace(DECODE[0], priorities=priorities, kv_connector=wire)
    environment = {**ENVIRONMENT, "AIBRIX_KV_CONNECTOR_TYPE": wire}
    options = StackOptions(prefill=(prefill,), decode=(decode,), environment=environment)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        yield Setup(stack, client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def taking() -> AsyncIterator[Setup]:
    async with run_engines("taken") as setup:
        yield setup


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing() -> AsyncIterator[Setup]:
    async with run_engines("refused") as setup:
        yield setup


async def ask(
    setup: Setup,
    first: int,
    tokens: int = 20,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> httpx.Response:
    """Send a prompt of so many tokens, which begins with a number of its own."""
    prompt = [first, *[7] * (tokens - 1)]
    body = {"model": "demo", "prompt": prompt, "max_tokens": 2, **more}
    return await setup.client.post(COMPLETIONS, json=body, headers=headers)


@asynccontextmanager
async def computing(engine: SimulatedEngine) -> AsyncIterator[None]:
    """Let an engine compute another prompt until the context ends: what comes waits."""
    turns = engine._compute._prefill
    await turns.take(0)
    try:
        yield
    finally:
        turns.give_back()


def list_bodies(setup: Setup, leg: str) -> list[dict[str, Any]]:
    engines = setup.stack.prefill if leg == "prefill" else setup.stack.decode
    return [json.loads(request.body) for engine in engines for request in engine.requests]


async def test_who_is_due_first_is_served_first(taking: Setup) -> None:
    async def wait_for(count: int) -> None:
        async def check() -> None:
            assert len(list_bodies(taking, "prefill")) == count

        await eventually(check)

    before = len(list_bodies(taking, "prefill"))
    order: list[str] = []

    async def run(name: str, tokens: int) -> None:
        headers = {} if name == "usual" else {"x-priority": name}
        response = await ask(taking, len(name), tokens, headers)
        assert response.status_code == 200, response.text
        order.append(name)

    async with asyncio.TaskGroup() as tasks, computing(taking.stack.prefill[0]):
        for number, (name, tokens) in enumerate(
            (("batch", 2000), ("interactive", 1000)), before + 1
        ):
            tasks.create_task(run(name, tokens))
            await wait_for(number)
    assert order == ["interactive", "batch"]
    await run("usual", 20)
    batch, interactive, usual = (
        body["priority"] for body in list_bodies(taking, "prefill")[before:]
    )
    assert interactive < batch
    assert usual < batch


async def test_decode_engines_are_told_once_they_have_said_that_they_take_it(
    taking: Setup,
) -> None:
    async def check() -> None:
        response = await ask(taking, 1, headers={"x-slo-ttft-ms": "60000"})
        prefill, decode = expect_disaggregated(taking.stack, response)
        told = [json.loads(leg.request.body)["priority"] for leg in (prefill, decode)]
        assert told[0] == told[1]
        page = await read_admin(
            taking.stack, f"/debug/decisions?id={response.headers['x-request-id']}"
        )
        (decision,) = page.json()["decisions"]
        assert decision["deadline"] == {
            "target_ms": 60000.0,
            "target_source": "x-slo-ttft-ms",
            "priority": told[0],
            "priority_legs": ["prefill", "decode"],
        }

    await eventually(check)


async def test_a_target_that_no_pod_can_meet_is_refused_and_one_that_can_be_is_not(
    taking: Setup,
) -> None:
    assert (await ask(taking, 2)).status_code == 200
    before = len(list_bodies(taking, "prefill"))
    # At the speed that it has shown, the prompt alone takes the engine 5 s.
    refused = await ask(taking, 3, 20_000, {"x-slo-ttft-ms": "500"})
    error = expect_error(refused, 429, "deadline_missed")
    assert "due in 0.5 s (x-slo-ttft-ms)" in error["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert len(list_bodies(taking, "prefill")) == before
    served = await ask(taking, 4, 20, {"x-slo-ttft-ms": "30000"})
    assert served.status_code == 200

    async def check() -> None:
        metrics = await read_metrics(taking.stack)
        assert metrics.total("pdrouter_deadline_refusals_total", model="demo") == 1

    await eventually(check)


@pytest.mark.parametrize(("header", "value"), [("x-slo-ttft-ms", "soon"), ("x-priority", "vip")])
async def test_a_header_that_cannot_be_understood_is_named(
    taking: Setup, header: str, value: str
) -> None:
    expect_error(await ask(taking, 5, headers={header: value}), 400, "invalid_value", header)


async def test_a_clients_own_priority_reaches_no_engine(taking: Setup) -> None:
    response = await ask(taking, 6, headers={"x-vllm-priority": "-9"}, priority=-9)
    for leg in expect_disaggregated(taking.stack, response):
        assert json.loads(leg.request.body).get("priority", 1) > 0
        assert "x-vllm-priority" not in leg.request.headers


async def test_a_client_never_sees_that_an_engine_takes_no_priorities(refusing: Setup) -> None:
    responses = [await ask(refusing, number) for number in range(3)]
    for response in responses:
        assert response.status_code == 200, response.text
        assert response.headers["x-pd-decision"] == "disaggregated"
    prefill = ["priority" in body for body in list_bodies(refusing, "prefill")]
    assert prefill == [True, False, False, False]
    decode = [body for body in list_bodies(refusing, "decode") if "kv_transfer_params" in body]
    assert not any("priority" in body for body in decode)

    async def check() -> None:
        metrics = await read_metrics(refusing.stack)
        # A prefill leg, and the question to the decode engine.
        assert metrics.total("pdrouter_priority_refusals_total") == 2
        assert metrics.total("pdrouter_prefill_refusals_total") == 0

    await eventually(check)


@pytest.mark.parametrize("priorities", ["taken", "refused"])
async def test_legs_that_run_at_once_are_told_only_where_both_engines_are_known_to_take_it(
    priorities: Priorities,
) -> None:
    async with run_engines(priorities, "nixl-push") as setup:

        async def check() -> None:
            response = await ask(setup, 1)
            assert response.status_code == 200, response.text
            page = await read_admin(setup.stack, "/debug/state")
            known = {pod["takes_priority"] for pod in page.json()["pods"]}
            assert known == {priorities == "taken"}

        await eventually(check)
        for leg in expect_disaggregated(setup.stack, await ask(setup, 2)):
            assert ("priority" in json.loads(leg.request.body)) == (priorities == "taken")
