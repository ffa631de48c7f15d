"""Open streams: messages in, replies out, and a close for each exchange, however it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.wire import OpenStreams, StreamCut
from pdrouter.serving.call import Call
from pdrouter.serving.drains import Drains
from pdrouter.serving.record import RequestRecord

END = object()
Send = Callable[[bytes], Awaitable[object]]


class Echo:
    """An exchange that answers all but `silence`, until it is told `bye`."""

    cut = False
    breaks = False

    def __init__(self, send: Send, interrupt: Callable[[], object]) -> None:
        self.send = send
        self.interrupt = interrupt
        self.ended = False
        self.closed = 0
        self.call = Call(RequestRecord("r"), self.fail, Drains())

    async def fail(self, error: Exception) -> None:
        del error
        self.cut = True
        self.interrupt()

    async def receive(self, data: bytes) -> None:
        self.ended = data == b"bye"
        if data == b"fail":
            raise ValueError(data)
        if data == b"task":
            self.call.start(work())
        if data != b"silence":
            await self.send(data.upper())

    def close(self) -> None:
        self.closed += 1
        if self.breaks:
            raise ValueError("a bug")


async def work() -> None:
    raise RuntimeError("a leg has failed")


async def carry(*messages: bytes) -> list[bytes]:
    """Carry a stream; return what was written."""
    exchanges: list[Echo] = []

    def create(send: Send, interrupt: Callable[[], object]) -> Exchange:
        exchanges.append(Echo(send, interrupt))
        return cast("Exchange", exchanges[-1])

    waiting: list[Any] = [*messages, END]
    written: list[bytes] = []

    async def read() -> Any:
        assert streams.count == 1
        if waiting[0] == b"wait":
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def write(reply: bytes) -> None:
        written.append(reply)

    streams = OpenStreams(create)
    try:
        await streams.carry(read, write, END)
    finally:
        (exchange,) = exchanges
        assert exchange.closed == 1
        assert streams.count == 0
    return written


async def test_replies_are_written_in_order_until_the_peer_ends() -> None:
    assert await carry(b"a", b"silence", b"b") == [b"A", b"B"]
    assert await carry() == []


async def test_an_exchange_that_has_ended_gets_no_more() -> None:
    assert await carry(b"bye", b"more") == [b"BYE"]


async def test_a_failure_closes_the_exchange() -> None:
    with pytest.raises(ValueError, match="fail"):
        await carry(b"fail")


async def test_an_exchange_that_cannot_be_closed_is_not_open_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Echo, "breaks", True)
    with pytest.raises(ValueError, match="a bug"):
        await carry(b"a")


async def test_a_task_that_fails_too_late_for_an_answer_cuts_the_stream() -> None:
    with pytest.raises(StreamCut):
        await carry(b"task", b"wait")


async def test_a_cancelled_stream_is_closed_and_the_last_one_leaves_it_idle() -> None:
    exchanges: list[Echo] = []

    def create(send: Send, interrupt: Callable[[], object]) -> Exchange:
        exchanges.append(Echo(send, interrupt))
        return cast("Exchange", exchanges[-1])

    async def never(*_: bytes) -> None:
        await asyncio.Event().wait()

    streams = OpenStreams(create)
    await streams.wait_until_idle()
    tasks = [asyncio.create_task(streams.carry(never, never, END)) for _ in range(2)]
    await asyncio.sleep(0)
    assert streams.count == 2
    idle = asyncio.create_task(streams.wait_until_idle())
    for task in tasks:
        await asyncio.sleep(0)
        assert not idle.done()
        task.cancel()
        await asyncio.wait([task])
    await idle
    assert [exchange.closed for exchange in exchanges] == [1, 1]
