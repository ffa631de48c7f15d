"""Open streams: messages in, replies out, and a close for each exchange, however it ends."""

import asyncio
from typing import Any, cast

import pytest

from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.streams import OpenStreams

END = object()


class Echo:
    """An exchange that answers all but `silence`, until it is told `bye`."""

    def __init__(self) -> None:
        self.ended = False
        self.closed = 0
        self.let_go_after: list[int] = []
        self.written: list[bytes] = []

    async def receive(self, data: bytes) -> bytes | None:
        self.ended = data == b"bye"
        if data == b"fail":
            raise ValueError(data)
        return None if data == b"silence" else data.upper()

    def let_go(self) -> None:
        self.let_go_after.append(len(self.written))

    def close(self) -> None:
        self.closed += 1


async def carry(exchange: Echo, *messages: bytes) -> list[bytes]:
    """Carry a stream; return what was written."""
    waiting: list[Any] = [*messages, END]
    written = exchange.written

    async def read() -> Any:
        assert streams.count == 1
        return waiting.pop(0)

    async def write(reply: bytes) -> None:
        written.append(reply)

    streams = OpenStreams(lambda: cast("Exchange", exchange))
    try:
        await streams.carry(read, write, END)
    finally:
        assert exchange.closed == 1
        assert streams.count == 0
    return written


async def test_replies_are_written_in_order_until_the_peer_ends() -> None:
    assert await carry(Echo(), b"a", b"silence", b"b") == [b"A", b"B"]
    assert await carry(Echo()) == []


async def test_bodies_are_let_go_once_the_reply_is_written() -> None:
    exchange = Echo()
    await carry(exchange, b"a", b"silence", b"b")
    assert exchange.let_go_after == [1, 1, 2]


async def test_an_exchange_that_has_ended_gets_no_more() -> None:
    assert await carry(Echo(), b"bye", b"more") == [b"BYE"]


async def test_a_failure_closes_the_exchange() -> None:
    with pytest.raises(ValueError, match="fail"):
        await carry(Echo(), b"fail")


async def test_a_cancelled_stream_is_closed_and_the_last_one_leaves_it_idle() -> None:
    exchanges: list[Echo] = []

    def create() -> Exchange:
        exchanges.append(Echo())
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
