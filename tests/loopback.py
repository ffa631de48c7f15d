"""Servers on loopback that behave, and misbehave, as prefill engines do."""

import asyncio
import functools
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as a server has read it."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Server:
    """What a server has seen.

    Attributes:
        address: where it listens.
        requests: requests in order of arrival.
        connections: how many connections were opened.
        closed: set once a connection ended.
    """

    address: str = ""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, reader: asyncio.StreamReader) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.split("\r\n")
        fields = (line.split(": ", 1) for line in lines if line)
        headers = {name.lower(): value for name, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(line, headers, body)
        self.requests.append(request)
        return request


Talk = Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listen(
    talk: Talk, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    """A server that talks so on each of its connections, and closes them when it has finished."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        # The end of a connection is what many of these tests are about.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await talk(server, reader, writer)
        server.closed.set()
        writer.close()
        tasks.discard(task)

    listener = await asyncio.start_server(serve, host, 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def answering(*answers: bytes) -> Talk:
    """Gives these answers on each connection, one to a request, then closes it."""

    async def talk(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for answer in answers:
            await server.read(reader)
            writer.write(answer)
            await writer.drain()

    return talk


async def answer_always(
    server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while True:
        await server.read(reader)
        writer.write(OK)


async def hang(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del writer
    await server.read(reader)
    assert await reader.read() == b""


async def reset(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await server.read(reader)
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def trickle(
    server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await server.read(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


_CLAIMS: list[socket.socket] = []
"""What tells the other processes that run tests here which ports and networks are this one's."""


def find_free_ports(count: int) -> int:
    """Return the first of so many free ports in a row, which no other process of tests is given."""
    while True:
        # Below those that the kernel gives to connections.
        first: int = random.randrange(20_000, 32_000)
        claims: list[socket.socket] = []
        with ExitStack() as free, ExitStack() as given_up:
            try:
                for port in range(first, first + count):
                    claims.append(given_up.enter_context(_listen_at("127.255.255.254", port)))
                    free.enter_context(_listen_at("127.0.0.1", port))
            except OSError:
                continue
            given_up.pop_all()
        _CLAIMS.extend(claims)
        return first


@functools.cache
def claim_network() -> str:
    """Return the first two numbers of addresses on loopback that are this process's alone.

    Raises:
        OSError: there is none.
    """
    for number in range(30, 230):
        with suppress(OSError):
            _CLAIMS.append(_listen_at(f"127.{number}.255.254", 20_000))
            return f"127.{number}"
    raise OSError("all networks of loopback are taken")


def _listen_at(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port))
