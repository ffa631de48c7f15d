"""A pod that fails draws no traffic, however many requests come at once.

What it costs where they come one after the other is in `test_broken_pods.py`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from expectations import (
    UNTIL_SETTLED_S,
    chat,
    connect,
    eventually,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, FOLLOW_ENDPOINTS, failing, list_pods

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

FIRST, FIRST_ERRORS, NEXT = 20, 3, 100

PREFILLS = tuple(
    EngineConfig(role="prefill", host=f"127.0.0.{number}", itl_ms=1, kv_lease_s=UNTIL_SETTLED_S)
    for number in range(2, 7)
)
DECODES = tuple(
    EngineConfig(role="decode", host=f"127.0.0.{number}", itl_ms=1) for number in range(7, 12)
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


async def expect_few_errors(
    stack: LocalStack,
    client: httpx.AsyncClient,
    broken: SimulatedEngine,
    *,
    at_once: int = 1,
    most: int = FIRST_ERRORS,
) -> None:
    """Send requests, and check that clients see no more errors than they may, and then none.

    One by one they may find a broken pod slower than those whose speed is known, and not meet it
    for a while.
    """

    async def meet() -> None:
        errors.append(await count_errors(client, at_once, at_once=at_once))
        assert await find_troubles(stack, broken)

    errors: list[int] = []
    await eventually(meet)
    errors.append(await count_errors(client, FIRST, at_once=at_once))
    # Those that are under way when the first ones fail were sent in good faith.
    assert sum(errors) <= (most + at_once - 1 if most else 0)
    assert await count_errors(client, NEXT, at_once=at_once) == 0


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


EIGHT = 8


@pytest.mark.parametrize("routing", Routing)
async def test_one_of_two_decode_pods_is_dead(routing: Routing) -> None:
    async with run(1, 2, routing=routing) as (stack, client):
        dead = stack.decode[0]
        await dead.stop()
        await expect_few_errors(stack, client, dead, at_once=EIGHT)
        await expect_ejected(stack, dead, "decode", "connect")


@pytest.mark.parametrize("at_once", [1, EIGHT])
async def test_one_of_four_decode_pods_is_killed_under_load(at_once: int) -> None:
    async with run(2, 4) as (stack, client):
        assert await count_errors(client, 40, at_once=at_once) == 0
        load = asyncio.create_task(count_errors(client, 40, at_once=at_once))
        await asyncio.sleep(0.02)
        dead = stack.decode[1]
        await dead.stop()
        assert await load <= FIRST_ERRORS + at_once - 1
        await expect_few_errors(stack, client, dead, at_once=at_once)


async def test_one_of_three_rolesets_has_prefill_pods_that_refuse() -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        await stack.prefill[1].stop()
        await expect_few_errors(stack, client, stack.prefill[1], at_once=EIGHT, most=0)


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_one_of_three_decode_pods_fails_fast(status: int) -> None:
    async with run(1, 3) as (stack, client):
        broken = stack.decode[2]
        with failing([broken], Fault(status=status)):
            await expect_few_errors(stack, client, broken, at_once=EIGHT)
        await expect_ejected(stack, broken, "decode", f"status-{status}")


@pytest.mark.parametrize("status", [500, 429, 404])
async def test_the_prefill_pod_of_one_of_three_rolesets_fails_fast(status: int) -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        broken = stack.prefill[0]
        with failing([broken], Fault(status=status)):
            await expect_few_errors(stack, client, broken, at_once=EIGHT, most=0)


@pytest.mark.parametrize("at_once", [1, 3])
async def test_one_of_two_pods_has_lost_what_whole_requests_ask_for(at_once: int) -> None:
    async with run(0, 2, {"ROUTING_ALGORITHM": "random"}) as (stack, client):
        lacking, other = stack.decode

        async def let_the_other_serve() -> None:
            assert await count_errors(client, 1) == 0
            assert other.requests

        await eventually(let_the_other_serve)
        with failing([lacking], Fault(status=404)):
            await expect_few_errors(stack, client, lacking, at_once=at_once)
        (trouble,) = await find_troubles(stack, lacking)
        assert (trouble["ejected"], trouble["model"]) == (True, stack.model)


async def test_two_prefill_pods_of_which_one_refuses_cost_nothing() -> None:
    async with run(2, 1) as (stack, client):
        await stack.prefill[0].stop()
        assert await count_errors(client, FIRST + NEXT, at_once=8) == 0


async def test_a_decode_pod_that_hangs_up_is_left_alone() -> None:
    async with run(1, 2) as (stack, client):
        broken = stack.decode[0]
        with failing([broken], Fault(drop=True)):
            await expect_few_errors(stack, client, broken, at_once=4)
        await expect_ejected(stack, broken, "decode", "transport")


async def test_a_prefill_pod_that_hangs_costs_its_deadline_a_few_times() -> None:
    environment = {"PDROUTER_PREFILL_RESPONSE_TIMEOUT": "2"}
    async with run(2, 1, environment) as (stack, client):
        broken = stack.prefill[0]
        with failing([broken], Fault(hang=True)):
            assert await count_errors(client, FIRST + NEXT, at_once=8) == 0
        # It is soon left out, or looks busy: either way it holds up few.
        assert len(broken.requests) <= 12


async def test_a_decode_pod_that_hangs_is_left_alone_by_clients_that_do_not_wait_long() -> None:
    async with run(1, 2) as (stack, client):
        broken = stack.decode[0]

        async def check_ejected() -> None:
            with suppress(httpx.ReadTimeout):
                await client.post(CHAT, json=chat(), timeout=2)
            assert await find_troubles(stack, broken)

        with failing([broken], Fault(hang=True)):
            await eventually(check_ejected)
            await expect_ejected(stack, broken, "decode", "silence")
            asked = len(broken.requests)
            assert await count_errors(client, FIRST, at_once=4) == 0
        # Clients that wait 2 s have to wait in vain for 10 s in all.
        assert asked == len(broken.requests) <= 6


async def test_a_slow_pod_is_no_failed_pod() -> None:
    async with run(2, 2) as (stack, client):
        with failing([stack.prefill[0], stack.decode[0]], Fault(slow_s=0.2)):
            assert await count_errors(client, 40, at_once=8) == 0
        assert stack.router.failures.calm


async def test_where_all_decode_pods_fail_all_are_tried_and_the_first_to_recover_is_found() -> None:
    async with run(1, 3) as (stack, client):
        with failing(stack.decode, Fault(status=500)):
            assert await count_errors(client, 30, at_once=3) == 30
        assert all(len(engine.requests) >= 3 for engine in stack.decode)
        with failing(stack.decode[:2], Fault(status=500)):
            assert await count_errors(client, FIRST) <= FIRST_ERRORS
            assert await count_errors(client, FIRST) == 0


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_a_pod_that_answers_is_let_in_again(leg: str) -> None:
    environment = {"PDROUTER_EJECT_TIME": "0.3", "PDROUTER_EJECT_LONGEST": "0.5"}
    async with run(2, 2, environment) as (stack, client):
        engines = stack.prefill if leg == "prefill" else stack.decode
        broken = engines[0]
        with failing([broken], Fault(status=500)):

            async def check_ejected() -> None:
                await count_errors(client, 4, at_once=4)
                await expect_ejected(stack, broken, leg, "status-500")

            await eventually(check_ejected)
        received = len(broken.requests)

        async def check_let_in() -> None:
            assert await count_errors(client, 4, at_once=4) == 0
            assert not any(each["ejected"] for each in await find_troubles(stack, broken))
            assert len(broken.requests) > received + 4

        await eventually(check_let_in)


async def test_a_pod_that_is_gone_is_forgotten() -> None:
    async with run(2, 1) as (stack, client):
        gone, other = stack.prefill
        with failing([gone], Fault(status=500)):
            await count_errors(client, 20, at_once=8)
        assert await find_troubles(stack, gone)
        await list_pods(stack, {"default": ([other], stack.decode)})
        await list_pods(stack, {"default": ([gone, other], stack.decode)})
        assert not await find_troubles(stack, gone)


async def test_the_decision_says_who_was_left_out() -> None:
    environment = {"PDROUTER_DECISION_DETAIL": "true"}
    async with run(2, 1, environment) as (stack, client):
        broken = stack.prefill[0]
        with failing([broken], Fault(status=500)):
            # The sound pod, whose speed is known, may take nearly all of a few requests.
            for _ in range(20):
                await count_errors(client, 20, at_once=8)
                if any(trouble["ejected"] for trouble in await find_troubles(stack, broken)):
                    break
        response = await client.post(CHAT, json=chat(), headers={"x-pd-decision-detail": "1"})
        (note,) = json.loads(response.headers["x-pd-decision-detail"])["notes"]
        assert note.startswith("failures: prefill pods left out: ")
        assert note.endswith("(status-500)")
        decisions = (await read_admin(stack, "/debug/decisions")).json()["decisions"]
        assert note in decisions[0]["notes"]


async def test_a_pod_that_wants_to_be_asked_later_is_asked_later() -> None:
    async with run(2, 1) as (stack, client):
        busy = stack.prefill[0]
        with failing([busy], Fault(status=429, retry_after="3600")):
            assert await count_errors(client, 40, at_once=8) == 0
        assert len(busy.requests) <= 8
        (trouble,) = await find_troubles(stack, busy)
        assert trouble["seconds_until_trial"] > 60


async def test_a_decode_pod_that_wants_to_be_asked_later_costs_one_answer() -> None:
    async with run(1, 2) as (stack, client):
        busy = stack.decode[0]
        with failing([busy], Fault(status=429, retry_after="3600")):
            assert await count_errors(client, 120) == 1
        assert len(busy.requests) == 1
        (trouble,) = await find_troubles(stack, busy)
        assert trouble["seconds_until_trial"] > 60


@pytest.mark.parametrize(
    "fault",
    [Fault(omit_params=("remote_engine_id",)), Fault(null_params=True)],
    ids=["incomplete", "none"],
)
async def test_a_prefill_pod_whose_handles_are_of_no_use_is_left_alone(fault: Fault) -> None:
    async with run(2, 1) as (stack, client):
        broken = stack.prefill[0]

        async def check_ejected() -> None:
            assert await count_errors(client, 8, at_once=4) == 0
            (trouble,) = await find_troubles(stack, broken)
            assert trouble["ejected"]
            assert trouble["last_cause"].startswith("handoff-")

        with failing([broken], fault):
            await eventually(check_ejected)
            asked = len(broken.requests)
            assert 3 <= asked <= 6
            assert await count_errors(client, 100) == 0
        assert len(broken.requests) == asked


async def test_without_ejection_a_broken_pod_stays_in() -> None:
    async with run(1, 2, {"PDROUTER_EJECT_AFTER": "0"}) as (stack, client):
        with failing([stack.decode[0]], Fault(status=500)):
            assert await count_errors(client, NEXT) > FIRST_ERRORS
        assert stack.router.failures.calm


async def test_a_pod_that_breaks_streams_off_is_found_by_the_access_log() -> None:
    environment = {"PDROUTER_OBSERVE_TOKENS": "access-log", "PDROUTER_EJECT_AFTER": "1"}
    async with run(1, 1, environment, token_accounting=True) as (stack, client):
        broken = stack.decode[0]
        with (
            failing([broken], Fault(drop_after_tokens=2)),
            pytest.raises(httpx.RemoteProtocolError),
        ):
            await client.post(CHAT, json=chat(stream=True))

        async def check() -> None:
            troubles = await find_troubles(stack, broken)
            assert [each["ejected"] for each in troubles] == [True]
            assert troubles[0]["last_cause"].startswith("upstream_")

        await eventually(check)
