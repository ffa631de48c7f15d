"""Engines with a P2P tier: a prefill pod fetches what another one has computed of its prompt."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import yaml
from expectations import (
    DECODE,
    PREFILL,
    UNTIL_SETTLED_S,
    Sent,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    run_checked_stack,
)
from failures import CHAT, FOLLOW_ENDPOINTS, expect_ended, failing, list_ids, read_line, try_first

from pdrouter.tools.local_stack import LocalStack, StackOptions, describe_engine
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

WIRES: dict[str, dict[str, Any]] = {
    "nixl-p2p": {"kv_connector": "nixl", "p2p_pull": True},
    "offloading": {"kv_connector": "offloading"},
}
QUESTION = {"role": "user", "content": "It was a dark and stormy night. " * 60}
"""About 500 tokens."""


@asynccontextmanager
async def run(wire: str, **prefill: Any) -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    """Run two prefill engines and a decode engine that have a P2P tier."""
    settings: dict[str, Any] = {"kv_lease_s": UNTIL_SETTLED_S, **WIRES[wire]}
    options = StackOptions(
        prefill=[replace(config, **settings, **prefill) for config in PREFILL],
        decode=[replace(config, **settings) for config in DECODE[:1]],
        environment={"AIBRIX_KV_CONNECTOR_TYPE": wire, **FOLLOW_ENDPOINTS},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        yield stack, client


async def ask(
    stack: LocalStack, client: httpx.AsyncClient, first: SimulatedEngine, *more: str, **members: Any
) -> Sent:
    """Have a prompt computed by one engine; the requests are turns of one conversation."""
    turns = [QUESTION, *({"role": "user", "content": text} for text in more)]
    with try_first(stack, first):
        response = await client.post(CHAT, json=chat(messages=turns, **members))
    prefill, decode = expect_disaggregated(stack, response)
    assert prefill.engine is first
    assert "remote_kv_source" not in read_params(decode)
    return prefill


def read_params(sent: Sent) -> dict[str, Any]:
    params: dict[str, Any] = json.loads(sent.request.body)["kv_transfer_params"]
    return params


def count_lookups(engine: SimulatedEngine) -> float:
    return engine.count("simulation:kv_source_lookups_total")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_prefill_pod_fetches_what_another_has_computed(
    wire: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pdrouter.request")
    async with run(wire) as (stack, client):
        first, second = stack.prefill
        assert "remote_kv_source" not in read_params(await ask(stack, client, first))
        for stream in (False, True):
            # It has itself what it has fetched before: that is fetched once.
            sent = await ask(stack, client, second, "And then?", stream=stream)
            source = read_params(sent).get("remote_kv_source")
            request_id = sent.request.headers["x-request-id"]
            line = await read_line(caplog, request_id)
            if stream:
                assert source is None
                assert "kv_source_pod" not in line
                continue
            assert source == {
                "kv_request_id": f"src-{request_id}",
                "remote_host": first.host,
                "remote_port": first.bootstrap_port,
            }
            names = {pod.address: pod.name for pod in stack.router.cache.view.pods}
            assert line["kv_source_pod"] == names[first.address]
            assert line["cached_tokens"] > 400
        assert (count_lookups(first), count_lookups(second)) == (0, 1)


async def test_a_pod_that_has_just_failed_is_no_source() -> None:
    async with run("nixl-p2p") as (stack, client):
        first, second = stack.prefill
        await ask(stack, client, first)
        with try_first(stack, first), failing([first], Fault(status=500, times=1)):
            response = await client.post(CHAT, json=chat(messages=[QUESTION]))
        assert response.status_code == 200
        request_id = response.headers["x-request-id"]
        assert list_ids(first, request_id) == [request_id]
        (sent,) = [each for each in second.requests if each.headers["x-request-id"] != request_id]
        assert sent.headers["x-request-id"].startswith(request_id)
        assert "remote_kv_source" not in json.loads(sent.body)["kv_transfer_params"]


async def test_a_source_that_is_gone_costs_no_request() -> None:
    async with run("nixl-p2p") as (stack, client):
        first, second = stack.prefill
        await ask(stack, client, first)
        await first.stop()
        sent = await ask(stack, client, second, "And then?")
        assert read_params(sent)["remote_kv_source"]["remote_host"] == first.host
        assert count_lookups(second) == 1
        await expect_ended(stack)


async def test_each_rank_is_met_at_its_own_port() -> None:
    async with run("offloading", data_parallel_size=2) as (stack, client):
        prefill = [
            {"address": engine.address, "bootstrap_port": engine.bootstrap_port}
            | {"data_parallel_size": 2}
            for engine in stack.prefill
        ]
        decode = [describe_engine(engine) for engine in stack.decode]
        roleset = {"name": "default", "prefill": prefill, "decode": decode}
        stack.endpoints_file.write_text(
            yaml.safe_dump({"models": [{"name": stack.model, "rolesets": [roleset]}]})
        )

        async def know_ranks() -> None:
            assert len(stack.router.cache.view.pods) == 5

        await eventually(know_ranks)
        ranks: set[tuple[SimulatedEngine, int]] = set()
        for number in range(100):
            if len(ranks) == 4:
                break
            own = [{"role": "user", "content": f"{number}: Why?"}]
            response = await client.post(CHAT, json=chat(messages=own))
            side, last = expect_disaggregated(stack, response)
            rank = int(side.request.headers["x-data-parallel-rank"])
            port = read_params(last)["remote_prefiller"]["remote_port"]
            assert port == side.engine.bootstrap_port + rank
            ranks.add((side.engine, rank))
        assert len(ranks) == 4
        assert not sum(each.count("simulation:recomputed_prompts_total") for each in stack.decode)
