"""A request leaves no objects that refer to each other in a circle, however it ends.

Only a search of all objects finds these. It is put off while many requests are open, and would hold
the event loop for seconds if each request had left its own.
"""

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from encode_stage import Stage, picture
from exchanges import Bench, Notes, error_of, sglang
from factories import make_pod
from http2_peer import Client as Peer
from http2_peer import Service
from loopback import Talk, answer_always, hang, listen, reset
from redis.exceptions import ResponseError
from shared_counters import share
from waiting import WAIT_S, wait_until

from benchmarks.transports.installation import MODEL
from benchmarks.transports.messages import encode_stream, make_chat
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engines.vllm.mooncake import Mooncake
from pdrouter.extproc.http2.stream import END, Stream
from pdrouter.extproc.wire import OpenStreams
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.stored_responses import create_response_id
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.introductions import Introductions
from pdrouter.serving.record import Outcome
from pdrouter.serving.response_holders import ResponseHolders
from pdrouter.users.counters import CountersUnavailable, Demand, Measure, Quota
from pdrouter.users.redis.clients import Client
from pdrouter.users.redis.link import RedisLink

REQUESTS = 20
PODS = [
    Pod.create(uid=role, name=role, ip=f"10.0.0.{last}", port=8000, model=MODEL, role=role)
    for last, role in enumerate((Role.PREFILL, Role.DECODE), 1)
]


class Silent:
    """Engines that never answer."""

    async def post(self, *_: object, **__: object) -> EngineAnswer:
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")


class Away:
    """Engines that cannot be reached."""

    async def post(self, *_: object, **__: object) -> EngineAnswer:
        raise PostFailed(FailureKind.CONNECT, "nobody listens")


class Breaking:
    """Engines that break once they have got a request."""

    async def post(
        self, *_: object, progress: PostProgress | None = None, **__: object
    ) -> EngineAnswer:
        assert progress is not None
        progress.sent.set()
        await asyncio.sleep(0.01)
        raise PostFailed(FailureKind.TRANSPORT, "the connection broke")


@contextmanager
def find_garbage() -> Iterator[list[str]]:
    """Give, in the end, what only a search of all objects has found: our objects, and failures."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        names = (f"{type(each).__module__}.{type(each).__name__}" for each in gc.garbage)
        found += (name for name in names if name.startswith(("pdrouter.", "builtins.trace")))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def connect(bench: Bench) -> Peer:
    """Return a client of the exchanges."""
    streams = OpenStreams(bench.exchanges.open)

    async def process(stream: Stream) -> None:
        await streams.carry(
            *(stream.read, stream.write, END, stream.ask_before_large),
            read_trace=lambda: stream.head.traceparent,
        )

    return Peer(Service.create(handler=process))


@pytest.mark.parametrize(
    ("body", "engines", "leaves", "outcome"),
    [
        (make_chat(1000), None, False, Outcome.OK),
        (b"{", None, False, Outcome.REJECTED),
        (make_chat(1000), Away(), False, Outcome.FAILED),
        (make_chat(1000), Silent(), True, Outcome.CLIENT_LEFT),
    ],
    ids=["served", "refused", "failed", "left during prefill"],
)
async def test_a_stream_of_envoys_leaves_none(
    body: bytes, engines: Silent | Away | None, leaves: bool, outcome: Outcome
) -> None:
    bench = Bench(PODS, client=engines)
    client = connect(bench)
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            number = client.open()
            await client.send(number, encode_stream(body, 0))
            if leaves:
                client.h2.reset_stream(number)
            elif outcome is Outcome.OK:
                client.h2.end_stream(number)
            await client.exchange()
    assert [record.outcome for record in bench.notes.finished] == [outcome] * REQUESTS
    assert garbage == []


@pytest.mark.parametrize(
    ("talk", "total_s"),
    [(answer_always, 60), (reset, 60), (hang, 0.01)],
    ids=["ok", "reset", "late"],
)
async def test_requests_to_an_engine_leave_none(talk: Talk, total_s: float) -> None:
    limits = ClientLimits(connect_s=60, response_s=60, answer_bytes=1024)
    async with listen(talk) as server:
        with find_garbage() as garbage:
            async with EngineClient(limits) as client:
                for _ in range(REQUESTS):
                    with suppress(PostFailed):
                        await client.post(
                            server.address, "/v1/completions", {}, Pieces((b"{}",)), total_s
                        )
            await wait_until(server.closed.is_set)
            await asyncio.sleep(0)
    # The server of this test has failures of its own.
    assert [name for name in garbage if name.startswith("pdrouter.")] == []


@pytest.mark.parametrize("trouble", [None, ResponseError("-OOM"), TimeoutError()], ids=repr)
async def test_limits_that_cannot_be_counted_leave_none(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    """While Redis is away each request would: with its body, which the frames of a failure know."""

    def fail(_: RedisLink) -> Client:
        assert trouble is not None
        raise type(trouble)(*trouble.args)

    if trouble is not None:
        monkeypatch.setattr(RedisLink, "_take_client", fail)
    demand = Demand(Quota("user/ann/requests", Measure.REQUESTS, 100, 60.0))
    async with share("redis://127.0.0.1:1") as shared:
        with find_garbage() as garbage:
            for number in range(REQUESTS):
                with suppress(CountersUnavailable):
                    await shared.counters.take([demand], str(number))
                await asyncio.sleep(0)
    assert garbage == []


async def test_engines_that_say_nothing_of_themselves_leave_none() -> None:
    async def ask(introductions: Introductions, pod: Pod) -> None:
        with suppress(PostFailed):
            await introductions.meet(pod, Mooncake(), time.monotonic() + WAIT_S)

    class Absent:
        async def get(self, *_: object, **__: object) -> EngineAnswer:
            await asyncio.sleep(0)
            return EngineAnswer(404, {}, b"")

    introductions = Introductions(Absent())  # type: ignore[arg-type]
    pod = make_pod("p", bootstrap_port=1)
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            async with asyncio.TaskGroup() as asking:
                for _ in range(3):
                    asking.create_task(ask(introductions, pod))
    assert garbage == []


async def test_legs_that_fail_beside_the_last_one_leave_none() -> None:
    pods = [sglang(pod, bootstrap_port=1) for pod in PODS]
    bench = Bench(pods, client=Breaking())
    client = connect(bench)
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            number = client.open()
            await client.send(number, encode_stream(make_chat(1000), 0))
            await asyncio.sleep(0.02)
            await client.exchange()
    assert [record.outcome for record in bench.notes.finished] == [Outcome.FAILED] * REQUESTS
    assert garbage == []


async def test_a_response_that_nobody_has_leaves_none() -> None:
    cache = PodCache()
    cache.replace(PODS)
    holders = ResponseHolders(cache, Notes())
    unknown = create_response_id("gone", "")
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            with suppress(RequestRejected):
                holders.find_previous(unknown, "", cache.view.models[MODEL])
    assert garbage == []


async def test_media_that_cannot_be_encoded_leave_none() -> None:
    stage = Stage()
    stage.encode = lambda *_: FailureKind.TRANSPORT
    with find_garbage() as garbage:
        for _ in range(REQUESTS):
            reply = await stage.ask(picture(1), picture(2))
            assert error_of(reply) == (502, "encode_failed")
            await stage.end()
            stage.reopen()
    stage.bench.close()
    assert garbage == []
