"""How engines are asked what they are: once for all requests, and again when they have failed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from factories import make_answers, make_kv_params, make_pod
from loopback import Server, answering, find_free_ports, hang, listen, reset
from waiting import WAIT_S, wait_until

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.split import EnginePod, Inquiry
from pdrouter.engines.vllm.mooncake import Mooncake
from pdrouter.engines.vllm.nixl_push import NixlPush
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.introductions import _LARGEST, Introductions

RANKS = b'{"0": {"engine_id": "e-1"}}'
FACTS = {"0": b'"e-1"'}
MOONCAKE = Mooncake()


@pytest_asyncio.fixture
async def introductions() -> AsyncIterator[Introductions]:
    async with EngineClient(ClientLimits(WAIT_S, WAIT_S, 1024 * 1024)) as client:
        yield Introductions(client)


def say(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def meet(introductions: Introductions, pod: Pod) -> "asyncio.Task[object]":
    deadline = time.monotonic() + WAIT_S
    return asyncio.create_task(introductions.meet(pod, MOONCAKE, deadline))


def at(server: Server) -> Pod:
    host, _, port = server.address.rpartition(":")
    return make_pod("p", ip=host, port=1, bootstrap_port=int(port))


async def test_an_engine_is_asked_once(introductions: Introductions) -> None:
    async with listen(answering(say(RANKS))) as server:
        for _ in range(3):
            assert await meet(introductions, at(server)) == FACTS
    assert [request.line for request in server.requests] == ["GET /query HTTP/1.1"]


async def test_concurrent_requests_share_one_question(introductions: Introductions) -> None:
    async with listen(answering(say(RANKS))) as server:
        met = await asyncio.gather(*(meet(introductions, at(server)) for _ in range(50)))
    assert met == [FACTS] * 50
    assert len(server.requests) == 1


async def test_what_cannot_be_learnt_fails_for_all_who_wait(introductions: Introductions) -> None:
    async with listen(reset) as server:
        tasks = [meet(introductions, at(server)) for _ in range(5)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(error) for error in errors} == {PostFailed}
    # The client asks once more where a connection ends: a GET does no harm.
    assert server.connections <= 2
    assert not introductions._asked


async def test_who_has_little_time_left_does_not_end_the_question_of_others(
    introductions: Introductions,
) -> None:
    async with listen(hang) as silent:
        pod = at(silent)
        hasty = asyncio.create_task(introductions.meet(pod, MOONCAKE, time.monotonic() + 0.05))
        await wait_until(lambda: bool(introductions._asked))
        patient = meet(introductions, pod)
        with pytest.raises(PostFailed):
            await hasty
        await wait_until(lambda: patient.done() or silent.connections == 2)
        assert not patient.done()
        patient.cancel()
        await asyncio.gather(patient, return_exceptions=True)


async def test_who_leaves_does_not_take_the_question_along(introductions: Introductions) -> None:
    async with listen(hang) as silent:
        pod = at(silent)
        first = meet(introductions, pod)
        await wait_until(lambda: silent.connections == 1)
        second = meet(introductions, pod)
        await asyncio.sleep(0)
        first.cancel()
        await wait_until(lambda: silent.connections == 2)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
    assert not introductions._asked


async def test_who_waits_for_another_may_leave(introductions: Introductions) -> None:
    async with listen(hang) as silent:
        first, second = meet(introductions, at(silent)), meet(introductions, at(silent))
        await wait_until(lambda: silent.connections == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert not first.done()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert silent.connections == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (say(RANKS, "503 Service Unavailable"), FailureKind.TRANSPORT),
        (say(b"{}"), FailureKind.TRANSPORT),
        (say(b"no JSON"), FailureKind.TRANSPORT),
        (say(json.dumps({"0": {"engine_id": "e" * _LARGEST}}).encode()), FailureKind.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", FailureKind.TRANSPORT),
    ],
)
async def test_what_an_engine_does_not_say_well_is_a_failure_of_its_pod(
    introductions: Introductions, answer: bytes, kind: FailureKind
) -> None:
    async with listen(answering(answer)) as server:
        with pytest.raises(PostFailed) as caught:
            await meet(introductions, at(server))
    assert caught.value.kind is kind
    assert not len(introductions.knowledge)


async def test_nobody_at_the_port_is_a_failure_to_connect(introductions: Introductions) -> None:
    pod = make_pod("p", ip="127.0.0.1", bootstrap_port=find_free_ports(1))
    with pytest.raises(PostFailed) as caught:
        await meet(introductions, pod)
    assert caught.value.kind is FailureKind.CONNECT


class Impatient(Mooncake):
    """The same wire, which asks for an answer soon."""

    def inquire(self, pod: EnginePod) -> Inquiry | None:
        return Inquiry(pod.bootstrap_port, "/query", 0.05)


async def test_an_engine_that_says_nothing_is_not_waited_for(introductions: Introductions) -> None:
    async with listen(hang) as server:
        with pytest.raises(PostFailed) as caught:
            await introductions.meet(at(server), Impatient(), time.monotonic() + WAIT_S)
        assert caught.value.kind is FailureKind.TIMEOUT
        # The request's own deadline counts, too.
        with pytest.raises(PostFailed):
            await introductions.meet(at(server), MOONCAKE, time.monotonic() + 0.05)


@pytest.mark.parametrize("restarts", [False, True])
async def test_an_engine_that_has_failed_or_started_anew_is_asked_again(
    introductions: Introductions, *, restarts: bool
) -> None:
    async with listen(answering(say(RANKS))) as server:
        pod = replace(at(server), started="1")
        await meet(introductions, pod)
        if restarts:
            pod = replace(pod, started="2")
        else:
            introductions.doubt(pod)
        assert await meet(introductions, pod) == FACTS
    assert len(server.requests) == 2


async def test_what_only_answers_tell_is_taken_from_them(introductions: Introductions) -> None:
    split, deadline = NixlPush(), time.monotonic() + WAIT_S
    pod = make_pod("p")
    assert await introductions.meet(pod, split, deadline) is None
    params = make_kv_params(transfer_mode="push", remote_block_ids=...)
    body = json.dumps({"kv_transfer_params": params}).encode()
    (answer,) = make_answers(body, pod)
    introductions.take(answer, split, introductions.knowledge.clock())
    facts = await introductions.meet(pod, split, deadline)
    assert facts is not None
    assert facts["remote_engine_id"] == b'"engine-1"'
