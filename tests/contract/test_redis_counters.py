"""Limits that processes share in a real Redis: what holds for all of them together."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from redis_server import RedisServer, needs_redis, run_redis
from shared_counters import share
from waiting import WAIT_S, wait_until

from pdrouter.users.counters import Counters, Demand, Measure, Quota, Taken
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.local_counters import LocalCounters
from pdrouter.users.redis.directory import RedisDirectory
from pdrouter.users.redis.link import FAILURES
from pdrouter.users.user import Limits, User

pytestmark = needs_redis
TESTS = Path(__file__).parents[1]
PROCESSES = 3
REQUESTS = Demand(Quota("user/ann/requests", Measure.REQUESTS, 5, 60.0))
TOKENS = Quota("user/ann/tokens", Measure.TOKENS, 1000, 60.0)
PLACES = Demand(Quota("user/ann/concurrent", Measure.CONCURRENT, 2, 0.0))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with run_redis() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


def run_processes(url: str, requests: int, places: int, seconds: float) -> list[dict[str, list]]:  # type: ignore[type-arg]
    search = os.pathsep.join([str(TESTS), str(TESTS / "kubernetes")])
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, TESTS / "counting_process.py", url, f"p{number}"),
                *map(str, (requests, places, seconds)),
            ],
            env={**os.environ, "PYTHONPATH": search},
            stdout=subprocess.PIPE,
        )
        for number in range(PROCESSES)
    ]
    told = [process.communicate(timeout=3 * WAIT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    return [json.loads(each) for each in told]


def test_processes_get_no_more_together_than_there_is_and_no_less() -> None:
    requests, places, window_s = 40, 4, 1.0
    with run_redis() as server:
        told = run_processes(server.url, requests, places, 2.5)
    passed = sorted(at for each in told for at in each["passed"])
    assert all(each["passed"] for each in told)

    # In no second more than the limit: whoever comes that many later is more than a second later.
    for first, beyond in zip(passed, passed[requests:], strict=False):
        assert beyond - first >= window_s
    # And all of it: nobody was refused while there was room.
    left = [each for process in told for each in process["left"]]
    assert left
    assert set(left) == {0}
    assert len(passed) >= requests

    # Places are held from before a process knows of them until after it has given them back.
    changes = sorted(
        change
        for each in told
        for since, until in each["held"]
        for change in ((since, 1), (until, -1))
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    assert most == places


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 700), st.integers(0, 4)),
        st.tuples(st.just("correct"), st.integers(0, 9), st.integers(0, 900)),
        st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("give back"), st.integers(0, 9), st.just(0)),
    ),
    max_size=25,
)


class Ledger:
    """What counters have given, step by step."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._taken: list[Taken] = []
        self._ended: set[int] = set()

    async def do(self, step: str, number: int, amount: int) -> object:
        """Do a step, and return all that the counters say of it but times."""
        if step == "take":
            tokens = Demand(structs.replace(TOKENS, window_s=3600.0), number)
            requests = Demand(Quota("user/ann/requests", Measure.REQUESTS, 9, 3600.0))
            verdict = await self._counters.take([requests, tokens, PLACES], f"r{amount}")
            if verdict.taken is not None:
                self._taken.append(verdict.taken)
            left = [each.remaining for each in verdict.standings]
            return verdict.taken is None, verdict.refused, left
        if number >= len(self._taken):
            return None
        taken = self._taken[number]
        if step == "release":
            await self._counters.release(taken)
        elif number not in self._ended:
            self._ended.add(number)
            if step == "correct":
                await self._counters.correct(taken, amount)
            else:
                await self._counters.give_back(taken)
        return None


@given(STEPS)
@settings(max_examples=40)
def test_it_counts_as_in_memory(server: RedisServer, steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        async with share(server.url, uuid.uuid4().hex) as shared:
            memory, redis = Ledger(LocalCounters()), Ledger(shared.counters)
            for step in steps:
                assert await redis.do(*step) == await memory.do(*step)

    asyncio.run(run())


class TestPlaces:
    async def test_those_of_a_router_that_has_died_are_free_again(
        self, server: RedisServer, prefix: str
    ) -> None:
        async with share(server.url, prefix) as other:
            async with share(server.url, prefix, lease_s=1.5) as dying:
                for holder in ("a", "b"):
                    await dying.counters.take([PLACES], holder)
                assert (await other.counters.take([PLACES], "c")).taken is None
            # Nobody renews them now, nor has given them back.
            async with asyncio.timeout(WAIT_S):
                while (await other.counters.take([PLACES], "c")).taken is None:
                    await asyncio.sleep(0.02)

    async def test_those_of_a_router_that_lives_are_held_on(
        self, server: RedisServer, prefix: str
    ) -> None:
        key = f"{{{prefix}}}:concurrent:user/ann/concurrent"
        async with share(server.url, prefix, lease_s=3.0) as living:
            for holder in ("a", "b"):
                await living.counters.take([PLACES], holder)
            ends = float(server.ask("zscore", key, "a"))
            await wait_until(lambda: float(server.ask("zscore", key, "a")) > ends)
            assert (await living.counters.take([PLACES], "c")).taken is None

    async def test_what_is_renewed_after_its_release_stays_released(
        self, server: RedisServer, prefix: str
    ) -> None:
        async with share(server.url, prefix) as shared:
            taken = (await shared.counters.take([PLACES], "a")).taken
            assert taken is not None
            renewing = asyncio.create_task(shared.counters._leases.renew())
            await asyncio.sleep(0)
            await shared.counters.release(taken)
            await renewing
            await shared.counters._backlog.wait()
            assert (await shared.counters.take([PLACES], "b")).standings[0].remaining == 1


async def test_whoever_stops_waiting_has_taken_nothing(server: RedisServer, prefix: str) -> None:
    async with share(server.url, prefix) as shared:
        demands = [REQUESTS, Demand(TOKENS, 900), PLACES]
        server.hang()
        waiting = asyncio.create_task(shared.counters.take(demands, "a"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        server.resume()
        await shared.counters.close()
        verdict = await shared.counters.take(demands, "b")
        assert verdict.taken is not None
        assert [each.remaining for each in verdict.standings] == [4, 100, 1]


async def test_a_taking_that_is_written_down_is_put_right_by_another_router(
    server: RedisServer, prefix: str
) -> None:
    async with share(server.url, prefix) as one, share(server.url, prefix) as other:
        taken = (await one.counters.take([Demand(TOKENS, 900)], "a")).taken
        assert taken is not None
        await other.counters.correct(taken, 100)
        assert (await one.counters.take([Demand(TOKENS, 1)], "b")).standings[0].remaining == 899


async def test_many_corrections_go_together(server: RedisServer, prefix: str) -> None:
    async with share(server.url, prefix) as shared:
        quota = Quota("many", Measure.TOKENS, 10**6, 60.0)
        taken = [
            (await shared.counters.take([Demand(quota, 100)], str(number))).taken
            for number in range(300)
        ]
        calls = shared.link.stats.calls
        await asyncio.gather(*(shared.counters.correct(each, 1) for each in taken if each))
        assert shared.link.stats.calls - calls <= 4
        left = (await shared.counters.take([Demand(quota, 1)], "r")).standings[0].remaining
        assert left == 10**6 - 301


async def test_all_keys_end_by_themselves(server: RedisServer, prefix: str) -> None:
    async with share(server.url, prefix) as shared:
        taken = (await shared.counters.take([REQUESTS, Demand(TOKENS, 5), PLACES], "a")).taken
        assert taken is not None
        await shared.counters.correct(taken, 50)
        keys = server.ask("--scan", "--pattern", f"*{prefix}*").split()
        assert len(keys) == 5, keys
        assert all(int(server.ask("pttl", key)) > 0 for key in keys)
        # All that a check takes is in one slot of a cluster.
        assert len({server.ask("cluster", "keyslot", key) for key in keys}) == 1


HOUR = Quota("hour", Measure.TOKENS, 100, 3600.0)
"""Its slots are of a minute: while a test runs, it goes on with the same one."""


def read_hour(server: RedisServer, prefix: str) -> tuple[str, int]:
    """The key of that, and its slot at the moment."""
    return f"{{{prefix}}}:tokens3600:hour", int(server.ask("time").split()[0]) // 60


async def test_what_was_taken_counts_for_a_whole_window_at_the_least(
    server: RedisServer, prefix: str
) -> None:
    key, slot = read_hour(server, prefix)
    async with share(server.url, prefix) as shared:
        server.ask("hset", key, str(slot - 60), "70")
        server.ask("hset", key, str(slot - 62), "500")
        standing = (await shared.counters.take([Demand(HOUR, 10)], "a")).standings[0]
        assert standing.remaining == 20


async def test_no_more_is_subtracted_than_is_there(server: RedisServer, prefix: str) -> None:
    key, slot = read_hour(server, prefix)
    async with share(server.url, prefix) as shared:
        taken = (await shared.counters.take([Demand(HOUR, 90)], "a")).taken
        assert taken is not None
        # The server has lost most of it, and others have taken some since.
        server.ask("hset", key, str(slot), "20")
        await shared.counters.correct(taken, 0)
        assert (await shared.counters.take([Demand(HOUR, 1)], "b")).standings[0].remaining == 99


async def test_what_is_added_to_a_window_that_has_gone_ends_by_itself(
    server: RedisServer, prefix: str
) -> None:
    key, _ = read_hour(server, prefix)
    async with share(server.url, prefix) as shared:
        taken = (await shared.counters.take([Demand(HOUR, 1)], "a")).taken
        assert taken is not None
        server.ask("del", key)
        await shared.counters.correct(taken, 31)
        assert int(server.ask("pttl", key)) > 0


async def test_a_place_that_has_ended_is_taken_anew(server: RedisServer, prefix: str) -> None:
    key = f"{{{prefix}}}:concurrent:user/ann/concurrent"
    async with share(server.url, prefix) as shared:
        server.ask("zadd", key, "1", "a")
        for holder in ("b", "c"):
            assert (await shared.counters.take([PLACES], holder)).taken is not None
            server.ask("zadd", key, "1", "a")
        assert (await shared.counters.take([PLACES], "a")).taken is None


async def test_a_window_holds_no_more_than_its_slots(server: RedisServer, prefix: str) -> None:
    quota = Quota("short", Measure.TOKENS, 10**6, 0.06)
    async with share(server.url, prefix) as shared:
        for number in range(200):
            await shared.counters.take([Demand(quota, 1)], str(number))
            await asyncio.sleep(0.001)
        key = f"{{{prefix}}}:tokens0.06:short"
        assert int(server.ask("hlen", key)) <= 62


async def test_a_clock_that_goes_back_forgets_no_limit_and_keeps_none_for_ever(
    server: RedisServer, prefix: str
) -> None:
    """After a failover, the time is another server's."""
    key = f"{{{prefix}}}:requests60:user/ann/requests"
    now = int(server.ask("time").split()[0])
    async with share(server.url, prefix) as shared:
        server.ask("hset", key, str(now + 20), "5")
        assert (await shared.counters.take([REQUESTS], "a")).taken is None
        server.ask("del", key)
        server.ask("hset", key, str(now + 3600), "5")
        assert (await shared.counters.take([REQUESTS], "a")).taken is not None


@pytest.mark.parametrize(
    ("value", "user"),
    [
        ('{"name":"ann","rpm":7,"tpm":70}', User("ann", limits=Limits(7, 70))),
        ('{"name":"ann","rpm":0}', User("ann", limits=Limits(100, 100_000))),
    ],
)
async def test_aibrix_users_are_read_as_its_metadata_service_writes_them(
    server: RedisServer, prefix: str, value: str, user: User
) -> None:
    async with share(server.url, prefix) as shared:
        directory = RedisDirectory(shared.link)
        assert await directory.find("nobody") is None
        server.ask("set", "aibrix-users/ann", value)
        assert await directory.find("ann") == user


async def test_a_user_object_that_is_none_is_not_taken_for_one(
    server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with share(server.url, prefix) as shared:
        directory = RedisDirectory(shared.link)
        server.ask("set", "aibrix-users/eve", '{"rpm": 1, "name": "' + "x" * 70_000 + '"}')
        with pytest.raises(DirectoryUnavailable, match="no user object"):
            await directory.find("eve")
        assert "aibrix-users/eve is no user object" in caplog.text
        server.ask("del", "aibrix-users/eve")
        server.ask("lpush", "aibrix-users/eve", "x")
        for _ in range(FAILURES):
            with pytest.raises(DirectoryUnavailable):
                await directory.find("eve")
        # The server has answered: what it said is wrong with one key is nobody else's trouble.
        assert shared.link.stats.up
