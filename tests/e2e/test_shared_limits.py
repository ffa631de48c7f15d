"""Limits that routers share in a real Redis, through the real Envoy, while it works and fails."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import pytest_asyncio
from expectations import chat, eventually
from failures import CHAT
from processes import Installation, RouterProcess, run_installation
from redis_server import RedisServer, needs_redis, run_redis

pytestmark = [needs_redis, pytest.mark.asyncio(loop_scope="module")]

ROUTERS = 3
PASSWORD = "hunter2"


def add_user(server: RedisServer, name: str, **limits: int) -> None:
    """As aibrix's metadata service does."""
    server.ask("set", f"aibrix-users/{name}", json.dumps({"name": name, **limits}))


async def ask(client: httpx.AsyncClient, user: str) -> httpx.Response:
    return await client.post(CHAT, json=chat(max_tokens=1), headers={"user": user})


async def ask_many(client: httpx.AsyncClient, user: str, count: int) -> Counter[int]:
    answers = await asyncio.gather(*(ask(client, user) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


async def expect_up(router: RouterProcess, up: bool) -> None:
    async def check() -> None:
        metrics = await router.read_metrics()
        assert metrics.total("pdrouter_redis_up") == up

    await eventually(check)


class TestOpen:
    """As aibrix's manifests have it: nothing but the image was changed."""

    @pytest.fixture(scope="module")
    @classmethod
    def server(cls) -> Iterator[RedisServer]:
        with run_redis(password=PASSWORD) as running:
            yield running

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    @classmethod
    async def installation(cls, server: RedisServer) -> AsyncIterator[Installation]:
        environment = {
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "REDIS_PASSWORD": PASSWORD,
            # What a busy machine needs: no test is about the time itself.
            "PDROUTER_REDIS_TIMEOUT": "2",
        }
        async with run_installation(environment, routers=ROUTERS) as running:
            yield running

    async def test_routers_let_pass_together_what_a_user_may(
        self, installation: Installation, server: RedisServer
    ) -> None:
        add_user(server, "ann", rpm=20)
        add_user(server, "bob", rpm=20)
        async with installation.connect() as client:
            assert await ask_many(client, "ann", 60) == {200: 20, 429: 40}
            refused = await ask(client, "ann")
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(refused.headers["retry-after"]) <= 61
            assert await ask_many(client, "bob", 10) == {200: 10}
            assert (await ask(client, "nobody")).status_code == 401
        for router in installation.routers:
            await router.wait_for("request")

    async def test_while_it_is_away_requests_pass_and_afterwards_limits_hold(
        self, installation: Installation, server: RedisServer
    ) -> None:
        add_user(server, "eve", rpm=5)
        async with installation.connect() as client:
            assert await ask_many(client, "eve", 20) == {200: 5, 429: 15}

            server.hang()
            assert await ask_many(client, "eve", 60) == {200: 60}
            server.kill()
            assert await ask_many(client, "eve", 60) == {200: 60}
            for router in installation.routers:
                await expect_up(router, False)
                assert (await router.get("/readyz")).status_code == 200

            server.start()
            add_user(server, "eve", rpm=5)
            for router in installation.routers:
                await expect_up(router, True)
            # It knows nothing of what was before.
            assert await ask_many(client, "eve", 20) == {200: 5, 429: 15}
        for router in installation.routers:
            metrics = await router.read_metrics()
            assert metrics.total("pdrouter_redis_failures_total") > 0
            (lost,) = router.events("Redis cannot be used")
            assert lost["reason"] in {"timeout", "connection"}
            assert len(router.events("Redis answers")) == 2
            assert PASSWORD not in str(router.lines) + router.errors
            assert PASSWORD not in (await router.get("/debug/state")).text


class TestClosed:
    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    @classmethod
    async def installation(cls) -> AsyncIterator[tuple[Installation, RedisServer]]:
        with run_redis() as server:
            environment = {
                "PDROUTER_REDIS_URL": server.url,
                "PDROUTER_REDIS_TIMEOUT": "1",
                "PDROUTER_USERS": "aibrix",
                "PDROUTER_LIMITS_ON_FAILURE": "closed",
            }
            async with run_installation(environment) as running:
                yield running, server

    @pytest.mark.parametrize("fault", ["hangs", "is full"])
    async def test_while_it_fails_requests_get_503(
        self, installation: tuple[Installation, RedisServer], fault: str
    ) -> None:
        running, server = installation
        (router,) = running.routers
        add_user(server, "ann", rpm=1000)
        await expect_up(router, True)
        async with running.connect() as client:
            assert (await ask(client, "ann")).status_code == 200
            if fault == "hangs":
                server.hang()
            else:
                server.ask("config", "set", "maxmemory", "1")
            assert await ask_many(client, "ann", 30) == {503: 30}
            refused = await ask(client, "ann")
            assert refused.json()["error"]["code"] == "limits_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            # Nobody in particular has no limits.
            assert (await client.post(CHAT, json=chat(max_tokens=1))).status_code == 200
            if fault == "hangs":
                server.resume()
            else:
                server.ask("config", "set", "maxmemory", "0")
            await expect_up(router, True)
            assert (await ask(client, "ann")).status_code == 200
        await router.expect_idle()
