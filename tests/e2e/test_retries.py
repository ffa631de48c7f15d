"""A prefill leg that fails is tried again: in its roleset first, then on another pair."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from expectations import (
    chat,
    connect,
    expect_disaggregated,
    expect_error,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from failures import (
    CHAT,
    FOLLOW_ENDPOINTS,
    Listening,
    count_since,
    expect_running,
    failing,
    list_pods,
    read_line,
    try_first,
)
from loopback import Server, Talk, answering, hang, listen

from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFILL = [
    EngineConfig(role="prefill", host=f"127.0.0.{number}", itl_ms=1) for number in range(2, 7)
]
DECODE = [
    EngineConfig(role="decode", host=f"127.0.0.{number}", itl_ms=1) for number in range(7, 12)
]
ENVIRONMENT = {
    **FOLLOW_ENDPOINTS,
    "PDROUTER_PREFILL_RESPONSE_TIMEOUT": "2",
    "PDROUTER_DECISION_DETAIL": "true",
}


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(prefill=PREFILL, decode=DECODE, environment=ENVIRONMENT)


@pytest.fixture(autouse=True)
def log_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter.request")


@dataclass(frozen=True, slots=True)
class Nobody:
    """An address at which nobody listens."""

    address: str


@asynccontextmanager
async def refuse() -> AsyncIterator[Nobody]:
    async with listen(hang) as gone:
        pass
    yield Nobody(gone.address)


async def hang_after_the_head(
    server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await server.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n")
    assert await reader.read() == b""


def answer_500() -> Talk:
    error = b'{"error":{"message":"out of order"}}'
    head = b"HTTP/1.1 500 Oops\r\ncontent-length: %d\r\n\r\n" % len(error)
    return answering(*[head + error] * 100)


BROKEN = [
    pytest.param(refuse, id="refuses"),
    pytest.param(lambda: listen(answer_500()), id="answers-500"),
    pytest.param(lambda: listen(hang_after_the_head), id="hangs-after-the-head"),
]


async def list_sets(
    stack: LocalStack,
    shapes: Sequence[tuple[int, int]],
    broken: Mapping[int, Sequence[Listening]],
) -> None:
    """List rolesets of so many prefill and decode pods, with what stands for the broken ones."""
    await list_pods(stack, {})  # The router forgets what it has learnt of pods that go.
    prefill, decode = iter(stack.prefill), iter(stack.decode)
    rolesets = {}
    for number, (prefills, decodes) in enumerate(shapes):
        bad = broken.get(number, ())
        good = [next(prefill) for _ in range(prefills - len(bad))]
        rolesets[f"r{number}"] = ([*bad, *good], [next(decode) for _ in range(decodes)])
    await list_pods(stack, rolesets)


async def send(
    client: httpx.AsyncClient, requests: int, *, at_once: int = 1
) -> list[httpx.Response]:
    gate = asyncio.Semaphore(at_once)

    async def ask(number: int) -> httpx.Response:
        async with gate:
            messages = [{"role": "user", "content": f"Question {number}: why? " * 8}]
            return await client.post(CHAT, json=chat(messages=messages))

    return await asyncio.gather(*map(ask, range(requests)))


@contextmanager
def looking_busy(engines: Sequence[SimulatedEngine], ledger: Ledger) -> Iterator[None]:
    """Let engines look so busy that whatever else there is looks better, as a broken pod does."""
    with ExitStack() as scopes:
        for engine in engines:
            scopes.enter_context(ledger.start(Leg.PREFILL, engine.address, 1_000_000))
        yield


def list_errors(responses: Sequence[httpx.Response]) -> list[str]:
    return [response.text for response in responses if response.status_code != 200]


@pytest.mark.parametrize("at_once", [1, 8], ids=["one-by-one", "eight-at-once"])
@pytest.mark.parametrize("stand_in", BROKEN)
async def test_a_broken_prefill_pod_of_three_pairs_costs_no_request(
    stack: LocalStack, client: httpx.AsyncClient, stand_in: Any, at_once: int
) -> None:
    async with stand_in() as broken:
        await list_sets(stack, [(1, 1)] * 3, {0: [broken]})
        partner, *others = stack.decode[:3]
        received = len(partner.requests)
        with looking_busy(stack.prefill, stack.router.ledger):
            responses = await send(client, 2)
        responses += await send(client, 40, at_once=at_once)
        assert list_errors(responses) == []
        pairs = {(p.host, d.address) for p, d in zip(stack.prefill[:2], others, strict=True)}
        assert pairs >= {
            (response.headers["prefill-target-pod-ip"], response.headers["target-pod-ip"])
            for response in responses
        }
        assert len(partner.requests) == received


@pytest.mark.parametrize("at_once", [1, 8], ids=["one-by-one", "eight-at-once"])
async def test_a_roleset_without_a_prefill_pod_that_works_costs_no_request(
    stack: LocalStack, client: httpx.AsyncClient, at_once: int
) -> None:
    async with refuse() as one, refuse() as two:
        await list_sets(stack, [(2, 2), (1, 2), (2, 1)], {0: [one, two]})
        received = [len(engine.requests) for engine in stack.decode[:2]]
        before = await read_metrics(stack)
        with looking_busy(stack.prefill, stack.router.ledger):
            responses = await send(client, 10, at_once=at_once)
        responses += await send(client, 110, at_once=at_once)
        assert list_errors(responses) == []
        after = await read_metrics(stack)
        moved = {"result": "other-pair"}
        assert count_since(before, after, "pdrouter_prefill_retries_total", **moved) > 0
        assert not count_since(
            before, after, "pdrouter_prefill_retries_total", result="over-budget"
        )
        assert received == [len(engine.requests) for engine in stack.decode[:2]]


async def test_what_was_carried_out_is_told_everywhere(
    stack: LocalStack, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await list_sets(stack, [(2, 2), (1, 2)], {})
    first, second, third = stack.prefill[:3]
    before = await read_metrics(stack)
    with try_first(stack, first, second, third), failing([first, second], Fault(status=500)):
        response = await client.post(CHAT, json=chat(), headers={"x-pd-decision-detail": "1"})
    request_id = response.headers["x-request-id"]
    assert response.status_code == 200
    ids = [request.headers["x-request-id"] for request in first.requests[-1:]]
    assert ids + [engine.requests[-1].headers["x-request-id"] for engine in (second, third)] == [
        request_id,
        f"{request_id}-2",
        f"{request_id}-3",
    ]
    (served,) = [
        engine
        for engine in stack.decode
        if engine.requests and engine.requests[-1].headers["x-request-id"] == f"{request_id}-3"
    ]
    assert served in stack.decode[2:4]
    assert response.headers["x-pd-decision"] == "disaggregated"
    assert response.headers["prefill-target-pod-ip"] == third.host
    assert response.headers["target-pod-ip"] == served.address

    names = {pod.address: pod.name for pod in stack.router.cache.view.pods}
    one, two, three = (names[engine.address] for engine in (first, second, third))
    detail = json.loads(response.headers["x-pd-decision-detail"])
    line = await read_line(caplog, request_id)
    page = await read_admin(stack, f"/debug/decisions?id={request_id}")
    (decision,) = page.json()["decisions"]
    for told in (detail, decision):
        assert told["prefill"]["pod"] == names[third.address]
        assert told["decode"]["pod"] == names[served.address]
        assert told["notes"][-2:] == [
            f"not carried out by {one}: tried again on {two} of the same roleset",
            f"not carried out by {two}: tried again on {three}, with {names[served.address]}",
        ]
    for told in (line, decision):
        assert list(told["retries"]) == ["same-roleset", "other-pair"]
        failed = [attempt["address"] for attempt in told["failed_attempts"]]
        assert failed == [first.address, second.address]
    assert line["prefill_pod"] == names[third.address]
    assert line["decode_pod"] == names[served.address]
    after = await read_metrics(stack)
    for result in ("same-roleset", "other-pair"):
        name, labels = "pdrouter_prefill_retries_total", {"model": "demo", "result": result}
        assert count_since(before, after, name, **labels) == 1
    for name, engines in (
        ("pd_selected_prefill_pod_total", [first, second, third]),
        ("pd_selected_decode_pod_total", [served]),
    ):
        for engine in engines:
            pod = names[engine.address]
            assert count_since(before, after, name, pod=pod) == 1


async def test_a_client_that_leaves_during_a_further_try_leaves_nothing_behind(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    await list_sets(stack, [(1, 1), (1, 1)], {})
    first, second = stack.prefill[:2]
    received = [len(engine.requests) for engine in stack.decode]
    with (
        try_first(stack, first, second),
        failing([first], Fault(status=500)),
        failing([second], Fault(hang=True)),
    ):
        sending = asyncio.create_task(client.post(CHAT, json=chat()))
        await expect_running(second, 1)
        ledger = stack.router.ledger.snapshot()
        counted = {uid for uid, legs in ledger.items() if "decode" in legs}
        assert counted == {stack.decode[1].address}
        sending.cancel()
        await asyncio.wait([sending])
        await expect_running(second, 0)
    assert [len(engine.requests) for engine in stack.decode] == received
    expect_disaggregated(stack, await client.post(CHAT, json=chat()))


async def test_above_the_model_s_budget_nothing_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    environment = {"PDROUTER_RETRY_BUDGET": "0", "PDROUTER_RETRY_BUDGET_PER_SECOND": "0.1"}
    options = StackOptions(prefill=PREFILL[:2], decode=DECODE[:1], environment=environment)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        faulty, other = stack.prefill
        with failing([faulty], Fault(status=500)), try_first(stack, faulty, other):
            assert (await client.post(CHAT, json=chat())).status_code == 200
            response = await client.post(CHAT, json=chat())
        error = expect_error(response, 502, "prefill_failed")
        assert error["message"].endswith("since too many of the model's requests are")
        line = await read_line(caplog, response.headers["x-request-id"])
        assert list(line["retries"]) == ["over-budget"]
        assert line["prefill_attempts"] == 1
        metrics = await read_metrics(stack)
        name = "pdrouter_prefill_retries_total"
        assert metrics.total(name, model="demo", result="over-budget") == 1
        assert metrics.total(name, model="demo", result="same-roleset") == 1
