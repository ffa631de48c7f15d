"""What becomes of a request after its prefill leg: useless handles, lost connections, decode."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio
from expectations import (
    chat,
    connect,
    expect_disaggregated,
    expect_error,
    expect_settled,
    read_metrics,
)
from failures import (
    CHAT,
    DECODE,
    PREFILL,
    count_since,
    expect_ended,
    expect_no_address,
    failing,
    list_ids,
    read_line,
    run_small_stack,
    try_first,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

HANDOFFS = [
    pytest.param(Fault(null_params=True), "null-params", id="null"),
    pytest.param(Fault(empty_blocks=True), "empty-blocks", id="no-blocks"),
    *(
        pytest.param(Fault(omit_params=(name,)), reason, id=f"without-{name}")
        for name, reason in (
            ("do_remote_prefill", "incomplete-params"),
            ("remote_block_ids", "empty-blocks"),
            ("remote_engine_id", "incomplete-params"),
            ("remote_host", "incomplete-params"),
            ("remote_port", "incomplete-params"),
        )
    ),
]


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    # Pods whose handles are of no use would be left out of the tests that come after.
    return StackOptions(
        prefill=PREFILL[:2], decode=[DECODE], environment={"PDROUTER_EJECT_AFTER": "0"}
    )


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    """A client; blocks that nobody fetches are waited for at the end of the module only."""
    async with connect(stack) as connected:
        yield connected
    await expect_ended(stack)


@pytest.mark.parametrize(("fault", "reason"), HANDOFFS)
async def test_a_useless_handle_never_reaches_the_decode_engine(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault, reason: str
) -> None:
    before = await read_metrics(stack)
    with failing(stack.prefill, fault):
        response = await client.post(CHAT, json=chat())
    assert response.status_code == 200
    assert response.headers["x-pd-decision"] == f"aggregated;reason=handoff-{reason}"
    (request_id,) = list_ids(stack.decode[0], response.headers["x-request-id"])
    (whole,) = (r for r in stack.decode[0].requests if r.headers["x-request-id"] == request_id)
    assert whole.leg == "whole"
    assert json.loads(whole.body) == chat()
    await expect_ended(stack)
    after = await read_metrics(stack)
    assert count_since(before, after, "pdrouter_handoff_failures_total", reason=reason) == 1
    assert count_since(before, after, "pdrouter_handoff_failures_total") == 1


async def test_a_useless_handle_can_be_an_error() -> None:
    async with run_small_stack({"PDROUTER_ON_HANDOFF_FAILURE": "fail"}) as (stack, client):
        with failing(stack.prefill, Fault(null_params=True)):
            response = await client.post(CHAT, json=chat())
        expect_error(response, 502, "handoff_invalid")
        expect_no_address(stack, response)
        assert not stack.decode[0].requests


async def test_engines_before_remote_request_id_are_served() -> None:
    prefill = [replace(config, release="old") for config in PREFILL[:2]]
    decode = [replace(DECODE, release="old")]
    async with run_small_stack({}, prefill=prefill, decode=decode) as (stack, client):
        response = await client.post(CHAT, json=chat())
        expect_disaggregated(stack, response)
        shorter_than_a_block = [{"role": "user", "content": "hi"}]
        response = await client.post(CHAT, json=chat(messages=shorter_than_a_block))
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "aggregated;reason=handoff-empty-blocks"


async def test_a_connection_that_breaks_when_it_is_used_again_is_no_failure(
    stack: LocalStack, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter.request")
    engine = stack.prefill[0]
    with try_first(stack, engine):
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        before = await read_metrics(stack)
        # As an engine does whose keep-alive timeout ends while the request is on its way.
        engine.faults.set(Fault(drop=True, times=1))
        response = await client.post(CHAT, json=chat())
    assert response.headers["prefill-target-pod-ip"] == engine.host
    line = await read_line(caplog, response.headers["x-request-id"])
    assert line["prefill_attempts"] == 1
    assert "failed_attempts" not in line
    ids = list_ids(engine, response.headers["x-request-id"])
    assert len(set(ids)) == 2
    assert list_ids(stack.decode[0], response.headers["x-request-id"]) == ids[1:]
    await expect_ended(stack)
    after = await read_metrics(stack)
    assert count_since(before, after, "pdrouter_prefill_stale_connections_total") == 1
    assert count_since(before, after, "pdrouter_prefill_attempts_total") == 1
    assert count_since(before, after, "pdrouter_prefill_failures_total") == 0


async def test_connections_that_engines_close_while_idle_cost_no_request(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    before = await read_metrics(stack)
    for _ in range(8):
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        for engine in (*stack.prefill, *stack.decode):
            engine.close_idle_connections()
    await expect_ended(stack)
    after = await read_metrics(stack)
    assert count_since(before, after, "pdrouter_prefill_attempts_total") == 8
    assert count_since(before, after, "pdrouter_prefill_failures_total") == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_engine_that_is_away_becomes_a_json_error(stream: bool) -> None:
    async with run_small_stack({}) as (stack, client):
        await stack.decode[0].stop()
        response = await client.post(CHAT, json=chat(stream=stream))
        expect_error(response, 503, "upstream_unavailable")
        assert response.headers["x-pd-decision"] == "disaggregated"
        assert stack.decode[0].address not in response.text
        await expect_settled(stack)
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_requests_total", outcome="local-reply", status="503") == 1


async def test_an_answer_of_envoy_to_a_request_without_a_strategy_is_not_an_engines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter")
    async with run_small_stack({"ROUTING_ALGORITHM": ""}) as (stack, client):
        expect_error(await client.post(CHAT, json=chat()), 503, "upstream_unavailable")
        await expect_settled(stack)
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_requests_total", outcome="local-reply", status="503") == 1
        assert metrics.total("pdrouter_requests_total", outcome="engine-error") == 0
    requests = [record for record in caplog.records if record.name == "pdrouter.request"]
    (line,) = [line for record in requests for line in vars(record)["lines"]]
    assert line["local_reply"] == "no_healthy_upstream"
    assert line["strategy"] is None


@pytest.mark.parametrize("status", [400, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_of_the_decode_engine_reaches_the_client_unchanged(
    stack: LocalStack, client: httpx.AsyncClient, status: int, stream: bool
) -> None:
    with failing(stack.decode, Fault(status=status)):
        response = await client.post(CHAT, json=chat(stream=stream))
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"Simulated fault: status {status}"
    assert len(list_ids(stack.decode[0], response.headers["x-request-id"])) == 1


async def test_a_decode_engine_that_hangs_up_before_it_answers_becomes_a_json_error(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    with failing(stack.decode, Fault(drop=True)):
        response = await client.post(CHAT, json=chat())
    expect_error(response, 503, "upstream_unavailable")
    assert len(list_ids(stack.decode[0], response.headers["x-request-id"])) == 1


async def test_a_stream_that_the_decode_engine_breaks_off_is_broken_off_for_the_client(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    received: list[str] = []

    async def read() -> None:
        async with client.stream("POST", CHAT, json=chat(stream=True)) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                received.append(line)  # noqa: PERF401 - what came before the break counts

    with (
        failing(stack.decode, Fault(drop_after_tokens=2)),
        pytest.raises(httpx.RemoteProtocolError),
    ):
        await read()
    assert "-1" in "".join(received)
    assert "data: [DONE]" not in received


async def test_blocks_that_are_gone_when_decode_asks_become_the_engines_error() -> None:
    short = [replace(PREFILL[0], kv_lease_s=0.01)]
    async with run_small_stack({}, prefill=short) as (stack, client):
        with failing(stack.decode, Fault(slow_s=0.1)):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "Internal server error"
        assert stack.decode[0].count("vllm:nixl_num_failed_transfers_total") == 1
