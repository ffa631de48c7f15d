"""What one broken pod costs the clients of an installation: requests one after the other.

Nothing where the request can be tried elsewhere, three errors at most where it cannot, and nothing
in the next hundred.
"""

import pytest
from failures import failing, list_pods
from test_ejection import FIRST_ERRORS, count_errors, expect_ejected, expect_few_errors, run

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.simulation.faults import Fault


async def test_three_rolesets_of_which_one_has_two_prefill_pods_that_refuse() -> None:
    async with run(5, 5) as (stack, client):
        prefill, decode = stack.prefill, stack.decode
        sizes = {"a": (prefill[:2], decode[:2]), "b": (prefill[2:3], decode[2:4])}
        await list_pods(stack, {**sizes, "c": (prefill[3:], decode[4:])})
        for engine in prefill[:2]:
            await engine.stop()
        for engine in prefill[:2]:
            await expect_few_errors(stack, client, engine, most=0)


async def test_three_pairs_of_which_one_has_a_prefill_pod_that_refuses() -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        await stack.prefill[0].stop()
        await expect_few_errors(stack, client, stack.prefill[0], most=0)


async def test_three_pairs_of_which_one_has_a_prefill_pod_that_answers_with_errors() -> None:
    async with run(3, 3, rolesets=True) as (stack, client):
        broken = stack.prefill[0]
        with failing([broken], Fault(status=500)):
            await expect_few_errors(stack, client, broken, most=0)


async def test_two_prefill_pods_of_which_one_refuses() -> None:
    async with run(2, 1) as (stack, client):
        await stack.prefill[0].stop()
        await expect_few_errors(stack, client, stack.prefill[0], most=0)


@pytest.mark.parametrize("routing", Routing)
async def test_three_decode_pods_of_which_one_refuses(routing: Routing) -> None:
    async with run(1, 3, routing=routing) as (stack, client):
        dead = stack.decode[0]
        await dead.stop()
        # A list of pods has another one. Without, what was sent is lost.
        most = 0 if routing is Routing.OVERRIDE_HOST else FIRST_ERRORS
        await expect_few_errors(stack, client, dead, most=most)
        await expect_ejected(stack, dead, "decode", "connect")


async def test_three_decode_pods_of_which_one_answers_with_errors() -> None:
    async with run(1, 3) as (stack, client):
        broken = stack.decode[0]
        with failing([broken], Fault(status=500)):
            await expect_few_errors(stack, client, broken)
            await expect_ejected(stack, broken, "decode", "status-500")


async def test_a_broken_decode_pod_costs_nothing_for_as_long_as_it_stays_broken() -> None:
    environment = {"PDROUTER_EJECT_TIME": "0.2", "PDROUTER_EJECT_LONGEST": "0.4"}
    async with run(1, 3, environment) as (stack, client):
        broken = stack.decode[0]
        with failing([broken], Fault(status=500)):
            await expect_few_errors(stack, client, broken)
            asked = stack.router.failures.asked
            while asked["failed"] < 5:
                assert await count_errors(client, 10) == 0
        while not asked["answered"] or not stack.router.failures.calm:
            assert await count_errors(client, 10) == 0
