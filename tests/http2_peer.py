"""The HTTP/2 server of the gRPC port and an independent client, without a socket."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from struct import pack
from typing import Any

import h2.config
import h2.connection
import h2.events

from pdrouter.extproc.http2.connection import Connection
from pdrouter.extproc.http2.frames import PREFACE, Frame, FrameReader, encode_frame
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.rpc_server import Handler, RpcServer
from pdrouter.extproc.http2.stream import END, Stream

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test/Echo"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
SETTINGS = encode_frame(4, 0, 0)
START = PREFACE + SETTINGS


async def echo(stream: Stream) -> None:
    """Send each message back."""
    while (message := await stream.read()) is not END:
        await stream.write(message)


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def frame_message(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\x00" + pack(">L", len(message)) + message


class Pipe(asyncio.Transport):
    """Keeps what the server writes.

    Attributes:
        written: what it has written.
        writes: how often it has written.
        closed: whether it has closed the connection.
        paused: whether it reads no more for now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.closed = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += data
        self.writes += 1

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        """Return what was written since the last time."""
        data = bytes(self.written)
        self.written.clear()
        return data


@dataclass
class Service:
    """A server with one connection, fed with bytes.

    Attributes:
        server: the server.
        connection: its side of the connection.
        pipe: what it has written.
    """

    server: RpcServer
    connection: Connection
    pipe: Pipe

    @classmethod
    def create(cls, limits: Limits | None = None, handler: Handler = echo) -> "Service":
        """Make a server that answers `/test/Echo`."""
        limits = limits or Limits()
        server = RpcServer({"/test/Echo": handler}, limits)
        connection = Connection(server.begin, limits, server.connections, server.turns)
        pipe = Pipe()
        connection.connection_made(pipe)
        return cls(server, connection, pipe)

    def feed(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Let the server receive bytes, in pieces that are cut at some places."""
        places = sorted({cut % (len(data) + 1) for cut in cuts})
        for start, end in zip([0, *places], [*places, len(data)], strict=True):
            self.connection.data_received(data[start:end])

    async def read_frames(self) -> list[Frame]:
        """Return the frames that the server has written since the last time."""
        await settle()
        reader = FrameReader(2**24)
        return list(reader.feed(PREFACE + self.pipe.take()))

    def lose(self) -> None:
        """End the connection."""
        self.connection.connection_lost(None)


@dataclass
class Answer:
    """What a client got for a call."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str | None:
        """The gRPC status."""
        return self.trailers.get("grpc-status", self.headers.get("grpc-status"))


class Client:
    """An HTTP/2 client by the `h2` library, which checks what the server sends.

    Attributes:
        h2: the library's connection.
        answers: what it got, by stream.
        goaway: the code of the last GOAWAY.
    """

    def __init__(self, service: Service, cut: Callable[[], Sequence[int]] = tuple) -> None:
        self.service = service
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.credit = True
        self._cut = cut
        self.h2.initiate_connection()

    def open(self, **changes: str) -> int:
        """Begin a call."""
        number: int = self.h2.get_next_available_stream_id()
        self.answers[number] = Answer()
        self.h2.send_headers(number, list({**dict(HEADERS), **changes}.items()))
        return number

    async def exchange(self) -> None:
        """Carry bytes to and fro until there are none."""
        while True:
            await settle()
            out = self.h2.data_to_send()
            if out:
                self.service.feed(out, self._cut())
                await settle()
            received = self.service.pipe.take()
            for event in self.h2.receive_data(received):
                self._note(event)
            if not out and not received:
                return

    async def send(self, number: int, data: bytes, *, end: bool = False, padding: int = 0) -> None:
        """Send data of a call as the windows allow; the server must make room for all of it."""
        overhead = padding + 1 if padding else 0
        while data:
            room = self.h2.local_flow_control_window(number) - overhead
            part = data[: max(0, min(room, self.h2.max_outbound_frame_size - overhead))]
            assert part, "the server gives no room"
            data = data[len(part) :]
            self.h2.send_data(number, part, pad_length=padding or None)
            await self.exchange()
        if end:
            self.h2.end_stream(number)
        await self.exchange()

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id].headers = _decode(event.headers)
            case h2.events.TrailersReceived():
                self.answers[event.stream_id].trailers = _decode(event.headers)
            case h2.events.DataReceived():
                self.answers[event.stream_id].data += event.data
                if self.credit:
                    size = event.flow_controlled_length
                    self.h2.acknowledge_received_data(size, event.stream_id)
            case h2.events.StreamEnded():
                self.answers[event.stream_id].ended = True
            case h2.events.StreamReset():
                self.answers[event.stream_id].reset = event.error_code
            case h2.events.ConnectionTerminated():
                self.goaway = event.error_code


def _decode(headers: Any) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in headers}
