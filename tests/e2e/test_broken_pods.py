"""What one broken pod costs the clients of an installation: requests one after the other.

Nothing where the request can be tried elsewhere, three errors at most where it cannot, and nothing
in the next hundred.
"""

import httpx
import pytest
from expectations import eventually
from failures import failing
from test_ejection import count_errors, expect_ejected, find_troubles, run

from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

FIRST, FIRST_ERRORS, NEXT = 20, 3, 100


async def expect_errors(
    stack: LocalStack, client: httpx.AsyncClient, broken: SimulatedEngine, most: int
) -> None:
    """Check that clients see few errors once a pod is tried that is broken, and then none.

    Requests that come one by one may find it slower than those whose speed is known, for a while.
    """

    async def meet() -> None:
        errors.append(await count_errors(client, 1))
        assert await find_troubles(stack, broken)

    errors: list[int] = []
    await eventually(meet)
    errors.append(await count_errors(client, FIRST))
    assert sum(errors) <= most
    assert await count_errors(client, NEXT) == 0


async def test_two_prefill_pods_of_which_one_refuses() -> None:
    async with run(2, 1) as (stack, client):
        await stack.prefill[0].stop()
        await expect_errors(stack, client, stack.prefill[0], 0)


@pytest.mark.parametrize("routing", Routing)
async def test_three_decode_pods_of_which_one_refuses(routing: Routing) -> None:
    async with run(1, 3, routing=routing) as (stack, client):
        dead = stack.decode[0]
        await dead.stop()
        await expect_errors(stack, client, dead, FIRST_ERRORS)
        await expect_ejected(stack, dead, "decode", "connect")


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_three_decode_pods_of_which_one_answers_with_errors(status: int) -> None:
    async with run(1, 3) as (stack, client):
        broken = stack.decode[0]
        with failing([broken], Fault(status=status)):
            await expect_errors(stack, client, broken, FIRST_ERRORS)
            await expect_ejected(stack, broken, "decode", f"status-{status}")


async def test_a_broken_decode_pod_costs_nothing_for_as_long_as_it_stays_broken() -> None:
    environment = {"PDROUTER_EJECT_TIME": "0.2", "PDROUTER_EJECT_LONGEST": "0.4"}
    async with run(1, 3, environment) as (stack, client):
        broken = stack.decode[0]
        with failing([broken], Fault(status=500)):
            await expect_errors(stack, client, broken, FIRST_ERRORS)
            asked = stack.router.failures.asked
            while asked["failed"] < 5:
                assert await count_errors(client, 10) == 0
        while not asked["answered"] or not stack.router.failures.calm:
            assert await count_errors(client, 10) == 0
