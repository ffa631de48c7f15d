"""The HTTP/2 server of the gRPC port with clients that break rules, or ask too much."""

import asyncio
import tracemalloc
from struct import pack

import pytest
from hpack import Encoder
from http2_peer import HEADERS, START, Client, Pipe, Service, frame_message, settle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from waiting import wait_until

from pdrouter.extproc.http2 import frames
from pdrouter.extproc.http2.connection import Connection
from pdrouter.extproc.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    FrameReader,
    encode_frame,
)
from pdrouter.extproc.http2.grpc_messages import MessageReader
from pdrouter.extproc.http2.limits import Limits, Rate
from pdrouter.extproc.http2.stream import Stream
from pdrouter.extproc.http2.windows import SharedWindow

FEW = Rate(20, 0)
STRICT = Limits(
    message_bytes=1_000,
    streams=5,
    header_list_bytes=2_000,
    control=FEW,
    resets=FEW,
    window_updates=FEW,
)


def begin(stream: int = 1, *changes: tuple[str, str], flags: int = 0) -> bytes:
    """Return a frame that begins a call, with a block that needs no table."""
    block = Encoder().encode(list({**dict(HEADERS), **dict(changes)}.items()))
    return encode_frame(frames.HEADERS, END_HEADERS | flags, stream, block)


def number(kind: int, stream: int, value: int) -> bytes:
    return encode_frame(kind, 0, stream, pack(">L", value))


def setting(name: int, value: int) -> bytes:
    return encode_frame(SETTINGS, 0, 0, pack(">HL", name, value))


async def read_goaway(service: Service) -> ErrorCode | None:
    """Return the code with which the server has ended the connection; None if it has not."""
    written = await service.read_frames()
    codes = [
        ErrorCode(int.from_bytes(frame.payload[4:8])) for frame in written if frame.kind == GOAWAY
    ]
    assert len(codes) <= 1
    assert service.pipe.closed == bool(codes)
    return codes[0] if codes else None


async def read_reset(service: Service) -> tuple[int, ErrorCode]:
    """Return the stream that the server has reset, and the code."""
    (reset,) = (frame for frame in await service.read_frames() if frame.kind == RST_STREAM)
    return reset.stream, ErrorCode(int.from_bytes(reset.payload))


CONNECTION_FAULTS = {
    "HTTP/1": (b"GET / HTTP/1.1\r\n\r\n", ErrorCode.PROTOCOL_ERROR),
    "no settings first": (PREFACE + encode_frame(PING, 0, 0, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "a huge frame": (START + encode_frame(DATA, 0, 1, bytes(20_000)), ErrorCode.FRAME_SIZE_ERROR),
    "data without a call": (START + encode_frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "data of the connection": (START + encode_frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "a reset without a call": (START + number(RST_STREAM, 7, 0), ErrorCode.PROTOCOL_ERROR),
    "a short reset": (START + begin() + encode_frame(RST_STREAM, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "an even stream": (START + begin(2), ErrorCode.PROTOCOL_ERROR),
    "a ping of a stream": (START + encode_frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "a short ping": (START + encode_frame(PING, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR),
    "half a setting": (START + encode_frame(SETTINGS, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR),
    "an answer with settings": (
        START + encode_frame(SETTINGS, ACK, 0, bytes(6)),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "an impossible window": (START + setting(4, 2**31), ErrorCode.FLOW_CONTROL_ERROR),
    "a small frame size": (START + setting(5, 1_000), ErrorCode.PROTOCOL_ERROR),
    "half push": (START + setting(2, 2), ErrorCode.PROTOCOL_ERROR),
    "a push": (START + begin() + encode_frame(PUSH_PROMISE, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "a short priority": (START + encode_frame(PRIORITY, 0, 1), ErrorCode.FRAME_SIZE_ERROR),
    "an update by nothing": (START + number(WINDOW_UPDATE, 0, 0), ErrorCode.PROTOCOL_ERROR),
    "an update by too much": (
        START + number(WINDOW_UPDATE, 0, 2**31 - 1),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "a window made too large": (
        START + begin() + number(WINDOW_UPDATE, 1, 2**31 - 70_000) + setting(4, 200_000),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "a continuation of nothing": (
        START + encode_frame(CONTINUATION, 0, 1),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a frame inside a header block": (
        START + encode_frame(frames.HEADERS, 0, 1) + encode_frame(PING, 0, 0, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a continuation of another stream": (
        START + encode_frame(frames.HEADERS, 0, 1) + encode_frame(CONTINUATION, END_HEADERS, 3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "nothing but padding": (
        START + begin() + encode_frame(DATA, PADDED, 1, b"\x05abc"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "no padding at all": (
        START + begin() + encode_frame(DATA, PADDED, 1),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "headers of no table": (
        START + encode_frame(frames.HEADERS, END_HEADERS, 1, b"\xff\xff\xff\x7f"),
        ErrorCode.COMPRESSION_ERROR,
    ),
    "headers after a reset": (
        START + begin() + number(RST_STREAM, 1, 8) + begin(),
        ErrorCode.STREAM_CLOSED,
    ),
    "a priority below itself": (
        START + encode_frame(PRIORITY, 0, 3, b"\0\0\0\x03\x10"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "headers below themselves": (
        START + encode_frame(frames.HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0\0\0\x01\x10"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "headers beyond the limit": (
        START + begin(1, ("x-large", "a" * 2_000)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize(("sent", "code"), CONNECTION_FAULTS.values(), ids=CONNECTION_FAULTS)
async def test_a_fault_of_the_connection_ends_it(sent: bytes, code: ErrorCode) -> None:
    service = Service.create(STRICT)
    service.feed(sent)
    assert await read_goaway(service) is code
    assert not service.connection.streams.open
    service.feed(b"whatever comes then")
    assert await service.read_frames() == []


STREAM_FAULTS = {
    "data after the end": (
        begin(flags=END_STREAM) + encode_frame(DATA, 0, 1, b"x"),
        ErrorCode.STREAM_CLOSED,
    ),
    "an update by nothing": (begin() + number(WINDOW_UPDATE, 1, 0), ErrorCode.PROTOCOL_ERROR),
    "an update by too much": (
        begin() + number(WINDOW_UPDATE, 1, 2**31 - 1),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "trailers without an end": (begin() + begin(), ErrorCode.PROTOCOL_ERROR),
    "no path": (
        encode_frame(frames.HEADERS, END_HEADERS, 1, Encoder().encode(HEADERS[:2])),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a path twice": (
        encode_frame(frames.HEADERS, END_HEADERS, 1, Encoder().encode([*HEADERS[:3], HEADERS[2]])),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "an empty path": (
        encode_frame(
            frames.HEADERS,
            END_HEADERS,
            1,
            Encoder().encode([*HEADERS[:2], (":path", ""), *HEADERS[3:]]),
        ),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "less than the content-length": (
        begin(1, ("content-length", "3")) + encode_frame(DATA, END_STREAM, 1, b"ab"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "more than the content-length": (
        begin(1, ("content-length", "3")) + encode_frame(DATA, 0, 1, b"abcd"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "nothing of the content-length": (
        begin(1, ("content-length", "3"), flags=END_STREAM),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a content-length that is none": (
        begin(1, ("content-length", "+3")),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a header of connections": (begin(1, ("connection", "close")), ErrorCode.PROTOCOL_ERROR),
    "te": (begin(1, ("te", "gzip")), ErrorCode.PROTOCOL_ERROR),
    "a name in capitals": (
        encode_frame(
            frames.HEADERS, END_HEADERS, 1, Encoder().encode([*HEADERS, ("X-Large", "1")])
        ),
        ErrorCode.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize(("sent", "code"), STREAM_FAULTS.values(), ids=STREAM_FAULTS)
async def test_a_fault_of_a_stream_ends_only_that_stream(sent: bytes, code: ErrorCode) -> None:
    service = Service.create(STRICT)
    service.feed(START + sent)
    assert await read_reset(service) == (1, code)
    service.feed(begin(3, flags=END_STREAM))
    assert any(frame.stream == 3 for frame in await service.read_frames())


async def test_what_was_sent_before_a_stream_was_known_to_be_over_is_passed_over() -> None:
    async def end_at_once(stream: Stream) -> None:
        del stream

    service = Service.create(STRICT, end_at_once)
    service.feed(START + begin())
    assert await read_reset(service) == (1, ErrorCode.NO_ERROR)
    service.feed(encode_frame(DATA, 0, 1, b"x") + begin(1, flags=END_STREAM))
    assert not [frame for frame in await service.read_frames() if frame.kind == RST_STREAM]
    # It has ended there as well: nothing may follow.
    service.feed(encode_frame(DATA, 0, 1, b"x"))
    assert await read_reset(service) == (1, ErrorCode.STREAM_CLOSED)


async def test_more_than_a_window_is_refused() -> None:
    async def never(stream: Stream) -> None:
        del stream
        await asyncio.Event().wait()

    limits = Limits(stream_window=1_000, connection_window=70_000)
    service = Service.create(limits, never)
    service.feed(START + begin() + encode_frame(DATA, 0, 1, bytes(1_001)))
    assert await read_reset(service) == (1, ErrorCode.FLOW_CONTROL_ERROR)

    service = Service.create(Limits(connection_window=70_000), never)
    service.feed(START + begin() + encode_frame(DATA, 0, 1, bytes(16_000)))
    # What is not on a stream any more counts as well, and is given back at once.
    service.feed(number(RST_STREAM, 1, 8) + encode_frame(DATA, 0, 1, bytes(16_000)) * 20)
    assert await read_goaway(service) is None


FLOODS = {
    "pings": [encode_frame(PING, 0, 0, bytes(8))],
    "answers to no ping": [encode_frame(PING, ACK, 0, bytes(8))],
    "settings": [setting(3, 100)],
    "answers to no settings": [encode_frame(SETTINGS, ACK, 0)],
    "priorities": [encode_frame(PRIORITY, 0, 1, bytes(5))],
    "empty data": [encode_frame(DATA, 0, 1)],
    "data of padding": [encode_frame(DATA, PADDED, 1, b"\x03abc")],
    "unknown frames": [encode_frame(0x77, 0, 0, b"x")],
    "goodbyes": [encode_frame(GOAWAY, 0, 0, bytes(8))],
    "window updates": [number(WINDOW_UPDATE, 0, 1), number(WINDOW_UPDATE, 1, 1)],
    "data on ended streams": [number(RST_STREAM, 1, 8) + encode_frame(DATA, 0, 1, b"x")],
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_the_connection_and_a_few_do_not(flood: list[bytes]) -> None:
    service = Service.create(STRICT)
    service.feed(START + begin())
    for _ in range(10):
        service.feed(b"".join(flood))
    assert await read_goaway(service) is None
    for _ in range(11):
        service.feed(b"".join(flood))
    assert await read_goaway(service) is ErrorCode.ENHANCE_YOUR_CALM


async def test_streams_that_are_reset_unanswered_again_and_again_end_the_connection() -> None:
    service = Service.create(STRICT)
    service.feed(START)
    opened = 0
    while not service.pipe.closed:
        opened += 1
        assert opened <= FEW.burst + 1
        service.feed(begin(2 * opened - 1) + number(RST_STREAM, 2 * opened - 1, 8))
    assert opened == FEW.burst + 1
    assert await read_goaway(service) is ErrorCode.ENHANCE_YOUR_CALM


async def test_streams_that_were_answered_may_be_reset_for_ever() -> None:
    """Envoy resets each ext_proc stream when its request has ended."""
    client = Client(Service.create(STRICT))
    for _ in range(200):
        stream = client.open()
        await client.send(stream, frame_message(b"x"))
        assert client.answers[stream].data
        client.h2.reset_stream(stream)
        await client.exchange()
    assert client.goaway is None


async def test_a_header_block_without_an_end_ends_the_connection() -> None:
    service = Service.create(STRICT)
    service.feed(START + encode_frame(frames.HEADERS, 0, 1))
    sent = 0
    while not service.pipe.closed:
        service.feed(encode_frame(CONTINUATION, 0, 1))
        sent += 1
        assert sent < 100
    assert await read_goaway(service) is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_small_block_that_grows_large_ends_the_connection() -> None:
    """Each byte of the second block stands for a header of 500 bytes."""
    service = Service.create(STRICT)
    encoder = Encoder()
    first = encoder.encode([*HEADERS, ("x-bomb", "a" * 500)])
    service.feed(START + encode_frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, first))
    assert await read_goaway(service) is None
    second = encoder.encode([*HEADERS, *[("x-bomb", "a" * 500)] * 10])
    assert len(second) < 50
    service.feed(encode_frame(frames.HEADERS, END_HEADERS, 3, second))
    assert await read_goaway(service) is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_stream_too_many_is_refused() -> None:
    service = Service.create(STRICT)
    service.feed(START + b"".join(begin(2 * index + 1) for index in range(6)))
    assert await read_reset(service) == (11, ErrorCode.REFUSED_STREAM)
    assert len(service.connection.streams.open) == STRICT.streams


async def test_answers_do_not_pile_up_for_a_client_that_reads_nothing() -> None:
    service = Service.create(Limits(unread_answers=5))
    service.feed(START + begin() + encode_frame(DATA, 0, 1, frame_message(b"1")))
    await service.read_frames()
    service.connection.pause_writing()
    service.feed(encode_frame(DATA, 0, 1, frame_message(b"2")))
    assert await service.read_frames() == []
    service.feed(encode_frame(PING, 0, 0, bytes(8)) * 5)
    assert not service.pipe.closed
    service.connection.resume_writing()
    assert [frame.kind for frame in await service.read_frames()] == [PING] * 5 + [DATA]
    service.connection.pause_writing()
    service.feed(encode_frame(PING, 0, 0, bytes(8)) * 6)
    assert service.pipe.closed


async def test_who_speaks_no_grpc_and_has_left_is_told_nothing() -> None:
    service = Service.create()
    service.feed(START + begin(1, ("content-type", "text/html"), flags=0))
    await service.read_frames()
    service.feed(encode_frame(frames.RST_STREAM, 0, 1, bytes(4)))
    assert await service.read_frames() == []


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
@example(b"\x40")
@example(b"\x00\x05ab")
@example(b"\x3f\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_header_block_is_understood_or_refused(block: bytes) -> None:
    async def check() -> None:
        service = Service.create()
        service.feed(START + encode_frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, block))
        assert await service.read_frames()

    asyncio.run(check())


any_frame = st.builds(
    encode_frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.sampled_from((0, 1, 1, 3, 2, 5)),
    st.binary(max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(any_frame, max_size=12))
def test_no_frames_harm_the_server(sent: list[bytes]) -> None:
    async def check() -> None:
        service = Service.create()
        service.feed(START + begin() + b"".join(sent))
        await settle()
        service.lose()
        await settle()
        assert not service.connection.streams.open

    asyncio.run(check())


async def test_a_silent_client_is_probed_and_then_given_up() -> None:
    service = Service.create(Limits(keepalive_s=0.01))
    service.feed(START)
    await wait_until(lambda: service.pipe.closed)
    assert [frame.kind for frame in await service.read_frames()].count(PING) == 1


async def test_a_client_is_probed_only_once_there_is_a_connection() -> None:
    service = Service.create()
    connection = Connection(
        service.server.begin, Limits(), service.server.connections, service.server.turns
    )
    connection._ask()  # The handshake of TLS takes long.
    await settle()
    pipe = Pipe()
    connection.connection_made(pipe)
    await settle()
    frames = list(FrameReader(2**24).feed(PREFACE + pipe.take()))
    assert [frame.kind for frame in frames] == [SETTINGS, WINDOW_UPDATE]
    connection.connection_lost(None)


async def test_a_client_that_answers_probes_is_kept() -> None:
    service = Service.create()
    client = Client(service)
    for _ in range(5):
        await client.exchange()
        service.connection._keepalive._check()
    assert not service.pipe.closed
    service.lose()


async def test_a_client_that_reads_no_ends_of_its_calls_is_given_up() -> None:
    limits = Limits(unread_bytes=10_000)
    service = Service.create(limits)
    service.feed(START)
    service.connection.pause_writing()
    for number in range(1, 2_000, 2):
        if service.pipe.closed:
            break
        service.feed(begin(number, ("x", "y"), flags=END_STREAM))
        await settle()
    assert service.pipe.closed
    assert len(service.pipe.written) < 20_000


async def test_streams_that_the_server_is_made_to_reset_end_the_connection() -> None:
    service = Service.create(STRICT)
    service.feed(START)
    for stream in range(1, 4 * STRICT.resets.burst, 2):
        service.feed(begin(stream, ("content-length", "1")))
        service.feed(encode_frame(DATA, END_STREAM, stream, b"ab"))
    assert await read_goaway(service) is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_turn_that_nobody_waits_for_any_more_is_not_kept() -> None:
    window = SharedWindow(0)
    waiting = [asyncio.create_task(window.wait_for_turn()) for _ in range(3)]
    await settle()
    for task in waiting[:2]:
        task.cancel()
    await settle()
    assert len(window._turns) == 1
    window.grow(1)
    window.pass_turn()
    await waiting[2]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_message_in_tiny_frames_takes_about_as_much_as_it_has(size: int) -> None:
    message = bytes(range(256)) * 800
    framed, reader = frame_message(message), MessageReader(2**20)
    tracemalloc.start()
    try:
        for start in range(0, len(framed), size):
            reader.feed(framed[start : start + size])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * len(message)
    assert reader.take() == message
    assert reader.empty
