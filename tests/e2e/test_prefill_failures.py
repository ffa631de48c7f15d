"""What becomes of a request whose prefill leg fails."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from expectations import (
    PATIENCE_S,
    chat,
    engines_of,
    expect_error,
    expect_whole,
    find_sent,
    read_admin,
    read_metrics,
)
from failures import (
    CHAT,
    DECODE,
    FOLLOW_ENDPOINTS,
    PREFILL,
    count_since,
    expect_ended,
    expect_no_address,
    expect_running,
    failing,
    list_ids,
    list_pods,
    read_line,
    run_small_stack,
    try_first,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(
        prefill=PREFILL[:2],
        decode=[DECODE],
        # The pods that fail here must be tried all the same.
        environment={"PDROUTER_PREFILL_RESPONSE_TIMEOUT": "1", "PDROUTER_EJECT_AFTER": "0"},
    )


@pytest.fixture(autouse=True)
def log_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter.request")


def sorted_by_pod(attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(attempts, key=lambda attempt: str(attempt["pod"]))


FAULTS = [
    pytest.param(Fault(drop=True), "transport", None, id="connection-dropped"),
    pytest.param(Fault(hang=True), "timeout", None, id="hang"),
    pytest.param(Fault(status=500), "status", 500, id="status-500"),
    pytest.param(Fault(status=503), "status", 503, id="status-503"),
]


@pytest.mark.parametrize(("fault", "failure", "status"), FAULTS)
async def test_one_faulty_pod_is_made_up_for_by_another(
    stack: LocalStack,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    failure: str,
    status: int | None,
) -> None:
    faulty, healthy = stack.prefill
    before = await read_metrics(stack)
    with try_first(stack, faulty, healthy), failing([faulty], fault):
        response = await client.post(CHAT, json=chat())

    assert response.status_code == 200
    assert response.headers["x-pd-decision"] == "disaggregated"
    assert response.headers["prefill-target-pod-ip"] == healthy.host
    request_id = response.headers["x-request-id"]
    line = await read_line(caplog, request_id)
    assert line["prefill_attempts"] == 2
    assert line["outcome"] == "ok"
    (failed,) = line["failed_attempts"]
    assert failed["failure"] == failure
    assert failed["status"] == status
    assert failed["pod"] != line["prefill_pod"]

    faulty_ids, healthy_ids = (list_ids(engine, request_id) for engine in stack.prefill)
    assert failed["request_id"] == faulty_ids[-1]
    assert len({*faulty_ids, *healthy_ids}) == len(faulty_ids) + len(healthy_ids)
    assert list_ids(stack.decode[0], request_id) == healthy_ids
    await expect_ended(stack)
    after = await read_metrics(stack)
    assert count_since(before, after, "pdrouter_prefill_attempts_total", model="demo") == 2
    assert count_since(before, after, "pdrouter_prefill_failures_total", reason=failure) == 1
    assert count_since(before, after, "pdrouter_prefill_failures_total") == 1


async def test_a_pod_that_refuses_connections_is_made_up_for_by_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_small_stack({}) as (stack, client):
        gone, healthy = stack.prefill
        await gone.stop()
        with try_first(stack, gone, healthy):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 200
        assert response.headers["prefill-target-pod-ip"] == healthy.host
        line = await read_line(caplog, response.headers["x-request-id"])
        (failed,) = line["failed_attempts"]
        assert failed["failure"] == "connect"

        await healthy.stop()
        response = await client.post(CHAT, json=chat())
        error = expect_error(response, 502, "prefill_failed")
        assert f"({healthy.address}) cannot be connected to" in error["message"]


@pytest.mark.parametrize(
    ("fault", "stream", "status", "code"),
    [
        pytest.param(Fault(drop=True), False, 502, "prefill_failed", id="connection-dropped"),
        pytest.param(Fault(hang=True), True, 504, "prefill_timeout", id="hang"),
        pytest.param(Fault(status=500), True, 502, "prefill_failed", id="status-500"),
        pytest.param(Fault(status=503), False, 503, "prefill_unavailable", id="status-503"),
    ],
)
async def test_faults_everywhere_become_an_error_that_names_pods_and_causes(
    stack: LocalStack,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    stream: bool,
    status: int,
    code: str,
) -> None:
    received = len(stack.decode[0].requests)
    with failing(stack.prefill, fault):
        response = await client.post(CHAT, json=chat(stream=stream))
    error = expect_error(response, status, code)
    assert "2 attempt" in error["message"]
    assert ("retry-after" in response.headers) == (status == 503)
    assert len(stack.decode[0].requests) == received
    line = await read_line(caplog, response.headers["x-request-id"])
    decisions = (await read_admin(stack, "/debug/decisions")).json()["decisions"]
    assert decisions[0]["failed_attempts"] == line["failed_attempts"]
    for engine, failed in zip(stack.prefill, sorted_by_pod(line["failed_attempts"]), strict=True):
        assert failed["address"] == engine.address
        assert f"pod {failed['pod']} ({engine.address})" in error["message"]
    if fault.status is not None:
        assert f"answered {fault.status}: Simulated fault" in error["message"]


async def test_an_error_names_no_pod_where_clients_must_not_know_them() -> None:
    environment = {"PDROUTER_EXPOSE_PODS": "false"}
    async with run_small_stack(environment) as (stack, client):
        names = [pod.name for pod in stack.router.cache.view.pods]
        for fault in (Fault(drop=True), Fault(status=500), None):
            if fault is None:
                for engine in stack.prefill:
                    await engine.stop()
            with failing(stack.prefill, fault or Fault()):
                response = await client.post(CHAT, json=chat())
            expect_error(response, 502, "prefill_failed")
            expect_no_address(stack, response)
            assert not any(name in response.text for name in names)


async def test_the_deadline_of_the_leg_covers_all_attempts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment = {"AIBRIX_PREFILL_REQUEST_TIMEOUT": "1", "PDROUTER_PREFILL_CONNECT_TIMEOUT": "1"}
    async with run_small_stack(environment) as (stack, client):
        with failing(stack.prefill, Fault(hang=True)):
            response = await client.post(CHAT, json=chat())
        expect_error(response, 504, "prefill_timeout")
        line = await read_line(caplog, response.headers["x-request-id"])
        assert line["prefill_attempts"] == 1
        assert line["outcome"] == "failed"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_engines_refusal_reaches_the_client_unchanged(
    stack: LocalStack, client: httpx.AsyncClient, status: int
) -> None:
    before = await read_metrics(stack)
    received = [len(engine.requests) for engine in engines_of(stack)]
    with failing(stack.prefill, Fault(status=status)):
        response = await client.post(CHAT, json=chat())
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.headers["x-pd-decision"] == "disaggregated"
    assert response.json()["error"]["message"] == f"Simulated fault: status {status}"
    assert response.json()["error"]["code"] == status
    await expect_ended(stack)
    after = await read_metrics(stack)
    refusals = count_since(before, after, "pdrouter_prefill_refusals_total", status=str(status))
    assert refusals == 1
    assert count_since(before, after, "pdrouter_prefill_failures_total") == 0
    requests = [len(engine.requests) for engine in engines_of(stack)]
    assert sum(requests) == sum(received) + 1
    assert requests[-1] == received[-1]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429])
async def test_what_one_pod_says_of_itself_no_client_hears(
    stack: LocalStack, client: httpx.AsyncClient, status: int
) -> None:
    refusing, other = stack.prefill
    with failing([refusing], Fault(status=status)):
        for _ in range(12):
            with try_first(stack, refusing, other):
                response = await client.post(CHAT, json=chat())
            assert response.status_code == 200
            assert response.headers["prefill-target-pod-ip"] == other.host
    await client.post(CHAT, json=chat())


@pytest.mark.parametrize("status", [401, 404, 429])
async def test_what_all_pods_say_reaches_the_client_in_their_words(
    stack: LocalStack, client: httpx.AsyncClient, status: int
) -> None:
    received = len(stack.decode[0].requests)
    with failing(stack.prefill, Fault(status=status, retry_after="3")):
        response = await client.post(CHAT, json=chat())
    assert response.status_code == status
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["message"] == f"Simulated fault: status {status}"
    assert [
        len(list_ids(engine, response.headers["x-request-id"])) for engine in stack.prefill
    ] == [1, 1]
    assert len(stack.decode[0].requests) == received


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"messages": [{"role": "user", "content": "long " * 30_000}]}, id="too-long"),
        pytest.param({"top_logprobs": 3}, id="top_logprobs-alone"),
        pytest.param({"tools": []}, id="no-tools"),
    ],
)
async def test_what_the_engine_finds_wrong_is_said_in_its_own_words(
    stack: LocalStack, client: httpx.AsyncClient, members: Mapping[str, Any]
) -> None:
    response = await client.post(CHAT, json=chat(**members))
    assert response.status_code == 400
    ((engine, sent),) = [(each.engine, each.request) for each in find_sent(stack, response)]
    assert engine in stack.prefill
    async with httpx.AsyncClient(timeout=PATIENCE_S) as direct:
        said = await direct.post(
            f"http://{engine.address}{CHAT}",
            content=sent.body,
            headers={"content-type": "application/json"},
        )
    assert (response.status_code, response.content) == (said.status_code, said.content)


async def test_without_retries_the_first_failure_is_the_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_small_stack({"PDROUTER_PREFILL_RETRIES": "0"}) as (stack, client):
        faulty, healthy = stack.prefill
        with try_first(stack, faulty), failing([faulty], Fault(status=500)):
            response = await client.post(CHAT, json=chat())
        expect_error(response, 502, "prefill_failed")
        line = await read_line(caplog, response.headers["x-request-id"])
        assert line["prefill_attempts"] == 1
        assert not healthy.requests


async def test_two_retries_reach_the_third_pod(caplog: pytest.LogCaptureFixture) -> None:
    async with run_small_stack({}, prefill=PREFILL) as (stack, client):
        *faulty, healthy = stack.prefill
        with try_first(stack, *stack.prefill), failing(faulty, Fault(status=500)):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 200
        assert response.headers["prefill-target-pod-ip"] == healthy.host
        request_id = response.headers["x-request-id"]
        line = await read_line(caplog, request_id)
        assert line["prefill_attempts"] == 3
        ids = [list_ids(engine, request_id) for engine in stack.prefill]
        assert [len(each) for each in ids] == [1, 1, 1]
        assert len({*ids[0], *ids[1], *ids[2]}) == 3


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(status=503)], ids=["drop", "503"])
async def test_the_decode_pod_can_take_over_what_prefill_fails_to_do(fault: Fault) -> None:
    async with run_small_stack({"PDROUTER_ON_PREFILL_FAILURE": "aggregate"}) as (stack, client):
        with failing(stack.prefill, fault):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "aggregated;reason=prefill-failed"
        assert [request.leg for request in stack.decode[0].requests] == ["whole"]
        with failing(stack.prefill, Fault(status=400)):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 400
        await expect_ended(stack)
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_decisions_total", reason="prefill-failed") == 1


@pytest.mark.parametrize("missing", ["prefill", "decode"])
async def test_without_a_ready_pair_the_client_is_told_to_come_back(missing: str) -> None:
    environment = {"PDROUTER_AGGREGATE": "never", **FOLLOW_ENDPOINTS}
    async with run_small_stack(environment) as (stack, client):
        prefill = () if missing == "prefill" else stack.prefill
        decode = () if missing == "decode" else stack.decode
        await list_pods(stack, {"default": (prefill, decode)})
        response = await client.post(CHAT, json=chat())
        error = expect_error(response, 503, "no_ready_pod")
        assert missing in error["message"]
        assert int(response.headers["retry-after"]) > 0
        assert not any(engine.requests for engine in engines_of(stack))


@pytest.mark.parametrize("missing", ["prefill", "decode"])
async def test_without_a_ready_pair_a_decode_pod_can_serve_alone(missing: str) -> None:
    async with run_small_stack(FOLLOW_ENDPOINTS) as (stack, client):
        prefill = () if missing == "prefill" else stack.prefill
        decode = () if missing == "decode" else stack.decode
        await list_pods(stack, {"default": (prefill, decode)})
        response = await client.post(CHAT, json=chat())
        if missing == "prefill":
            expect_whole(stack, response, "no-ready-pair")
        else:
            expect_error(response, 503, "no_ready_pod")


async def test_a_retry_knows_the_pods_that_have_come_meanwhile() -> None:
    async with run_small_stack(FOLLOW_ENDPOINTS) as (stack, client):
        first, later = stack.prefill
        await list_pods(stack, {"default": ([first], stack.decode)})
        first.faults.set(Fault(hang=True))
        sending = asyncio.create_task(client.post(CHAT, json=chat()))
        await expect_running(first, 1)
        await list_pods(stack, {"default": ([later], stack.decode)})
        await first.stop()
        response = await sending
        assert response.status_code == 200
        assert response.headers["prefill-target-pod-ip"] == later.host
