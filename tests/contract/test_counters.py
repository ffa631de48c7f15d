"""What all counters owe to who asks them, wherever they count."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer, needs_redis, run_redis
from shared_counters import share

from pdrouter.users.counters import SLOTS, Counters, Demand, Measure, Quota, Taken, Verdict
from pdrouter.users.local_counters import LocalCounters


@dataclass
class Store:
    """Counters, and their time.

    Attributes:
        counters: the counters, in which nothing is taken.
        wait: lets time pass, in seconds.
    """

    counters: Counters
    wait: Callable[[float], Awaitable[object]]

    async def take(self, *demands: Demand, holder: str = "r") -> Verdict:
        return await self.counters.take(demands, holder)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with run_redis() as running:
        yield running


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        clock = Clock()
        yield Store(LocalCounters(clock), clock.wait)
        return
    async with share(request.getfixturevalue("server").url, uuid.uuid4().hex) as shared:
        yield Store(shared.counters, asyncio.sleep)


def requests(limit: int, window_s: float = 60.0, name: str = "ann/requests") -> Quota:
    return Quota(name, Measure.REQUESTS, limit, window_s, "user 'ann'")


def tokens(limit: int, window_s: float = 60.0, name: str = "ann/tokens") -> Quota:
    return Quota(name, Measure.TOKENS, limit, window_s, "user 'ann'")


def concurrent(limit: int, name: str = "ann/concurrent") -> Quota:
    return Quota(name, Measure.CONCURRENT, limit, 0.0, "user 'ann'")


def only_taken(verdict: Verdict) -> Taken:
    assert verdict.refused is None
    assert verdict.taken is not None
    return verdict.taken


def refuses(verdict: Verdict, quota: Quota) -> bool:
    assert verdict.taken is None
    return verdict.refused is not None and verdict.refused.quota == quota


async def test_as_many_pass_as_the_limit_says(store: Store) -> None:
    quota = requests(3)
    left = [(await store.take(Demand(quota), holder=str(n))).standings for n in range(3)]
    assert [each[0].remaining for each in left] == [2, 1, 0]
    refused = await store.take(Demand(quota))
    assert refuses(refused, quota)
    assert 0 < refused.wait_s <= 61
    assert refused.standings[0].remaining == 0
    assert 0 < refused.standings[0].reset_s <= 61


async def test_what_was_taken_is_free_again_after_its_window(store: Store) -> None:
    quota = requests(2, 1.0)
    await store.take(Demand(quota))
    await store.take(Demand(quota))
    assert refuses(await store.take(Demand(quota)), quota)
    await store.wait(1 + 2 / SLOTS)
    assert only_taken(await store.take(Demand(quota)))


async def test_the_wait_that_is_told_is_enough(store: Store) -> None:
    quota = requests(1, 1.0)
    await store.take(Demand(quota))
    refused = await store.take(Demand(quota))
    await store.wait(refused.wait_s + 0.001)
    assert only_taken(await store.take(Demand(quota)))


async def test_all_is_taken_or_nothing(store: Store) -> None:
    wide, narrow, slots = requests(9), tokens(5), concurrent(9)
    demands = Demand(wide), Demand(narrow, 6), Demand(slots)
    refused = await store.take(*demands)
    assert refuses(refused, narrow)
    assert [each.quota for each in refused.standings] == [wide, narrow, slots]
    assert [each.remaining for each in refused.standings] == [9, 5, 9]


async def test_counters_of_other_names_are_others(store: Store) -> None:
    await store.take(Demand(requests(1)))
    assert only_taken(await store.take(Demand(requests(1, name="bob/requests"))))


async def test_nothing_passes_a_limit_of_nothing(store: Store) -> None:
    for quota in (requests(0), tokens(0), concurrent(0)):
        assert refuses(await store.take(Demand(quota)), quota)


async def test_a_limit_that_is_lowered_counts_at_once(store: Store) -> None:
    await store.take(Demand(tokens(100), 50))
    lowered = tokens(40)
    assert refuses(await store.take(Demand(lowered, 1)), lowered)
    assert (await store.take(Demand(tokens(100), 1))).standings[0].remaining == 49


async def test_tokens_reserved_too_much_are_free_once_it_is_known(store: Store) -> None:
    quota = tokens(100)
    taken = only_taken(await store.take(Demand(quota, 90)))
    assert refuses(await store.take(Demand(quota, 20)), quota)
    await store.counters.correct(taken, 30)
    assert (await store.take(Demand(quota, 20))).standings[0].remaining == 50


async def test_tokens_used_beyond_what_was_reserved_count(store: Store) -> None:
    quota = tokens(100)
    taken = only_taken(await store.take(Demand(quota, 10)))
    await store.counters.correct(taken, 150)
    refused = await store.take(Demand(quota, 1))
    assert refuses(refused, quota)
    assert refused.standings[0].remaining == 0


async def test_a_correction_changes_tokens_alone(store: Store) -> None:
    asked, used, slots = requests(5), tokens(100), concurrent(5)
    taken = only_taken(await store.take(Demand(asked), Demand(used, 50), Demand(slots)))
    await store.counters.correct(taken, 0)
    after = await store.take(Demand(asked), Demand(used, 1), Demand(slots), holder="other")
    assert [each.remaining for each in after.standings] == [3, 99, 3]


async def test_a_correction_that_comes_after_the_window_frees_nothing_of_others(
    store: Store,
) -> None:
    quota = tokens(100, 1.0)
    taken = only_taken(await store.take(Demand(quota, 100)))
    await store.wait(1 + 2 / SLOTS)
    await store.take(Demand(quota, 60))
    await store.counters.correct(taken, 0)
    assert (await store.take(Demand(tokens(100, 1.0), 1))).standings[0].remaining <= 39


async def test_requests_hold_their_place_until_they_release_it(store: Store) -> None:
    quota = concurrent(2)
    first = only_taken(await store.take(Demand(quota), holder="a"))
    only_taken(await store.take(Demand(quota), holder="b"))
    refused = await store.take(Demand(quota), holder="c")
    assert refuses(refused, quota)
    await store.counters.release(first)
    await store.counters.release(first)
    assert (await store.take(Demand(quota), holder="c")).standings[0].remaining == 0
    assert refuses(await store.take(Demand(quota), holder="d"), quota)


async def test_a_release_leaves_requests_and_tokens_counted(store: Store) -> None:
    asked, used, slots = requests(5), tokens(100), concurrent(5)
    taken = only_taken(await store.take(Demand(asked), Demand(used, 50), Demand(slots)))
    await store.counters.release(taken)
    after = await store.take(Demand(asked), Demand(used, 1), Demand(slots), holder="other")
    assert [each.remaining for each in after.standings] == [3, 49, 4]


async def test_what_is_given_back_was_never_taken(store: Store) -> None:
    asked, used, slots = requests(1), tokens(100), concurrent(1)
    demands = Demand(asked), Demand(used, 100), Demand(slots)
    for holder in ("a", "b", "c"):
        taken = only_taken(await store.take(*demands, holder=holder))
        await store.counters.give_back(taken)


async def test_many_at_once_get_no_more_than_there_is(store: Store) -> None:
    demands = Demand(requests(10)), Demand(tokens(1000), 30), Demand(concurrent(7))
    verdicts = await asyncio.gather(
        *(store.counters.take(demands, f"r{number}") for number in range(40))
    )
    assert sum(verdict.taken is not None for verdict in verdicts) == 7


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 8)), max_size=60),
)
def test_in_no_window_passes_more_than_the_limit(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    async def run() -> None:
        clock = Clock()
        counters, quota = LocalCounters(clock), tokens(limit, 1.0)
        passed: list[tuple[float, int]] = []
        for pause, amount in steps:
            await clock.wait(pause)
            verdict = await counters.take([Demand(quota, amount)], "r")
            recent = sum(each for at, each in passed if at > clock.now - 1 - 1 / SLOTS)
            if verdict.taken is not None:
                passed.append((clock.now, amount))
                used = sum(each for at, each in passed if at > clock.now - 1)
                assert used <= limit
            else:
                # Never less than allowed, but for what is about to be forgotten.
                assert recent + amount > limit

    asyncio.run(run())


async def test_what_other_counters_gave_is_left_alone() -> None:
    clock = Clock()
    first, second = LocalCounters(clock), LocalCounters(clock)
    used, slots = tokens(100), concurrent(1)
    taken = only_taken(await first.take([Demand(used, 60), Demand(slots)], "r"))
    await second.take([Demand(used, 60), Demand(slots)], "r")
    await second.correct(taken, 0)
    await second.give_back(taken)
    assert (await second.take([Demand(used, 60)], "r2")).taken is None
    assert (await second.take([Demand(slots)], "r2")).taken is None
