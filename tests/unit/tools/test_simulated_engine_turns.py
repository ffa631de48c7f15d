"""Who gets a place in a simulated engine, and what it says of priorities."""

import asyncio

import pytest

from pdrouter.tools.simulation.config import EngineConfig, Priorities
from pdrouter.tools.simulation.refusal import Refused
from pdrouter.tools.simulation.turns import Turns, read_priority


async def find_order(turns: Turns, priorities: list[int]) -> list[int]:
    """Return in which order they come to a place that was taken when they asked for it."""
    order: list[int] = []

    async def wait(priority: int) -> None:
        await turns.take(priority)
        order.append(priority)
        turns.give_back()

    await turns.take(0)
    tasks = [asyncio.create_task(wait(priority)) for priority in priorities]
    await asyncio.sleep(0)
    turns.give_back()
    await asyncio.gather(*tasks)
    return order


async def test_the_lowest_goes_first_where_the_engine_goes_by_that() -> None:
    assert await find_order(Turns(1, by_priority=True), [3, -1, 2, 2]) == [-1, 2, 2, 3]
    assert await find_order(Turns(1, by_priority=False), [3, -1, 2, 2]) == [3, -1, 2, 2]


async def test_who_leaves_takes_no_place() -> None:
    turns = Turns(1, by_priority=True)
    await turns.take(0)
    leaving = [asyncio.create_task(turns.take(priority)) for priority in (1, 2)]
    await asyncio.sleep(0)
    leaving[0].cancel()
    turns.give_back()
    # Its turn has come when it leaves.
    leaving[1].cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    async with asyncio.timeout(5):
        await turns.take(0)


@pytest.mark.parametrize(
    ("mode", "value", "header", "priority"),
    [
        ("ignored", 7, None, 7),
        ("taken", -7, None, -7),
        ("taken", 7, "3", 3),
        ("refused", 0, None, 0),
        ("refused", 7, "0", 0),
    ],
)
def test_the_header_goes_before_the_member(
    mode: Priorities, value: int, header: str | None, priority: int
) -> None:
    assert read_priority({"priority": value}, header, EngineConfig(priorities=mode)) == priority


def test_an_engine_refuses_in_the_words_of_vllm() -> None:
    with pytest.raises(Refused) as caught:
        read_priority({"priority": 7}, None, EngineConfig(priorities="refused"))
    assert caught.value.status == 400
    assert str(caught.value) == "Got priority 7 but Priority scheduling is not enabled."
    with pytest.raises(Refused):
        read_priority({"priority": "x"}, None, EngineConfig())
