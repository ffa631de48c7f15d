"""Several workers behind the real Envoy: as one router, and none of them matters alone."""

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest
from expectations import chat, eventually
from failures import CHAT
from loopback import find_free_ports
from processes import Installation, RouterProcess, run_installation, streaming

from pdrouter.users.keys import digest_key

WORKERS = 3
PAIR = 2
"""Workers where a third one would show nothing more: each takes a second of CPU to start."""


@asynccontextmanager
async def run_workers(
    workers: int,
    lame_duck_s: float = 0,
    itl_ms: float = 5,
    prefill_engines: int = 1,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Installation]:
    environment = {
        **settings,
        "PDROUTER_WORKERS": str(workers),
        "PDROUTER_GRPC_BIND": f"127.0.0.1:{find_free_ports(workers)}",
        "PDROUTER_LAME_DUCK": str(lame_duck_s),
    }
    async with run_installation(
        environment, itl_ms=itl_ms, prefill_engines=prefill_engines
    ) as installation:
        yield installation


async def find_pids(router: RouterProcess) -> dict[int, int]:
    """Return the process ids of the workers by their numbers."""
    state = (await router.get("/debug/state")).json()
    return {worker["worker"]: worker["pid"] for worker in state["workers"]}


def count_by_worker(router: RouterProcess) -> Counter[int]:
    return Counter(line["worker"] for line in router.events("request"))


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def expect_ended(pids: dict[int, int]) -> None:
    async def check() -> None:
        assert not [pid for pid in pids.values() if is_running(pid)]

    await eventually(check)


async def test_requests_are_spread_evenly_and_one_page_tells_of_all() -> None:
    async with run_workers(WORKERS) as installation, AsyncExitStack() as stack:
        (router,) = installation.routers
        clients = [await stack.enter_async_context(installation.connect()) for _ in range(4)]
        for number in range(120):
            response = await clients[number % 4].post(CHAT, json=chat(max_tokens=1))
            assert response.status_code == 200, response.text
        await router.wait_for("request", 120)

        shares = count_by_worker(router)
        assert set(shares) == set(range(WORKERS))
        assert all(0.2 <= share / 120 <= 0.47 for share in shares.values()), shares
        metrics = await router.read_metrics()
        assert metrics.total("pdrouter_requests_total", outcome="ok") == 120
        assert metrics.total("pdrouter_request_seconds_count") == 120
        assert metrics.total("pdrouter_request_seconds_bucket", le="+Inf") == 120
        assert metrics.total("gateway_request_model_success_total") == 120
        assert metrics.total("pdrouter_pods_synced") == 1
        assert metrics.total("pdrouter_pod_ready") == 2
        assert metrics.total("pdrouter_workers_serving") == WORKERS
        assert metrics.total("pdrouter_worker_restarts_total") == 0
        models = (await router.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["demo"]
        decisions = (await router.get("/debug/decisions")).json()["decisions"]
        assert len(decisions) == 100  # PDROUTER_KEPT_DECISIONS, as one process shows.
        assert {decision["worker"] for decision in decisions} == set(range(WORKERS))
        wanted = decisions[-1]["request_id"]
        page = await router.get(f"/debug/decisions?id={wanted}")
        assert [decision["request_id"] for decision in page.json()["decisions"]] == [wanted]
        times = [decision["time"] for decision in decisions]
        assert times == sorted(times, reverse=True)
        router.expect_no_accident()


async def test_workers_count_the_requests_of_a_user_together(tmp_path: Path) -> None:
    file, key = tmp_path / "users.yaml", "sk-test-ann-0123456789"
    user = {"name": "ann", "keys": [digest_key(key)], "limits": {"requests_per_minute": 10}}
    file.write_text(json.dumps([user]))
    settings = {"PDROUTER_API_KEYS_FILE": str(file)}
    async with run_workers(PAIR, settings=settings) as installation, AsyncExitStack() as stack:
        (router,) = installation.routers
        clients = [await stack.enter_async_context(installation.connect()) for _ in range(4)]
        statuses: Counter[int] = Counter()
        for number in range(30):
            response = await clients[number % 4].post(
                CHAT, json=chat(max_tokens=1), headers={"authorization": f"Bearer {key}"}
            )
            statuses[response.status_code] += 1
        assert statuses == {200: 10, 429: 20}
        await router.wait_for("request", 30)
        assert set(count_by_worker(router)) == set(range(PAIR))
        metrics = await router.read_metrics()
        assert metrics.total("pdrouter_user_requests_total", user="ann", status="429") == 20
        assert metrics.total("pdrouter_limit_refusals_total", user="ann", limit="requests") == 20


@asynccontextmanager
async def running(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run these as long as the context lasts."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}, results


@dataclass(slots=True)
class Traffic:
    """Requests that are sent without a break.

    Attributes:
        begun: how many of them have begun.
        failed: numbers of those that failed, in the order of their beginnings.
    """

    begun: int = 0
    failed: list[int] = field(default_factory=list)

    async def send(self, client: httpx.AsyncClient) -> None:
        while True:
            number = self.begun
            self.begun += 1
            response = await client.post(CHAT, json=chat(max_tokens=2))
            if response.status_code != 200:
                self.failed.append(number)


async def follow_total(router: RouterProcess, totals: list[float]) -> None:
    while True:
        totals.append((await router.read_metrics()).total("pdrouter_requests_total"))
        await asyncio.sleep(0.3)


async def test_a_worker_that_dies_takes_only_its_own_requests_along_and_comes_back() -> None:
    senders = 4
    traffic = Traffic()
    totals: list[float] = []
    async with run_workers(WORKERS) as installation, AsyncExitStack() as stack:
        (router,) = installation.routers
        clients = [await stack.enter_async_context(installation.connect()) for _ in range(senders)]

        async def all_have_served(times: int) -> None:
            counts = count_by_worker(router)
            assert all(counts[number] >= times for number in range(WORKERS)), counts

        async with running(follow_total(router, totals), *(traffic.send(one) for one in clients)):
            await eventually(lambda: all_have_served(5))
            # The one that scrapes for all.
            os.kill((await find_pids(router))[0], signal.SIGKILL)
            await router.wait_for("worker ended")
            # Up to here Envoy could send requests into connections of a process that was dying.
            before = traffic.begun
            assert (await router.get("/readyz")).status_code == 200
            enough = count_by_worker(router)[0] + 5
            await eventually(lambda: all_have_served(enough))

        assert len(traffic.failed) <= senders
        assert all(number < before for number in traffic.failed), (traffic, before)
        others = [line for line in router.events("request") if line["worker"] != 0]
        assert {line["outcome"] for line in others} <= {"ok", "client-left"}
        assert len(totals) > 1
        assert all(former <= latter for former, latter in pairwise(totals)), totals
        metrics = await router.read_metrics()
        assert metrics.total("pdrouter_workers_serving") == WORKERS
        assert metrics.total("pdrouter_worker_restarts_total", worker="0") == 1
        assert metrics.total("pdrouter_worker_restarts_total") == 1
        (end,) = router.events("worker ended")
        assert (end["worker"], end["exit_code"]) == (0, -signal.SIGKILL)
        assert metrics.total("pdrouter_worker_changes_total", event="taken") > 0
        for event in ("failed", "lost", "unreadable"):
            assert metrics.total("pdrouter_worker_changes_total", event=event) == 0
        await expect_scrapes(router, than=metrics.total("pdrouter_scrapes_total"))


async def expect_scrapes(router: RouterProcess, than: float) -> None:
    """Wait until engines are scraped further."""

    async def check() -> None:
        assert (await router.read_metrics()).total("pdrouter_scrapes_total") > than

    await eventually(check)


async def read_ledgers(router: RouterProcess) -> dict[int, dict[str, dict[str, int]]]:
    """Return what each worker counts in flight, by pod."""
    state = (await router.get("/debug/state")).json()
    return {worker["worker"]: worker["state"]["ledger"] for worker in state["workers"]}


async def test_a_worker_knows_where_the_others_have_sent_a_prompt_and_so_do_those_after_it() -> (
    None
):
    prompt = "You are a helpful assistant. " * 100
    body = chat(max_tokens=1, messages=[{"role": "user", "content": prompt}])
    async with run_workers(PAIR, prefill_engines=3) as installation, AsyncExitStack() as stack:
        (router,) = installation.routers
        clients = [await stack.enter_async_context(installation.connect()) for _ in range(4)]

        async def send(requests: int) -> None:
            sent = len(router.events("request"))
            for number in range(requests):
                response = await clients[number % 4].post(CHAT, json=body)
                assert response.status_code == 200, response.text
            await router.wait_for("request", sent + requests)

        await send(20)
        assert set(count_by_worker(router)) == set(range(PAIR))
        for number in range(PAIR):
            os.kill((await find_pids(router))[number], signal.SIGKILL)
            await router.wait_for("serving", PAIR + number + 1)
        await eventually(lambda: send(1))
        await send(20)
        assert len({line["prefill_pod"] for line in router.events("request")}) == 1


async def test_workers_count_what_all_have_in_flight_and_no_more_when_one_has_died() -> None:
    streams = 12
    async with run_workers(PAIR, itl_ms=20) as installation, installation.connect() as client:
        (router,) = installation.routers
        async with streaming(installation, client, streams=streams, tokens=400) as opened:

            async def all_count_what_is_open() -> None:
                left = sum(not stream.done() for stream in opened)
                ledgers = await read_ledgers(router)
                assert set(ledgers) == set(range(PAIR))
                for ledger in ledgers.values():
                    assert sum(pod["decode_requests"] for pod in ledger.values()) == left
                metrics = await router.read_metrics()
                assert metrics.total("pdrouter_pod_decode_requests") == left

            await eventually(all_count_what_is_open)
            os.kill((await find_pids(router))[1], signal.SIGKILL)
            await router.wait_for("serving", PAIR + 1)

            await eventually(all_count_what_is_open)
            assert any(stream.done() for stream in opened)
            assert not all(stream.done() for stream in opened)
        await eventually(all_count_what_is_open)
        assert {stream.result() for stream in opened} == {"cut", "complete"}


async def test_one_worker_asks_the_engines_for_all(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("models: [{name: gone, endpoints: ['127.0.0.1:9']}]")
    environment = {
        "PDROUTER_ENDPOINTS": str(endpoints),
        "PDROUTER_WORKERS": str(PAIR),
        "PDROUTER_GRPC_BIND": f"127.0.0.1:{find_free_ports(PAIR)}",
    }
    async with RouterProcess.serving(environment) as router:
        silent = "engine 127.0.0.1:9 does not answer: Connection refused"
        await router.wait_for(silent)

        async def said() -> None:
            answer = await router.get("/readyz")
            assert (answer.status_code, answer.text) == (
                200,
                "ok\nmodel gone: no engine answers\n",
            )

        await eventually(said)
        assert len(router.events(silent)) == 1


async def test_sigterm_drains_all_workers() -> None:
    async with (
        run_workers(PAIR, lame_duck_s=3, itl_ms=50) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        pids = await find_pids(router)
        async with streaming(installation, client, streams=12, tokens=60) as streams:
            router.signal(signal.SIGTERM)
            await router.wait_for("draining", PAIR)
            assert (await router.get("/readyz")).status_code == 503
            assert (await router.get("/healthz")).status_code == 200
            assert (await client.post(CHAT, json=chat())).status_code == 200
        assert [stream.result() for stream in streams] == ["complete"] * 12
        assert await router.wait() == 0
        assert len(router.events("stopped")) == PAIR
        assert len(router.events("workers stopped")) == 1
        assert not router.events("worker ended")
        assert len(count_by_worker(router)) > 1
        router.expect_no_accident()
        await expect_ended(pids)


async def test_a_second_signal_ends_all_at_once() -> None:
    async with run_workers(PAIR, itl_ms=20) as installation, installation.connect() as client:
        (router,) = installation.routers
        pids = await find_pids(router)
        async with streaming(installation, client, streams=3, tokens=1_000) as streams:
            router.signal(signal.SIGTERM)
            await router.wait_for("draining", PAIR)
            router.signal(signal.SIGTERM)
            assert await router.wait() == 1
        assert [stream.result() for stream in streams] == ["cut"] * 3
        await expect_ended(pids)


async def test_a_worker_that_dies_in_a_drain_is_not_restarted() -> None:
    async with (
        run_workers(PAIR, lame_duck_s=3, itl_ms=50) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        pids = await find_pids(router)
        async with streaming(installation, client, streams=6, tokens=60) as streams:
            router.signal(signal.SIGTERM)
            await router.wait_for("draining", PAIR)
            os.kill(pids[1], signal.SIGKILL)
        assert {stream.result() for stream in streams} <= {"complete", "cut"}
        assert "complete" in {stream.result() for stream in streams}
        assert await router.wait() == 1
        assert "pdrouter: worker 1 was ended by SIGKILL while it drained" in router.errors
        assert len(router.events("serving")) == PAIR
        await expect_ended(pids)


async def test_workers_end_when_their_supervisor_has_died() -> None:
    async with run_workers(PAIR) as installation:
        (router,) = installation.routers
        pids = await find_pids(router)
        router.signal(signal.SIGKILL)
        await expect_ended(pids)
        assert len(router.events("stopped")) == PAIR


async def test_a_worker_that_cannot_bind_ends_all(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("models: []")
    first = find_free_ports(PAIR)
    environment = {
        "PDROUTER_ENDPOINTS": str(endpoints),
        "PDROUTER_WORKERS": str(PAIR),
        "PDROUTER_GRPC_BIND": f"127.0.0.1:{first}",
    }
    with socket.create_server(("127.0.0.1", first + 1)):
        async with RouterProcess.start(environment) as router:
            assert await router.wait() == 1
            assert not router.events("workers serving")
            errors = router.errors
    assert f"pdrouter: worker 1: cannot listen on 127.0.0.1:{first + 1}" in errors
    assert errors.splitlines()[-1] == "pdrouter: worker 1 ended with exit code 1 before it served"


async def test_workers_are_of_the_router_that_starts_them_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("models: []")
    another = tmp_path / "pdrouter"
    another.mkdir()
    (another / "__init__.py").write_text("raise SystemExit('another router')")
    monkeypatch.chdir(tmp_path)
    environment = {
        "PDROUTER_ENDPOINTS": str(endpoints),
        "PDROUTER_WORKERS": str(PAIR),
        "PDROUTER_GRPC_BIND": f"127.0.0.1:{find_free_ports(PAIR)}",
    }
    # As the command does, which is no module of the directory that it is called in.
    async with RouterProcess.serving(environment, python_options=["-P"]) as router:
        assert set(await find_pids(router)) == set(range(PAIR))


async def test_an_http_port_in_use_ends_all(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("models: []")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        environment = {
            "PDROUTER_ENDPOINTS": str(endpoints),
            "PDROUTER_WORKERS": str(PAIR),
            "PDROUTER_GRPC_BIND": f"127.0.0.1:{find_free_ports(PAIR)}",
            "PDROUTER_HTTP_BIND": address,
        }
        async with RouterProcess.start(environment) as router:
            assert await router.wait() == 1
            last = router.errors.splitlines()[-1]
    assert last.startswith("pdrouter: ")
    assert address.rpartition(":")[2] in last
