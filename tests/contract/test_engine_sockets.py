"""Connections to engines in plain text, against the kernel's sockets on loopback."""

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from waiting import WAIT_S, wait_until

from pdrouter.engine_http.sockets import AT_ONCE, Sockets
from pdrouter.turns import Turns

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Client(asyncio.Protocol):
    """Notes what happens to its connection."""

    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.reads: list[bytes] = []
        self.lost: list[Exception | None] = []
        self.waits: list[bool] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)

    def pause_writing(self) -> None:
        self.waits.append(True)

    def resume_writing(self) -> None:
        self.waits.append(False)

    def write(self, data: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(data)

    def abort(self) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.abort()


@dataclass
class Engine:
    """Accepts what the sockets connect to, and reads nothing by itself."""

    sockets: Sockets
    turns: Turns
    listener: socket.socket
    stack: ExitStack
    clients: list[Client] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.listener.getsockname()[:2]
        return host, port

    async def connect(self, kind: type[Client] = Client) -> tuple[Client, socket.socket]:
        """Return both ends of a new connection."""
        client = kind()
        await self.sockets.connect(*self.address, client)
        accepted = self.stack.enter_context(self.listener.accept()[0])
        self.clients.append(client)
        return client, accepted

    async def count_turns(self, done: Callable[[], bool]) -> list[int]:
        """Return how many reads each turn of the loop makes until it is done."""
        by_turn = []
        for _ in range(1000):
            before = sum(len(client.reads) for client in self.clients)
            await asyncio.sleep(0)
            by_turn.append(sum(len(client.reads) for client in self.clients) - before)
            if done():
                return by_turn
        raise AssertionError("it is not done after many turns")


@asynccontextmanager
async def listen(host: str = "127.0.0.1") -> AsyncIterator[Engine]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    turns = Turns()
    sockets = Sockets(asyncio.get_running_loop(), turns)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, 0), family=family))
        stack.callback(sockets.close)
        yield Engine(sockets, turns, listener, stack)


async def test_answers_that_come_at_once_are_read_in_turns() -> None:
    async with listen() as engine:
        ends = [await engine.connect() for _ in range(3 * AT_ONCE)]
        for number, (_, accepted) in enumerate(ends):
            accepted.send(str(number).encode())
        by_turn = await engine.count_turns(lambda: all(client.reads for client, _ in ends))
        assert max(by_turn) == AT_ONCE
        assert [client.reads for client, _ in ends] == [
            [str(number).encode()] for number in range(len(ends))
        ]


async def test_connections_that_are_established_at_once_are_taken_in_turns() -> None:
    async with listen() as engine:
        for _ in range(AT_ONCE):  # Others have the turn.
            engine.turns.put_off(lambda: None)
        connecting = [asyncio.create_task(engine.connect()) for _ in range(2 * AT_ONCE)]
        made = []
        while not all(task.done() for task in connecting):
            before = len(engine.clients)
            await asyncio.sleep(0)
            made.append(len(engine.clients) - before)
        await asyncio.gather(*connecting)
    assert sum(made) == 2 * AT_ONCE
    assert max(made) <= 16


async def test_a_turn_reads_those_first_that_have_waited_longest() -> None:
    async with listen() as engine:
        loud = [await engine.connect() for _ in range(AT_ONCE)]
        quiet = [await engine.connect() for _ in range(8)]
        for _, accepted in loud:
            accepted.setblocking(False)
            accepted.send(bytes(2**20))
        for _, accepted in quiet:
            accepted.send(b"x")
        await engine.count_turns(lambda: all(client.reads for client, _ in quiet))
        assert max(len(client.reads) for client, _ in loud) <= 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_a_peer_does_not_take_at_once_follows_in_order(host: str) -> None:
    sent = b"".join(bytes([number]) * 65_536 for number in range(200))
    async with listen(host) as engine:
        client, accepted = await engine.connect()
        client.write(sent[:-10])
        assert client.waits == [True]
        client.write(sent[-10:])
        received = await asyncio.to_thread(_read, accepted, len(sent))
        assert received == sent
        await wait_until(lambda: client.waits == [True, False])
        client.write(b"more")
        assert await asyncio.to_thread(accepted.recv, 100) == b"more"
        assert client.waits == [True, False]


def _read(connected: socket.socket, size: int) -> bytes:
    connected.settimeout(10.0)
    parts = bytearray()
    while len(parts) < size:
        parts += connected.recv(2**20)
    return bytes(parts)


async def test_all_that_a_peer_has_sent_is_read_before_its_end() -> None:
    async with listen() as engine:
        client, accepted = await engine.connect()
        accepted.sendall(bytes(150_000))
        accepted.close()
        await wait_until(lambda: bool(client.lost))
        assert client.lost == [None]
        assert sum(map(len, client.reads)) == 150_000
        client.write(b"nobody reads this")
        client.abort()
        await asyncio.sleep(0)
        assert client.lost == [None]


async def test_a_reset_is_told_as_an_error() -> None:
    async with listen() as engine:
        client, accepted = await engine.connect()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        accepted.close()
        await wait_until(lambda: bool(client.lost))
        assert [type(error) for error in client.lost] == [ConnectionResetError]


async def test_a_write_to_a_peer_that_is_gone_ends_the_connection() -> None:
    async with listen() as engine:
        client, accepted = await engine.connect()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        accepted.close()
        client.write(b"x")
        assert client.lost == []  # Never while the protocol writes.
        await wait_until(lambda: bool(client.lost))
        assert len(client.lost) == 1
        assert isinstance(client.lost[0], ConnectionError)


async def test_what_a_peer_has_said_is_read_when_it_takes_no_more() -> None:
    """An engine, or a proxy before it, that finds a body too large says so and leaves."""
    answer = b"HTTP/1.1 413 Content Too Large" + bytes(20_000)
    async with listen() as engine:
        client, accepted = await engine.connect()
        client.write(bytes(2**24))
        accepted.sendall(answer)
        # What it has not read makes the kernel reset the connection.
        accepted.close()
        client.write(b"more")
        await wait_until(lambda: bool(client.lost))
        assert b"".join(client.reads) == answer
        assert [type(error) for error in client.lost] in (
            [ConnectionResetError],
            [BrokenPipeError],
        )


async def test_a_write_that_fails_does_not_hide_what_was_said_before() -> None:
    async with listen() as engine:
        client, accepted = await engine.connect()
        accepted.sendall(b"answer")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        accepted.close()
        client.write(b"x")
        await wait_until(lambda: bool(client.lost))
        assert client.reads == [b"answer"]
        assert len(client.lost) == 1
        assert isinstance(client.lost[0], ConnectionError)


async def test_what_fails_with_one_connection_ends_it_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = KeyError("a bug")

    class Broken(Client):
        def data_received(self, data: bytes) -> None:
            raise error

    async with listen() as engine:
        broken, accepted = await engine.connect(Broken)
        other, its_end = await engine.connect()
        accepted.send(b"x")
        its_end.send(b"y")
        await wait_until(lambda: bool(broken.lost and other.reads))
        assert broken.lost == [error]
        assert other.lost == []
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_connection_that_cannot_be_attended_to_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        closed = False

        def register(self, connected: socket.socket, events: int) -> None:
            raise OSError(errno.ENOSPC, "too many are watched")

    async with listen() as engine:
        epoll = engine.sockets._ready
        monkeypatch.setattr(engine.sockets, "_ready", Full())
        with pytest.raises(OSError, match="too many are watched"):
            await engine.sockets.connect(*engine.address, Client())
        accepted = engine.stack.enter_context(engine.listener.accept()[0])
        accepted.settimeout(10.0)
        assert await asyncio.to_thread(accepted.recv, 1) == b""
        monkeypatch.setattr(engine.sockets, "_ready", epoll)


async def test_nothing_is_read_from_a_connection_that_another_has_closed() -> None:
    class Closing(Client):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for each in engine.clients:
                each.abort()

    async with listen() as engine:
        first, accepted = await engine.connect(Closing)
        other, its_end = await engine.connect()
        accepted.send(b"x")
        its_end.send(b"y")
        await wait_until(lambda: bool(first.reads and other.lost))
        assert other.reads == []
        assert other.lost == [None]


async def test_closing_ends_what_is_being_established() -> None:
    async with listen() as engine:
        for turns in (0, 1, 2):
            sockets = Sockets(asyncio.get_running_loop(), Turns())
            connecting = asyncio.create_task(sockets.connect(*engine.address, Client()))
            for _ in range(turns):
                await asyncio.sleep(0)
            sockets.close()
            with pytest.raises(ConnectionAbortedError, match="the client is closed"):
                await connecting


async def test_what_is_given_up_while_it_is_established_is_closed() -> None:
    async with listen() as engine:
        connecting = asyncio.create_task(engine.sockets.connect(*engine.address, Client()))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        accepted = engine.stack.enter_context(engine.listener.accept()[0])
        accepted.settimeout(WAIT_S)
        assert accepted.recv(1) == b""
        assert not engine.sockets._open
        # Its descriptor's number is the next one's.
        client, accepted = await engine.connect()
        accepted.send(b"x")
        await wait_until(lambda: client.reads == [b"x"])


async def test_a_port_where_nobody_listens_refuses() -> None:
    async with listen() as engine:
        address = engine.address
        engine.listener.close()
        with pytest.raises(ConnectionRefusedError):
            await engine.sockets.connect(*address, Client())
        assert not engine.sockets._open


async def test_closing_ends_all_and_lets_nobody_connect() -> None:
    async with listen() as engine:
        clients = [(await engine.connect())[0] for _ in range(3)]
        engine.sockets.close()
        await asyncio.sleep(0)
        assert [client.lost for client in clients] == [[None]] * 3
        with pytest.raises(OSError, match="the client is closed"):
            await engine.sockets.connect(*engine.address, Client())
