"""A decode pod that cannot be connected to: Envoy takes the second that it was told, and only then.

What a pod may have seen is sent nowhere else, whatever retry policy somebody gave Envoy: a KV
handle is good for one request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from expectations import (
    UNTIL_SETTLED_S,
    chat,
    connect,
    eventually,
    expect_error,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, expect_ended, failing, list_ids, read_line

from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

HERE = Address("127.0.0.1", 0)
PREFILL = (EngineConfig(role="prefill", host="127.0.0.2", itl_ms=1, kv_lease_s=UNTIL_SETTLED_S),)
DECODE = tuple(
    EngineConfig(role="decode", host=f"127.0.0.{number}", itl_ms=1) for number in range(3, 6)
)
EAGER: Mapping[str, Any] = {"retry_on": "5xx,reset,connect-failure", "num_retries": 3}
"""A retry policy as somebody may have it for other routes."""


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        routing=Routing.OVERRIDE_HOST,
        # A pod that fails stays in, so that requests go on meeting it.
        environment={"PDROUTER_EJECT_AFTER": "0"},
    )


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    """A client; blocks that nobody fetches are waited for at the end of the module only."""
    async with connect(stack) as connected:
        yield connected
    await expect_ended(stack)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain_stack(stack_options: StackOptions) -> AsyncIterator[LocalStack]:
    """The same, but that Envoy is told one address."""
    options = replace(stack_options, routing=Routing.ORIGINAL_DST, decode=DECODE[:1])
    async with run_checked_stack(options) as running:
        yield running


@asynccontextmanager
async def run_eager_envoy(stack: LocalStack, *, rules: bool) -> AsyncIterator[httpx.AsyncClient]:
    """Run an Envoy with a retry policy that fits no KV handle.

    Args:
        stack: the installation behind it.
        rules: whether the router may set Envoy's own headers; Envoy Gateway has no field for that.
    """
    config = EnvoyConfig(
        routers=(Address("127.0.0.1", stack.router.server.port),), listen=HERE, admin=HERE
    )
    bootstrap = yaml.safe_load(to_yaml(build_bootstrap(config)))
    (listener,) = bootstrap["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    route["route"]["retry_policy"] = EAGER
    if not rules:
        del manager["http_filters"][0]["typed_config"]["mutation_rules"]
    async with (
        EnvoyProcess.run(yaml.safe_dump(bootstrap)) as envoy,
        httpx.AsyncClient(base_url=f"http://{envoy.listener}", timeout=30) as connected,
    ):
        yield connected


def count_sent(stack: LocalStack, response: httpx.Response) -> int:
    """Return how many requests for the last leg have come to the decode engines."""
    request_id = response.headers["x-request-id"]
    return sum(len(list_ids(engine, request_id)) for engine in stack.decode)


@pytest.mark.parametrize("members", [{}, {"stream": True}, {"n": 2}], ids=["", "stream", "whole"])
async def test_a_dead_decode_pod_costs_no_request(
    stack: LocalStack,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    members: dict[str, Any],
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter.request")
    before = await read_metrics(stack)
    dead, *living = stack.decode
    pods = (await read_admin(stack, "/debug/state")).json()["pods"]
    (name,) = [pod["name"] for pod in pods if pod["address"] == dead.address]
    await dead.stop()
    try:
        responses = await asyncio.gather(
            *(client.post(CHAT, json=chat(seed=number, **members)) for number in range(30))
        )
    finally:
        await dead.start()
    assert {response.status_code for response in responses} == {200}
    moved = 0
    for response in responses:
        (served_by,) = [
            engine for engine in living if list_ids(engine, response.headers["x-request-id"])
        ]
        # Headers and log name the pod that has served, and none else.
        assert response.headers["target-pod-ip"] == served_by.address
        line = await read_line(caplog, response.headers["x-request-id"])
        assert line["decode_pod"] == response.headers["target-pod"]
        assert "served_by" not in line
        moved += "unreached_pod" in line
        assert line.get("unreached_pod") in (None, name)
    assert moved > 0
    await expect_ended(stack)
    after = await read_metrics(stack)
    counted = [metrics.total("pdrouter_second_pod_total") for metrics in (before, after)]
    assert counted[1] - counted[0] == moved
    assert after.total("pdrouter_misrouted_total") == 0
    pods = (await read_admin(stack, "/debug/state")).json()["pods"]
    assert not any(pod["decode_requests"] for pod in pods)


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=503), Fault(drop=True)])
async def test_what_a_decode_pod_may_have_seen_is_sent_nowhere_else(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault
) -> None:
    with failing(stack.decode, fault):
        for _ in range(6):
            response = await client.post(CHAT, json=chat())
            assert response.status_code == (fault.status or 503)
            assert count_sent(stack, response) == 1


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(drop=True)])
async def test_the_router_forbids_envoy_to_send_a_handle_again(
    plain_stack: LocalStack, fault: Fault
) -> None:
    async with run_eager_envoy(plain_stack, rules=True) as client:
        with failing(plain_stack.decode, fault):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == (fault.status or 503)
        assert count_sent(plain_stack, response) == 1
        # A whole request has no handle: it is the operator's to decide.
        with failing(plain_stack.decode, fault):
            response = await client.post(CHAT, json=chat(n=2))
        assert count_sent(plain_stack, response) == 1 + EAGER["num_retries"]
    await expect_ended(plain_stack)


async def test_where_it_cannot_an_answer_to_a_handle_that_was_sent_twice_is_kept_back(
    plain_stack: LocalStack,
) -> None:
    async with run_eager_envoy(plain_stack, rules=False) as client:
        before = await read_metrics(plain_stack)
        with failing(plain_stack.decode, Fault(status=500, times=1)):
            response = await client.post(CHAT, json=chat())
        assert count_sent(plain_stack, response) == 2
        expect_error(response, 502, "handle_reused")
        # Another request, which was sent once, is not touched.
        assert (await client.post(CHAT, json=chat())).status_code == 200
    await expect_ended(plain_stack)
    after = await read_metrics(plain_stack)
    name = "pdrouter_handoff_failures_total"
    assert after.total(name, reason="sent-twice") - before.total(name, reason="sent-twice") == 1


async def test_a_client_cannot_have_a_handle_sent_again(plain_stack: LocalStack) -> None:
    asking = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "5"}
    async with connect(plain_stack, headers=asking) as client:
        with failing(plain_stack.decode, Fault(status=500)):
            response = await client.post(CHAT, json=chat())
    assert count_sent(plain_stack, response) == 1
    await expect_ended(plain_stack)


async def test_the_access_log_takes_the_second_pod_for_no_stranger(
    stack_options: StackOptions,
) -> None:
    environment = {
        **stack_options.environment,
        "PDROUTER_OBSERVE_TOKENS": "access-log",
        # Nor does a scrape find that a pod is dead.
        "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "60000",
    }
    requests = 40  # So many that one of them goes to the dead pod first.
    options = replace(stack_options, environment=environment, token_accounting=True)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        await stack.decode[0].stop()
        for number in range(requests):
            response = await client.post(CHAT, json=chat(seed=number, stream=True))
            assert response.status_code == 200

        async def counted() -> None:
            metrics = await read_metrics(stack)
            assert metrics.total("pdrouter_counted_answers_total") == requests
            assert metrics.total("pdrouter_second_pod_total") > 0
            assert metrics.total("pdrouter_misrouted_total") == 0

        await eventually(counted)
