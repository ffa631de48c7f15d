"""The memory of bodies that wait: what is refused, and that it is released in the end."""

import asyncio
from contextlib import suppress

import pytest
from exchanges import Bench, error_of, request_body, request_headers
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engine_http.failures import FailureKind
from pdrouter.extproc.ext_proc_pb2 import ProcessingRequest
from pdrouter.extproc.messages import ImmediateReply, PhaseReply
from pdrouter.openai.errors import RequestRejected
from pdrouter.serving.held_bodies import HeldBodies

BODY = request_body()
SIZE = len(BODY.body)


def test_bodies_are_held_up_to_the_limit() -> None:
    bodies = HeldBodies(100, 250)
    held = [bodies.hold(size) for size in (100, 100, 50)]
    assert bodies.bytes == 250
    with pytest.raises(RequestRejected) as refused:
        bodies.hold(1)
    assert bodies.bytes == 250
    for each in held:
        each.release()
        each.release()
    assert (bodies.bytes, bodies.refused) == (0, 1)
    assert (refused.value.status, refused.value.code) == (503, "body_memory_exhausted")
    assert refused.value.headers[0][0] == "retry-after"


@given(st.lists(st.integers(0, 120), max_size=30), st.integers(0, 300))
def test_the_limit_is_never_passed(sizes: list[int], limit: int) -> None:
    bodies = HeldBodies(100, limit)
    held = []
    for size in sizes:
        with suppress(RequestRejected):
            held.append(bodies.hold(size))
        assert bodies.bytes <= bodies.limit
    for each in held:
        each.release()
    assert bodies.bytes == 0


def test_one_body_always_has_room() -> None:
    bodies = HeldBodies(100, 0)
    bodies.hold(100)
    assert bodies.bytes == 100


async def test_a_body_is_held_until_envoy_has_the_reply() -> None:
    bench = Bench()
    held: list[int] = []
    answer = bench.prefill.answer

    def note() -> object:
        held.append(bench.bodies.bytes)
        return answer()

    async def take(data: bytes) -> None:
        del data
        held.append(bench.bodies.bytes)

    bench.prefill.answer = note
    bench.exchange._send = take
    await bench.tell(request_headers())
    message = ProcessingRequest()
    message.request_body.body = BODY.body
    message.request_body.end_of_stream = True
    await bench.exchange.receive(message.SerializeToString())
    assert held == [SIZE, SIZE]
    assert bench.bodies.bytes == 0
    bench.close()


@pytest.mark.parametrize("answer", [FailureKind.CONNECT, RuntimeError("no")])
async def test_a_request_that_fails_holds_nothing_at_its_end(answer: object) -> None:
    bench = Bench()

    def fail() -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    bench.prefill.answer = fail
    _, reply = await bench.tell(request_headers(), BODY)
    assert isinstance(reply, ImmediateReply)
    bench.close()


async def test_a_client_that_leaves_during_prefill_leaves_nothing() -> None:
    bench = Bench()
    waiting = asyncio.Event()

    async def hang() -> None:
        waiting.set()
        await asyncio.Event().wait()

    bench.prefill.answer = hang
    await bench.tell(request_headers())
    handling = asyncio.create_task(bench.exchange.handle(BODY))
    await waiting.wait()
    assert bench.bodies.bytes == SIZE
    handling.cancel()
    with suppress(asyncio.CancelledError):
        await handling
    bench.close()


async def test_a_body_without_room_is_refused_for_now() -> None:
    bench = Bench(max_body_bytes=SIZE, max_held_bytes=SIZE)
    bench.bodies.hold(1)
    _, reply = await bench.tell(request_headers(), BODY)
    assert error_of(reply) == (503, "body_memory_exhausted")
    assert isinstance(reply, ImmediateReply)
    assert "retry-after" in dict(reply.headers)
    bench.exchange.close()
    assert (bench.bodies.bytes, bench.bodies.refused) == (1, 1)


async def test_an_announced_length_takes_no_room() -> None:
    """Who never sends what is announced would keep others out."""
    bench = Bench(max_body_bytes=SIZE, max_held_bytes=SIZE)
    (reply,) = await bench.tell(request_headers(content_length=str(SIZE)))
    assert isinstance(reply, PhaseReply)
    assert bench.bodies.bytes == 0
    bench.close()
