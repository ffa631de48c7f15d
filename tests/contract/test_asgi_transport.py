"""The ASGI carrier of `benchmarks/transports` under granian: what it can do without trailers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
from waiting import WAIT_S, wait_until

from benchmarks.transports.asgi import GranianServer
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.server import SERVICE, ServerOptions
from pdrouter.serving.call import Call
from pdrouter.serving.drains import Drains
from pdrouter.serving.record import RequestRecord

PATH = f"/{SERVICE}/Process"


class Echo:
    """An exchange that answers all but `wait`, for which it waits."""

    closed = 0
    cut = False

    def __init__(
        self, send: Callable[[bytes], Awaitable[object]], interrupt: Callable[[], object]
    ) -> None:
        self.send = send
        self.ended = False
        self.call = Call(RequestRecord("r"), self.fail, Drains())

    async def fail(self, error: Exception) -> None:
        raise error

    async def receive(self, data: bytes) -> None:
        if data == b"wait":
            await asyncio.Event().wait()
        await self.send(data)

    def close(self) -> None:
        Echo.closed += 1


@asynccontextmanager
async def connect() -> AsyncIterator[Any]:
    """Run a server, and connect gRPC's own client to it."""
    options = ServerOptions("127.0.0.1", 0, 2**20, 30.0, None)
    server = GranianServer(lambda send, stop: cast("Exchange", Echo(send, stop)), options)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel
    finally:
        await server.stop()


async def test_messages_are_answered_and_their_end_has_no_status() -> None:
    async with connect() as channel:
        call = channel.stream_stream(PATH)(timeout=WAIT_S)
        for message in (b"", b"x", bytes(300_000)):
            await call.write(message)
            assert await call.read() == message
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.UNKNOWN


async def test_an_unknown_path_is_told_in_the_headers() -> None:
    async with connect() as channel:
        call = channel.stream_stream("/test/Nothing")(timeout=WAIT_S)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_reset_stops_what_answers() -> None:
    async with connect() as channel:
        for message in (b"x", b"wait"):
            closed = Echo.closed
            call = channel.stream_stream(PATH)(timeout=WAIT_S)
            await call.write(b"begin")
            assert await call.read() == b"begin"
            await call.write(message)
            call.cancel()
            await wait_until(lambda closed=closed: Echo.closed == closed + 1)  # type: ignore[misc]
