"""What turns are worth: a flood of one user, and another who sends one request at a time."""

import asyncio
from statistics import median
from typing import Any

import pytest
from fair_clusters import TOKENS_PER_S, FairCluster
from virtual_time import run_in_virtual_time

from pdrouter.settings.choices import Fairness

LONG, SHORT = 4000, 1000
UNTIL_S = 60.0


def simulate(pods: int, **settings: Any) -> FairCluster:
    """One user keeps fifty requests waiting; another sends one, waits, and sends the next."""

    async def run() -> FairCluster:
        cluster = await FairCluster(pods, **settings).start()
        now = asyncio.get_running_loop().time

        async def keep_asking(user: str, tokens: int, pause_s: float) -> None:
            await asyncio.sleep(pause_s)
            while now() < UNTIL_S:
                await cluster.ask(user, tokens)
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(keep_asking("ann", LONG, 0.0))
            tasks.create_task(keep_asking("bob", SHORT, 0.37))
        cluster.close()
        return cluster

    return run_in_virtual_time(run())


def measure_use(cluster: FairCluster) -> float:
    """The share of the time for which engines were computing."""
    end = max(each.answered for each in cluster.served)
    return sum(cluster.engines.busy_s.values()) / len(cluster.engines.busy_s) / end


@pytest.mark.parametrize("pods", [1, 4])
def test_a_flood_keeps_nobody_else_waiting_and_no_pod_idle(pods: int) -> None:
    without, with_turns = simulate(pods, fairness=Fairness.OFF), simulate(pods)
    # Until the prompt that is computed is done, at the most, and its own.
    assert max(with_turns.waits_of("bob")) <= (LONG + SHORT) / TOKENS_PER_S + 0.15
    assert median(without.waits_of("bob")) > 10 * median(with_turns.waits_of("bob"))
    # Who floods waits for what the other is served, and for nothing else.
    assert measure_use(with_turns) >= measure_use(without) - 0.005
    assert not any(each.refused and each.user == "bob" for each in with_turns.served)


def test_two_floods_get_the_same_whatever_the_length_of_their_prompts() -> None:
    """One sends more requests and longer ones; what they are served differs by little."""

    async def run() -> FairCluster:
        cluster = await FairCluster(2, input_token_weight=1.0, output_token_weight=0.0).start()
        now = asyncio.get_running_loop().time

        async def keep_asking(user: str, tokens: int) -> None:
            while now() < UNTIL_S:
                await cluster.ask(user, tokens)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(60):
                tasks.create_task(keep_asking("ann", LONG))
            for _ in range(20):
                tasks.create_task(keep_asking("bob", SHORT))
        cluster.close()
        return cluster

    served = [each for each in run_in_virtual_time(run()).served if each.answered < UNTIL_S]
    tokens = {
        user: sum(each.tokens for each in served if each.user == user and not each.refused)
        for user in ("ann", "bob")
    }
    # What is under way at the end belongs to it, too.
    assert abs(tokens["ann"] - tokens["bob"]) <= 2 * LONG + 2 * LONG


def test_a_flood_beyond_the_bounds_is_refused_and_nobody_else() -> None:
    async def run() -> FairCluster:
        cluster = await FairCluster(1, fairness_queue=20, fairness_wait_s=5.0).start()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(60):
                tasks.create_task(cluster.ask("ann", LONG))
            for number in range(10):
                await asyncio.sleep(0.6)
                tasks.create_task(cluster.ask(f"user-{number}", SHORT))
        cluster.close()
        return cluster

    served = run_in_virtual_time(run()).served
    assert {each.user for each in served if each.refused} == {"ann"}
    # The bound in number refused some at once, that in time the others when it was over.
    refused = [each.wait_s for each in served if each.refused]
    assert min(refused) == 0.0
    assert max(refused) == pytest.approx(5.0)


@pytest.mark.parametrize("tokens", [100, 1000])
def test_a_flood_at_one_worker_keeps_nobody_waiting_at_another(tokens: int) -> None:
    """The one whose legs end learns it first, and would give all turns to its own requests."""

    async def run() -> FairCluster:
        cluster = await FairCluster(2, workers=2).start()
        now = asyncio.get_running_loop().time

        async def keep_asking(user: str, worker: int, pause_s: float) -> None:
            while now() < 20.0:
                await asyncio.sleep(pause_s)
                await cluster.ask(user, tokens, worker=worker)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(60):
                tasks.create_task(keep_asking("ann", 0, 0.0))
            tasks.create_task(keep_asking("bob", 1, 0.23))
        cluster.close()
        return cluster

    cluster = run_in_virtual_time(run())
    waits = cluster.waits_of("bob")
    assert median(waits) < 0.3
    assert max(waits) < 0.6
    assert measure_use(cluster) > 0.97
