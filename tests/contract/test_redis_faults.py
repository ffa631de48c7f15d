"""What becomes of limits while Redis fails, each way that it can, and afterwards."""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from certificates import issue
from fakekube import Certificate
from redis_server import (
    MASTER,
    RedisServer,
    needs_redis,
    run_cluster,
    run_redis,
    run_sentinel,
    wait_for,
)
from shared_counters import Shared, share
from waiting import WAIT_S, wait_until

from pdrouter.users.counters import CountersUnavailable, Demand, Measure, Quota, Taken
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.redis.clients import RedisFiles
from pdrouter.users.redis.directory import RedisDirectory
from pdrouter.users.redis.link import FAILURES, MAX_CALLS
from pdrouter.users.redis.stats import Reason

pytestmark = needs_redis
PAGE = Path(__file__).parents[2] / "docs" / "redis.md"

REQUESTS = Demand(Quota("user/ann/requests", Measure.REQUESTS, 100, 60.0))
TOKENS = Demand(Quota("user/ann/tokens", Measure.TOKENS, 1000, 60.0), 100)
PLACES = Demand(Quota("user/ann/concurrent", Measure.CONCURRENT, 10, 0.0))
ALL = [REQUESTS, TOKENS, PLACES]

SHORT_S = 0.75
"""A deadline that passes while a server hangs."""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with run_redis() as running:
        yield running


async def take(shared: Shared, holder: str = "r") -> Taken:
    taken = (await shared.counters.take(ALL, holder)).taken
    assert taken is not None
    return taken


async def look_at_room(shared: Shared) -> list[int]:
    """What would be left if all had been given back that this takes."""
    verdict = await shared.counters.take(ALL, "looks")
    assert verdict.taken is not None
    await shared.counters.give_back(verdict.taken)
    return [
        each.remaining + demand.amount for each, demand in zip(verdict.standings, ALL, strict=True)
    ]


async def look_at_room_once_it_answers(shared: Shared) -> list[int]:
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(CountersUnavailable):
                return await look_at_room(shared)
            await asyncio.sleep(0.01)


async def fail_until_away(shared: Shared) -> None:
    """Each of the calls fails, and after some none is tried any more."""
    async with asyncio.timeout(WAIT_S):
        while shared.link.stats.up:
            calls = (shared.counters.take(ALL, f"failing-{number}") for number in range(FAILURES))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in outcomes} == {CountersUnavailable}
    before = shared.link.stats.failures[Reason.AWAY]
    with pytest.raises(CountersUnavailable, match="away"):
        await shared.counters.take(ALL, "failing")
    with pytest.raises(DirectoryUnavailable, match="away"):
        await RedisDirectory(shared.link).find("ann")
    # Meanwhile the link looks for the server, and may count that too.
    assert shared.link.stats.failures[Reason.AWAY] - before == 2


async def wait_until_up(shared: Shared) -> None:
    await wait_until(lambda: shared.link.stats.up)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("pdrouter")]


async def test_a_server_that_is_killed_and_comes_back_empty(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with share(server.url) as shared:
        held = await take(shared)
        server.kill()
        await fail_until_away(shared)
        assert shared.link.stats.failures[Reason.CONNECTION] >= FAILURES

        server.start()  # It knows neither scripts nor counts.
        await wait_until_up(shared)
        # What lasts is known again; what was taken is not.
        await wait_until(
            lambda: server.ask("zcard", "{test}:concurrent:user/ann/concurrent") == "1"
        )
        assert await look_at_room(shared) == [100, 1000, 9]
        await shared.counters.release(held)
        assert await look_at_room(shared) == [100, 1000, 10]
    answers, lost, found = lines(caplog)
    assert (answers, lost, found) == ("Redis answers", "Redis cannot be used", "Redis answers")


async def test_a_server_that_hangs_and_goes_on(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with share(server.url, timeout_s=SHORT_S) as shared:
        held = await take(shared)
        server.hang()
        await fail_until_away(shared)
        assert shared.link.stats.failures[Reason.TIMEOUT] >= FAILURES
        # What ends meanwhile is put right afterwards.
        await shared.counters.correct(held, 30)
        await shared.counters.release(held)

        server.resume()
        await wait_until_up(shared)
        await shared.counters._backlog.wait()
        room = await look_at_room(shared)
        # What was asked before the deadline passed has counted, for requests that may have passed.
        failed = shared.link.stats.failures[Reason.TIMEOUT]
        assert 99 - failed <= room[0] <= 99
        assert 970 - 100 * failed <= room[1] <= 970
        assert room[2] == 10
    assert lines(caplog) == ["Redis cannot be used"]


async def test_a_batch_whose_answer_is_lost_counts_once(server: RedisServer) -> None:
    async with share(server.url, timeout_s=SHORT_S) as shared:
        held = await take(shared)
        other = await take(shared, "other")
        # The server knows the script from here on: else it would only say that it does not.
        await shared.counters.correct(await take(shared, "first"), 0)
        server.hang()
        # This reaches the server, which answers nobody in time.
        await shared.counters.correct(held, 30)
        assert shared.link.stats.failures[Reason.TIMEOUT] == 1
        server.resume()
        await wait_until(lambda: not len(shared.counters._backlog))
        await shared.counters.correct(other, 100)
        assert (await look_at_room(shared))[1] == 1000 - 30 - 100


async def test_a_server_that_is_full(server: RedisServer) -> None:
    async with share(server.url) as shared:
        held = await take(shared)
        server.ask("config", "set", "maxmemory-policy", "noeviction")
        server.ask("config", "set", "maxmemory", "1")
        await fail_until_away(shared)
        assert shared.link.stats.failures[Reason.FULL] >= FAILURES
        # What failed has taken nothing, not even in part.
        await shared.counters.release(held)
        server.ask("config", "set", "maxmemory", "0")
        await wait_until_up(shared)
        await shared.counters._backlog.wait()
        assert await look_at_room(shared) == [99, 900, 10]


async def test_a_password_that_changes(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    with run_redis(password="first") as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with share(url, files=RedisFiles(password=file)) as shared:
            assert not shared.link.stats.up
            assert shared.link.stats.failures == {Reason.AUTH: 1}
            file.write_text("first\n")
            await wait_until_up(shared)
            await take(shared)


async def test_a_user_who_may_do_no_more_than_the_page_says() -> None:
    (rights,) = re.findall(r"^ACL SETUSER pdrouter (.*)$", PAGE.read_text(), re.MULTILINE)
    rights = rights.replace("{pdrouter}", "{test}").replace("PASSWORD", "secret")
    with run_redis(f"user pdrouter {rights} -evalsha") as server:
        server.ask("set", "aibrix-users/ann", "{}")
        url = f"redis://pdrouter:secret@127.0.0.1:{server.port}"
        async with share(url) as shared:
            assert shared.link.stats.failures == {Reason.AUTH: 1}
            server.ask("acl", "setuser", "pdrouter", "+evalsha")
            await wait_until_up(shared)
            held = await take(shared)
            await shared.counters.correct(held, 900)
            await shared.counters._leases.renew()
            await shared.counters.give_back(held)
            assert await RedisDirectory(shared.link).find("ann") is not None
            assert shared.link.stats.failures == {Reason.AUTH: 1}


async def test_a_password_that_is_changed_while_connections_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "password"
    file.write_text("first")
    with run_redis(password="first") as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with share(url, files=RedisFiles(password=file)) as shared:
            server.ask("config", "set", "requirepass", "second")
            server.password = "second"
            file.write_text("second")
            # The connection that there is goes on. The next one is refused, and all are made anew.
            while not shared.link.stats.failures[Reason.AUTH]:
                calls = (shared.counters.take([REQUESTS], holder) for holder in "ab")
                await asyncio.gather(*calls, return_exceptions=True)
            await wait_until(lambda: lines(caplog).count("Redis answers") == 2)
            await asyncio.gather(*(shared.counters.take([REQUESTS], holder) for holder in "cd"))


async def test_a_server_that_has_become_a_replica(server: RedisServer) -> None:
    async with share(server.url) as shared:
        await take(shared)
        with run_redis() as other:
            wait_for(other, "ping", text="PONG")
            server.ask("replicaof", "127.0.0.1", str(other.port))
            wait_for(server, "info", "replication", text="master_link_status:up")
            await fail_until_away(shared)
            assert shared.link.stats.failures[Reason.READ_ONLY] >= FAILURES
            server.ask("replicaof", "no", "one")
            await wait_until_up(shared)
            await take(shared)


async def test_no_more_calls_at_a_time_than_there_may_be(server: RedisServer) -> None:
    async with share(server.url) as shared:
        await asyncio.gather(*(shared.counters.take([REQUESTS], str(each)) for each in range(80)))
        clients = server.ask("client", "list").splitlines()
        assert len(clients) - 1 <= MAX_CALLS + 1


async def test_a_burst_while_the_server_hangs_ends_with_the_deadline(server: RedisServer) -> None:
    async with share(server.url, timeout_s=SHORT_S) as shared:
        await take(shared)
        server.hang()
        outcomes = await asyncio.gather(
            *(shared.counters.take(ALL, str(number)) for number in range(500)),
            return_exceptions=True,
        )
        assert {type(each) for each in outcomes} == {CountersUnavailable}
        assert not shared.link.stats.up
        server.resume()
        await wait_until_up(shared)
        # None of those that have failed holds a place, whatever the server has done of them.
        await wait_until(lambda: not len(shared.counters._backlog))
        await wait_until(
            lambda: server.ask("zcard", "{test}:concurrent:user/ann/concurrent") == "1"
        )


async def test_a_server_that_is_away_when_the_router_starts(server: RedisServer) -> None:
    server.kill()
    async with share(server.url) as shared:
        with pytest.raises(CountersUnavailable):
            await shared.counters.take(ALL, "r")
        server.start()
        await wait_until_up(shared)
        await take(shared)


async def test_that_an_idle_server_has_gone_is_noticed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdrouter.users.redis.link.IDLE_S", 0.05)
    async with share(server.url) as shared:
        server.kill()
        await wait_until(lambda: not shared.link.stats.up)


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issue(tmp_path_factory.mktemp("tls"), "redis")


class TestTls:
    async def test_the_certificate_is_believed_if_the_authority_is(
        self, issued: Certificate
    ) -> None:
        with run_redis(certificate=issued, password="p") as server:
            async with share(server.url, files=RedisFiles(ca=issued.ca)) as shared:
                await take(shared)

    async def test_no_other_is(
        self, issued: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = issue(tmp_path, "other")
        with run_redis(certificate=issued) as server:
            async with share(server.url, files=RedisFiles(ca=other.ca)) as shared:
                assert shared.link.stats.failures == {Reason.CONNECTION: 1}
            async with share(server.url) as shared:
                assert shared.link.stats.failures == {Reason.CONNECTION: 1}
        causes = [vars(record)["fields"]["cause"] for record in caplog.records]
        assert all("CERTIFICATE_VERIFY_FAILED" in cause for cause in causes)
        assert len(causes) == 2

    async def test_a_server_that_asks_for_a_certificate_gets_one(self, issued: Certificate) -> None:
        with run_redis("tls-auth-clients yes", certificate=issued) as server:
            async with share(server.url, files=RedisFiles(ca=issued.ca)) as shared:
                assert not shared.link.stats.up
            files = RedisFiles(ca=issued.ca, certificate=issued.cert, key=issued.key)
            async with share(server.url, files=files) as shared:
                await take(shared)


async def test_sentinels_tell_who_has_taken_the_place_of_a_server_that_has_died() -> None:
    with run_sentinel() as (server, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/{MASTER}"
        async with share(url) as shared:
            await take(shared)
            wait_for(replica, "exists", "{test}:tokens60:user/ann/tokens", text="1")
            server.kill()
            # There is no telling how many calls fail: the next one may reach the replica already.
            wait_for(replica, "role", text="master")
            # The replica had what was taken.
            assert (await look_at_room_once_it_answers(shared))[:2] == [99, 900]


async def test_a_cluster_counts_on_one_node_and_has_users_on_all() -> None:
    with run_cluster() as nodes:
        addresses = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        async with share(f"redis+cluster://{addresses}") as shared:
            await take(shared)
            directory = RedisDirectory(shared.link)
            for name in ("ann", "bob", "eve", "joe"):
                nodes[0].ask("-c", "set", f"aibrix-users/{name}", '{"rpm": 1}')
                assert await directory.find(name) is not None
            assert await look_at_room(shared) == [99, 900, 9]
