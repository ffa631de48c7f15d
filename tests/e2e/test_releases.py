"""Blocks that no decode pod fetches: freed at once where that is safe, never where it is not."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from expectations import (
    PATIENCE_S,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    read_metrics,
)
from failures import CHAT, FOLLOW_ENDPOINTS, expect_ended, failing, list_pods

from pdrouter.engines.split import Leg
from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

# Longer than the tests wait: what is free at their end was freed by a release.
PREFILL = EngineConfig(role="prefill", host="127.0.0.2", kv_lease_s=600)
DECODE = tuple(
    EngineConfig(role="decode", host=host, itl_ms=1) for host in ("127.0.0.3", "127.0.0.4")
)
OPTIONS = StackOptions(prefill=[PREFILL], decode=DECODE)


@contextmanager
def avoiding(stack: LocalStack, engine: SimulatedEngine) -> Iterator[None]:
    """Let a decode engine look busy."""
    with stack.router.ledger.start(Leg.DECODE, engine.address, 1_000_000):
        yield


async def count_releases(stack: LocalStack, **labels: str) -> float:
    return (await read_metrics(stack)).total("pdrouter_releases_total", **labels)


async def expect_released(stack: LocalStack, count: int, outcome: str) -> None:
    async def check() -> None:
        assert await count_releases(stack, outcome=outcome) == count

    await eventually(check)
    assert await count_releases(stack) == count


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_pod_that_refuses_the_connection_leaves_no_blocks_behind(
    stream: bool,
) -> None:
    async with run_stack(OPTIONS) as stack, connect(stack) as client:
        broken, other = stack.decode
        await broken.stop()
        with avoiding(stack, other):
            response = await client.post(CHAT, json=chat(stream=stream))
        expect_error(response, 503, "upstream_unavailable")
        await expect_released(stack, 1, "asked")
        await expect_settled(stack)
        (request,) = other.requests
        assert (request.status, request.outcome) == (404, "answered")
        assert request.headers["x-request-id"] == f"{response.headers['x-request-id']}-release"
        assert other.count("vllm:prompt_tokens_total") == 0
        assert stack.prefill[0].count("simulation:kv_releases_total") == 1
        # The handle of the next request is none of the first one's business.
        with avoiding(stack, broken):
            expect_disaggregated(stack, await client.post(CHAT, json=chat(stream=stream)))
        await expect_settled(stack)
        assert await count_releases(stack) == 1


async def test_a_decode_pod_that_refuses_what_runs_beside_prefill_leaves_no_blocks_behind() -> None:
    prefill, *decode = (replace(each, kv_connector="nixl-push") for each in (PREFILL, *DECODE))
    options = StackOptions(
        prefill=[prefill],
        decode=decode,
        environment={"AIBRIX_KV_CONNECTOR_TYPE": "nixl-push", "PDROUTER_EJECT_AFTER": "0"},
    )
    async with run_stack(options) as stack, connect(stack) as client:
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        refusing, other = stack.decode
        # Later than the prefill engine, which has its blocks by then.
        refusing.faults.set(Fault(slow_s=1, status=400, times=1))
        with avoiding(stack, other):
            assert (await client.post(CHAT, json=chat())).status_code == 400
        await expect_released(stack, 1, "asked")
        await expect_settled(stack)
        await refusing.stop()
        with avoiding(stack, other), failing(stack.prefill, Fault(slow_s=PATIENCE_S)):
            response = await client.post(CHAT, json=chat())
        expect_error(response, 503, "upstream_unavailable")
        # The prefill engine was stopped before it had any.
        await expect_settled(stack)
        assert await count_releases(stack) == 1


async def test_a_decode_pod_that_breaks_the_connection_may_have_the_handle() -> None:
    async with run_stack(OPTIONS) as stack, connect(stack) as client:
        broken, other = stack.decode
        broken.faults.set(Fault(drop=True))
        with avoiding(stack, other):
            response = await client.post(CHAT, json=chat())
        expect_error(response, 503, "upstream_unavailable")
        await expect_settled(stack, handles=1)
        assert await count_releases(stack) == 0
        assert not other.requests


async def test_without_releases_the_lease_must_end() -> None:
    options = replace(OPTIONS, environment={"PDROUTER_RELEASE": "off"})
    async with run_stack(options) as stack, connect(stack) as client:
        broken, other = stack.decode
        await broken.stop()
        with avoiding(stack, other):
            expect_error(await client.post(CHAT, json=chat()), 503, "upstream_unavailable")
        await expect_settled(stack, handles=1)
        assert await count_releases(stack) == 0
        assert not other.requests


@contextmanager
def ignoring_connections(host: str) -> Iterator[SimulatedEngine]:
    """An engine to which no connection comes about, as if its node had gone."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server((host, 0), backlog=0))
        while True:
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0.2)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        yield SimulatedEngine(replace(DECODE[0], host=host, port=listener.getsockname()[1]))


async def test_a_client_that_leaves_while_envoy_connects_leaves_the_blocks_to_the_lease() -> None:
    options = replace(OPTIONS, decode=DECODE[:1], environment=FOLLOW_ENDPOINTS)
    async with run_stack(options) as stack, connect(stack) as client:
        (alive,) = stack.decode
        with ignoring_connections("127.0.0.5") as vanished:
            await list_pods(stack, {"r": (stack.prefill, [alive, vanished])})
            with avoiding(stack, alive):
                request = asyncio.create_task(client.post(CHAT, json=chat()))
                await eventually(lambda: expect_handed_over(stack))
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request
            await expect_ended(stack)
        # For all that the router can know, the pod has the handle.
        await expect_settled(stack, handles=1)
        assert await count_releases(stack) == 0
        assert not alive.requests


async def expect_handed_over(stack: LocalStack) -> None:
    assert stack.prefill[0].count("simulation:kv_handles_outstanding") == 1
    assert [record.forwarded for record in stack.router.telemetry.open.values()] == [True]


async def test_the_router_ends_though_a_release_hangs() -> None:
    async with asyncio.timeout(PATIENCE_S):
        options = replace(OPTIONS, environment={"PDROUTER_RELEASE_TIMEOUT": "300"})
        async with run_stack(options) as stack, connect(stack) as client:
            broken, other = stack.decode
            await broken.stop()
            other.faults.set(Fault(hang=True))
            with avoiding(stack, other):
                expect_error(await client.post(CHAT, json=chat()), 503, "upstream_unavailable")

            async def check() -> None:
                assert [request.outcome for request in other.requests] == ["running"]

            await eventually(check)
        assert [request.outcome for request in other.requests] == ["aborted"]
        page = stack.router.telemetry.metrics.render().decode()
        assert 'pdrouter_releases_total{outcome="dropped"} 1.0' in page
