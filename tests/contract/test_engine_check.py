"""Engines of an endpoints file are asked what they serve, and what is odd is said once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from factories import make_pod
from waiting import wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView, PodCache
from pdrouter.load.engine_check import EngineCheck, describe_silence


class Engine:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.names = ["m"]

    async def list_models(self, request: web.Request) -> web.Response:
        del request
        self.asked += 1
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.names]})

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[int]:
        app = web.Application()
        app.router.add_get("/v1/models", self.list_models)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


def pod(port: int, model: str = "m") -> Pod:
    return make_pod(f"p-{model}-{port}", Role.BOTH, model=model, ip="127.0.0.1", port=port)


@asynccontextmanager
async def checking(cache: PodCache) -> AsyncIterator[EngineCheck]:
    check = EngineCheck(cache, look_s=0.01, again_s=0.02, wait_s=5.0)
    task = asyncio.create_task(check.run())
    try:
        yield check
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was logged so far."""
    caplog.set_level(logging.INFO, "pdrouter.load.engine_check")
    return lambda: [record.getMessage() for record in caplog.records]


async def test_an_engine_that_serves_its_model_is_asked_once_and_nothing_is_said(
    said: Callable[[], list[str]],
) -> None:
    engine, cache = Engine(), PodCache()
    async with engine.serve() as port, checking(cache) as check:
        cache.replace([pod(port)])
        await wait_until(lambda: engine.asked == 1)
        await asyncio.sleep(0.1)
        assert engine.asked == 1
        assert not check.is_silent(pod(port))
    assert not said()


async def test_an_engine_that_serves_another_model_is_said_once(
    said: Callable[[], list[str]],
) -> None:
    engine, cache = Engine(), PodCache()
    engine.names = ["org/m", "adapter"]
    async with engine.serve() as port, checking(cache) as check:
        cache.replace([pod(port), pod(port, "adapter")])
        await wait_until(lambda: bool(said()))
        await asyncio.sleep(0.1)
        assert engine.asked == 1, "two models at one address are one engine"
        assert not check.is_silent(pod(port))
    (warning,) = said()
    assert warning.startswith(f"engine 127.0.0.1:{port} serves org/m, adapter, not m:")


async def test_an_engine_that_does_not_answer_is_said_once_and_asked_until_it_does(
    said: Callable[[], list[str]],
) -> None:
    engine, cache = Engine(), PodCache()
    async with engine.serve() as port:
        pass
    async with checking(cache) as check:
        cache.replace([pod(port)])
        await wait_until(lambda: check.is_silent(pod(port)))
        await asyncio.sleep(0.1)
        assert said() == [f"engine 127.0.0.1:{port} does not answer: Connection refused"]
        async with engine.serve(port):
            await wait_until(lambda: not check.is_silent(pod(port)))
        assert said()[-1] == f"engine 127.0.0.1:{port} answers now"
    assert len(said()) == 2


async def test_pods_that_are_new_are_asked_and_those_that_are_gone_are_forgotten(
    said: Callable[[], list[str]],
) -> None:
    first, second, cache = Engine(), Engine(), PodCache()
    async with first.serve() as one, second.serve() as two, checking(cache) as check:
        cache.replace([pod(one), make_pod("unready", ready=False, ip="127.0.0.1", port=1)])
        await wait_until(lambda: first.asked == 1)
        cache.replace([pod(two)])
        await wait_until(lambda: second.asked == 1)
        await wait_until(lambda: set(check._engines) == {f"127.0.0.1:{two}"})
    assert not said()


@pytest.mark.parametrize("body", [b"", b"no JSON", b'{"data": 3}', b"x" * (2 << 20)])
async def test_an_answer_of_another_kind_is_an_answer(
    body: bytes, said: Callable[[], list[str]]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(status=401, body=body)

    app = web.Application()
    app.router.add_get("/v1/models", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served = pod(runner.addresses[0][1])
    cache = PodCache()
    cache.replace([served])
    async with checking(cache) as check:
        await wait_until(lambda: bool(check._engines))
        assert not check.is_silent(served)
    await runner.cleanup()
    assert not said()


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        ("", []),
        ("p1", []),
        ("p1 p2", ["model m: no prefill engine answers"]),
        ("d", ["model m: no decode engine answers"]),
        ("p1 p2 d", ["model m: no engine answers"]),
        ("w", ["model whole: no engine answers"]),
    ],
)
def test_what_does_not_answer_is_said_by_model_and_leg(silent: str, said: list[str]) -> None:
    view = ClusterView.build(
        [
            make_pod("p1", Role.PREFILL, model="m"),
            make_pod("p2", Role.PREFILL, model="m"),
            make_pod("d", Role.DECODE, model="m"),
            make_pod("late", Role.DECODE, model="m", ready=False),
            make_pod("w", Role.BOTH, model="whole"),
        ]
    )
    assert describe_silence(view, lambda pod: pod.name in silent.split()) == said
