"""Engines whose legs meet by an id: NIXL push, Neuron's write mode, Mooncake and P2P."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
from expectations import (
    DECODE,
    ENGINE_GAUGES,
    NEVER,
    PREFILL,
    UNTIL_SETTLED_S,
    chat,
    connect,
    end_leases,
    eventually,
    expect_disaggregated,
    expect_settled,
    expect_whole,
    find_sent,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, expect_running, failing, list_ids, try_first
from waiting import wait_until

from pdrouter.cluster.pods import Role
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

TOOL = {"type": "function", "function": {"name": "f"}}
COMPLETIONS = "/v1/completions"
KNOWN_WIRES: tuple[KvConnector, ...] = ("nixl-push", "mooncake")
"""Those on which something must be known of a prefill engine before legs can run at once."""
WIRES: tuple[KvConnector, ...] = (*KNOWN_WIRES, "offloading")


def speak(
    wire: KvConnector, prefill: Sequence[EngineConfig] = PREFILL
) -> tuple[list[EngineConfig], list[EngineConfig]]:
    """Return prefill and decode engines that know one wire only."""
    return (
        [replace(config, kv_connector=wire, kv_lease_s=UNTIL_SETTLED_S) for config in prefill],
        [replace(config, kv_connector=wire) for config in DECODE],
    )


class Wire(NamedTuple):
    """An installation, and a client of it."""

    stack: LocalStack
    client: httpx.AsyncClient


@asynccontextmanager
async def run_wire(
    wire: KvConnector,
    name: str = "",
    prefill: Sequence[EngineConfig] = PREFILL,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Wire]:
    engines = speak(wire, prefill)
    options = StackOptions(
        prefill=engines[0],
        decode=engines[1],
        environment={"AIBRIX_KV_CONNECTOR_TYPE": name or wire, **environment},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        yield Wire(stack, client)


def read_id(params: Mapping[str, Any]) -> str:
    """The id by which a leg meets the other."""
    roles = (params.get(name) for name in ("remote_decoder", "remote_prefiller"))
    role = next(filter(None, roles), None)
    return str(params["transfer_id"] if role is None else role["kv_request_id"])


def read_params(request: Any) -> dict[str, Any]:
    params: dict[str, Any] = json.loads(request.body)["kv_transfer_params"]
    return params


@pytest.mark.parametrize("wire", WIRES)
async def test_all_kinds_of_requests_are_split(wire: KvConnector) -> None:
    async with run_wire(wire, prefill=PREFILL[:1]) as (stack, client):
        for path, request in (
            (CHAT, chat()),
            (CHAT, chat()),
            (CHAT, chat(stream=True)),
            (COMPLETIONS, {"model": "demo", "prompt": "Why?", "max_tokens": 4}),
            (CHAT, chat(padding="x" * 1_000_000)),
            (CHAT, chat(tools=[TOOL], tool_choice="required")),
        ):
            response = await client.post(path, json=request)
            asked, sent = expect_disaggregated(stack, response)
            assert read_id(read_params(asked.request)) == read_id(read_params(sent.request))
            if request.get("stream"):
                assert response.text.endswith("data: [DONE]\n\n")
        expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")


def said_by_engine(params: dict[str, Any], request_id: str) -> bool:
    """Whether a decode leg brings what the prefill engine has answered for this very request."""
    return bool(params["remote_request_id"] != request_id)


@pytest.mark.parametrize("name", ["nixl-push", "neuron-write"])
async def test_push_legs_run_at_once_when_the_engine_is_known(name: str) -> None:
    async with run_wire("nixl-push", name, prefill=PREFILL[:1]) as (stack, client):
        for known in (False, True, True):
            response = await client.post(CHAT, json=chat())
            _, sent = expect_disaggregated(stack, response)
            params, request_id = read_params(sent.request), response.headers["x-request-id"]
            assert said_by_engine(params, request_id) is not known
            assert params["remote_engine_id"] == stack.prefill[0].config.engine_id
            assert params["transfer_id"] == request_id


async def test_mooncakes_legs_run_at_once_from_the_first_request_on() -> None:
    async with run_wire("mooncake", prefill=PREFILL[:1]) as (stack, client):
        (engine,) = stack.prefill
        response = await client.post(CHAT, json=chat())
        asked, sent = expect_disaggregated(stack, response)
        assert asked.request.headers["x-data-parallel-rank"] == "0"
        assert "x-data-parallel-rank" not in sent.request.headers
        assert read_params(sent.request) == {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_bootstrap_addr": f"http://{engine.host}:{engine.bootstrap_port}",
            "remote_engine_id": engine.config.engine_id,
            "transfer_id": f"xfer-{response.headers['x-request-id']}",
        }


@pytest.mark.parametrize("wire", WIRES)
async def test_decode_waits_for_a_prefill_leg_that_is_under_way(wire: KvConnector) -> None:
    async with run_wire(wire, prefill=PREFILL[:1]) as (stack, client):
        await client.post(CHAT, json=chat())
        with failing(stack.prefill, Fault(slow_s=2)):
            request = asyncio.create_task(client.post(CHAT, json=chat(stream=True)))
            await asyncio.gather(*(expect_running(engine, 1) for engine in stack.prefill))

            async def check() -> None:
                outcomes = [each.outcome for engine in stack.decode for each in engine.requests]
                assert outcomes.count("running") == 1

            await eventually(check)
            assert not request.done()
            expect_disaggregated(stack, await request)


@pytest.mark.parametrize("wire", WIRES)
async def test_one_leg_after_the_other_if_the_operator_wants_it(wire: KvConnector) -> None:
    async with run_wire(wire, environment={"PDROUTER_LEG_ORDER": "serial"}) as (stack, client):
        for _ in range(3):
            response = await client.post(CHAT, json=chat())
            _, sent = expect_disaggregated(stack, response)
            if wire == "nixl-push":
                request_id = response.headers["x-request-id"]
                assert said_by_engine(read_params(sent.request), request_id)
        # Whatever fails is tried on another pod: nobody waits for it yet.
        for fault in (Fault(status=500, times=1), Fault(drop=True, times=1)):
            with try_first(stack, stack.prefill[0]), failing(stack.prefill[:1], fault):
                response = await client.post(CHAT, json=chat())
                assert response.status_code == 200
                assert list_ids(stack.prefill[0], response.headers["x-request-id"])


async def test_engines_in_pull_mode_are_served_under_the_name_of_push() -> None:
    async with run_wire("nixl", "nixl-push") as (stack, client):
        for stream in (False, False, True):
            response = await client.post(CHAT, json=chat(stream=stream))
            _, sent = expect_disaggregated(stack, response)
            assert read_params(sent.request)["transfer_mode"] == "pull"


@pytest.mark.parametrize("wire", WIRES)
async def test_a_prefill_pod_that_cannot_be_connected_costs_a_try_and_no_error(
    wire: KvConnector,
) -> None:
    async with run_wire(wire) as (stack, client):
        for _ in range(4):
            await client.post(CHAT, json=chat())
        away = stack.prefill[0]
        await away.stop()
        for _ in range(3):
            with try_first(stack, away):
                response = await client.post(CHAT, json=chat(stream=True))
            assert response.status_code == 200
            assert response.headers["x-pd-decision"] == "disaggregated"
            assert response.text.endswith("data: [DONE]\n\n")


@asynccontextmanager
async def replaced(stack: LocalStack, engine: SimulatedEngine) -> AsyncIterator[SimulatedEngine]:
    """Stop an engine, and start another one at its address once its absence has been seen.

    In files nothing says that an engine has started anew: that it could not be reached must do.
    """
    failed = (await read_metrics(stack)).total("pdrouter_scrape_failures_total", cause="connect")
    await engine.stop()

    async def notice() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_scrape_failures_total", cause="connect") > failed

    await eventually(notice)
    config = replace(
        engine.config,
        port=engine.port,
        bootstrap_port=engine.bootstrap_port or 0,
        engine_id="another",
    )
    async with SimulatedEngine(config) as other:
        yield other
        await expect_settled(stack)
        end_leases([other])
        assert not any(other.count(name) for name in (*NEVER, *ENGINE_GAUGES))


QUICK = {
    "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "20",
    "PDROUTER_EJECT_TIME": "0.1",
    "PDROUTER_EJECT_LONGEST": "0.2",
}
"""Engines are looked after as often as they start anew here."""


@pytest.mark.parametrize("wire", KNOWN_WIRES)
async def test_a_prefill_engine_that_starts_anew_is_learnt_anew(wire: KvConnector) -> None:
    async with run_wire(wire, prefill=PREFILL[:1], environment=QUICK) as (stack, client):
        for _ in range(3):
            expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        async with replaced(stack, stack.prefill[0]) as other:
            for _ in range(3):
                response = await client.post(CHAT, json=chat())
                assert response.status_code == 200, response.text
                (sent,) = find_sent(stack, response)
                assert read_params(sent.request)["remote_engine_id"] == "another"
            assert len(other.requests) == 3


@pytest.mark.parametrize("wire", KNOWN_WIRES)
async def test_restarts_under_load_end_some_requests_cleanly_and_no_later_ones(
    wire: KvConnector,
) -> None:
    async with run_wire(wire, environment=QUICK) as (stack, client):
        statuses: list[int] = []
        numbers, stop = count(), asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                # Each its own prompt: no pod has it cached, and all get their share.
                prompt = [{"role": "user", "content": f"{next(numbers)}: Why? " * 9}]
                response = await client.post(CHAT, json=chat(messages=prompt))
                statuses.append(response.status_code)
                if response.status_code != 200:
                    assert response.json()["error"]["code"]

        tasks = [asyncio.create_task(ask()) for _ in range(8)]
        try:
            await wait_until(lambda: len(statuses) >= 40)
            async with replaced(stack, stack.prefill[0]) as other:
                with try_first(stack, stack.prefill[0]):
                    await wait_until(lambda: len(other.requests) >= 20)
                stop.set()
                await asyncio.gather(*tasks)
                # Decode may notice first that nobody is there any more.
                assert set(statuses) <= {200, 500, 503}
                for _ in range(10):
                    response = await client.post(CHAT, json=chat())
                    assert response.headers["x-pd-decision"] == "disaggregated"
                    assert response.status_code == 200
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def test_an_engine_that_is_another_one_unseen_costs_one_request_and_no_more() -> None:
    """Only its answer tells, after decode was told of the engine before."""
    async with run_wire("nixl-push", prefill=PREFILL[:1]) as (stack, client):
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        knowledge = stack.router.knowledge.peers
        (pod,) = [pod for pod in stack.router.cache.view.pods if pod.role is Role.PREFILL]
        facts = knowledge.find(pod)
        assert facts is not None
        knowledge.forget(pod.uid)
        knowledge.learn(pod, {**facts, "pp_size": b"2"}, inf)
        response = await client.post(CHAT, json=chat(stream=True))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "prefill_changed"
        assert response.headers["retry-after"] == "1"
        for _ in range(6):
            expect_disaggregated(stack, await client.post(CHAT, json=chat()))


async def test_concurrent_requests_share_one_question() -> None:
    async with run_wire("mooncake", prefill=PREFILL[:1]) as (stack, client):
        responses = await asyncio.gather(*(client.post(CHAT, json=chat()) for _ in range(20)))
        assert {response.status_code for response in responses} == {200}
        for response in responses:
            expect_disaggregated(stack, response)
