"""Counters in memory: whose takings they put right, and how much they keep."""

from unittest.mock import patch

import pytest

from pdrouter.users import window_counts
from pdrouter.users.counters import Demand, Measure, Quota, Taken
from pdrouter.users.local_counters import LocalCounters
from pdrouter.users.window_counts import WindowCounts

TOKENS = Quota("user/ann/tokens", Measure.TOKENS, 1000, 60.0)


async def take(counters: LocalCounters, amount: int) -> Taken:
    taken = (await counters.take([Demand(TOKENS, amount)], "r")).taken
    assert taken is not None
    return taken


async def look_at_room(counters: LocalCounters) -> int:
    return (await counters.take([Demand(TOKENS, 0)], "looks")).standings[0].remaining


@pytest.mark.parametrize("group", ["", "one router"])
async def test_what_was_taken_of_another_router_is_not_put_right_here(group: str) -> None:
    """Envoy's access log may tell any router of any request."""
    here, elsewhere = LocalCounters(group=group), LocalCounters()
    await take(here, 100)
    theirs = await take(elsewhere, 100)
    for tokens in (0, 700):
        await here.correct(theirs, tokens)
    await here.give_back(theirs)
    assert await look_at_room(here) == 900


async def test_processes_of_one_router_put_right_what_each_other_has_taken() -> None:
    windows = WindowCounts(lambda: 1000.0)
    one, other = (LocalCounters(lambda: 1000.0, windows=windows, group="g") for _ in range(2))
    await other.correct(await take(one, 100), 30)
    await other.give_back(await take(one, 500))
    assert await look_at_room(one) == 970


def test_no_more_windows_are_kept_than_there_may_be() -> None:
    counts = WindowCounts(lambda: 1000.0)
    with patch.object(window_counts, "MOST_WINDOWS", 3):
        for name in ("a", "b", "c", "a", "d"):
            counts.add(name, 60.0, 1)
    # What was counted last stays.
    assert [counts.count(name, 60.0) for name in "abcd"] == [2, 0, 1, 1]
