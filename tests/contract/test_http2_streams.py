"""The HTTP/2 server of the gRPC port with well-behaved clients: messages in and out,
whatever the frames and windows they travel in."""

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from http2_peer import HEADERS, START, Client, Service, echo, frame_message, settle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import wait_until

from pdrouter import turns
from pdrouter.extproc.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    PADDED,
    PING,
    WITH_PRIORITY,
    encode_frame,
)
from pdrouter.extproc.http2.frames import HEADERS as HEADERS_FRAME
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.stream import Stream

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sizes = st.lists(st.integers(0, 200) | st.integers(16_000, 40_000), max_size=6)
SMALL = Limits(stream_window=65_535, connection_window=70_000)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@quick
@given(sizes, st.lists(st.integers(0, 2**20), max_size=20), st.integers(0, 255))
def test_messages_come_back_however_their_bytes_are_cut(
    sizes: list[int], cuts: list[int], padding: int
) -> None:
    async def check() -> None:
        sent = [bytes([index]) * size for index, size in enumerate(sizes)]
        client = Client(Service.create(SMALL), lambda: cuts)
        number = client.open()
        await client.send(number, b"".join(map(frame_message, sent)), end=True, padding=padding)
        answer = client.answers[number]
        assert answer.data == b"".join(map(frame_message, sent))
        assert answer.status == "0"
        assert answer.ended
        assert answer.reset is None

    run(check())


@quick
@given(st.binary(max_size=3_000), st.lists(st.integers(0, 4_000), max_size=10))
def test_a_message_may_be_split_over_data_frames_at_any_point(
    message: bytes, cuts: list[int]
) -> None:
    async def check() -> None:
        service = Service.create()
        data = frame_message(message)
        places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        block = Encoder().encode(HEADERS)
        service.feed(START + encode_frame(HEADERS_FRAME, END_HEADERS, 1, block))
        for start, end in pairwise(places):
            service.feed(encode_frame(DATA, 0, 1, data[start:end]))
        service.feed(encode_frame(DATA, END_STREAM, 1))
        echoed = [frame.payload for frame in await service.read_frames() if frame.kind == DATA]
        assert b"".join(echoed) == data

    run(check())


@quick
@given(
    st.lists(st.lists(st.integers(0, 200), max_size=8), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 100),
)
def test_header_blocks_may_be_split_at_any_point_and_refer_to_earlier_ones(
    calls: list[list[int]], priority: bool, padding: int
) -> None:
    async def check() -> None:
        service, encoder = Service.create(), Encoder()
        service.feed(START)
        for number, cuts in enumerate(calls):
            block = encoder.encode([*HEADERS, ("x-number", str(number // 2))])
            places = [0, *sorted(min(cut, len(block)) for cut in cuts), len(block)]
            parts = [block[a:b] for a, b in pairwise(places)]
            flags = END_STREAM | PADDED | (WITH_PRIORITY if priority else 0)
            first = bytes([padding]) + (b"\0\0\0\0\x10" if priority else b"") + parts[0]
            stream = 2 * number + 1
            last = END_HEADERS if len(parts) == 1 else 0
            payload = first + bytes(padding)
            service.feed(encode_frame(HEADERS_FRAME, flags | last, stream, payload))
            for index, part in enumerate(parts[1:], 2):
                last = END_HEADERS if index == len(parts) else 0
                service.feed(encode_frame(CONTINUATION, last, stream, part))
        ended = [
            frame.stream for frame in await service.read_frames() if frame.kind == HEADERS_FRAME
        ]
        assert ended == [2 * number + 1 for number in range(len(calls))]

    run(check())


async def test_the_same_block_means_something_else_after_a_change_of_the_table() -> None:
    service, encoder = Service.create(Limits(closing_s=0.01)), Encoder()
    first = encoder.encode([(":path", "/test/Echo"), (":method", "POST"), (":scheme", "http")])
    rest = b"\x83\x86\xbe" + Encoder().encode([NeverIndexedHeaderTuple(*HEADERS[4])])
    other = encoder.encode([(":path", "/test/Other"), (":method", "POST"), (":scheme", "http")])
    service.feed(START)
    for number, block in zip((1, 3, 5, 7, 9), (first, rest, rest, other, rest), strict=True):
        service.feed(encode_frame(HEADERS_FRAME, END_HEADERS, number, block))
    await wait_until(lambda: set(service.connection.streams.open) == {3, 5})
    answers = {
        frame.stream: frame.payload for frame in await service.read_frames() if frame.kind == 1
    }
    assert answers.keys() == {1, 7, 9}
    assert HeaderTuple("grpc-status", "12") in list(Decoder().decode(answers[9]))


@quick
@given(
    st.binary(min_size=1, max_size=5_000),
    st.integers(0, 2_000),
    st.lists(st.integers(50, 2_000), min_size=1, max_size=8),
    st.lists(st.integers(0, 3_000), max_size=3),
)
def test_nothing_is_sent_beyond_the_windows(
    message: bytes, window: int, increments: list[int], resizes: list[int]
) -> None:
    """The client's library ends the connection if the server sends too much."""

    async def check() -> None:
        client = Client(Service.create())
        client.credit = False
        client.h2.update_settings({4: window})
        number = client.open()
        await client.send(number, frame_message(message))
        answer, granted = client.answers[number], window
        assert len(answer.data) == min(granted, len(message) + 5)
        for size in resizes:
            client.h2.update_settings({4: size})
            await client.exchange()
            assert len(answer.data) >= min(size, len(message) + 5)
        for increment in increments * 110:
            if len(answer.data) == len(message) + 5:
                break
            client.h2.increment_flow_control_window(increment, number)
            await client.exchange()
        else:
            pytest.fail("the message never came")
        assert answer.data == frame_message(message)

    run(check())


async def test_the_connections_window_is_shared_in_order_of_arrival() -> None:
    client = Client(Service.create())
    client.credit = False
    client.h2.update_settings({4: 2**20})
    numbers = [client.open() for _ in range(5)]
    message = frame_message(bytes(40_000))
    for number in numbers:
        await client.send(number, message)
    sizes = [len(client.answers[number].data) for number in numbers]
    assert sizes == [40_005, 65_535 - 40_005, 0, 0, 0]
    for _ in range(5):
        client.h2.increment_flow_control_window(40_000)
        await client.exchange()
    assert {len(client.answers[number].data) for number in numbers} == {40_005}


async def test_room_for_all_that_wait_is_used_by_all() -> None:
    client = Client(Service.create())
    client.credit = False
    client.h2.update_settings({4: 100_000})
    numbers = [client.open() for _ in range(4)]
    sizes = (65_530, 150_000, 1_000, 1_000)  # The second one lacks room of its own as well.
    for number, size in zip(numbers, sizes, strict=True):
        await client.send(number, frame_message(bytes(size)))
    client.h2.increment_flow_control_window(200_000)
    await client.exchange()
    got = [len(client.answers[number].data) for number in numbers]
    assert got == [65_535, 100_000, 1_005, 1_005]


async def test_a_large_answer_waits_for_a_client_that_reads_slowly() -> None:
    client = Client(Service.create())
    client.h2.update_settings({4: 2**24, 5: 2**24 - 1})
    client.h2.increment_flow_control_window(2**24)
    service, written = client.service, client.service.pipe.write

    def write(data: bytes) -> None:
        written(data)
        if len(service.pipe.written) > 2**20:
            service.connection.pause_writing()

    number = client.open()
    await client.exchange()
    service.pipe.write = write  # type: ignore[method-assign]
    message, most = bytes(8 * 2**20), 0
    sending = asyncio.ensure_future(client.send(number, frame_message(message), end=True))
    while not (sending.done() and client.answers[number].ended):
        most = max(most, len(service.pipe.written))
        assert most < 2**21
        assert not service.pipe.closed
        await settle()
        service.connection.resume_writing()
        if sending.done():
            await client.exchange()
    assert client.answers[number].data == frame_message(message)


async def test_what_many_streams_answer_in_one_turn_is_written_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "BUDGET_S", 60.0)  # However busy the machine is.
    client = Client(Service.create())
    numbers = [client.open() for _ in range(20)]
    await client.exchange()
    pipe = client.service.pipe
    before = pipe.writes
    for number in numbers:
        client.h2.send_data(number, frame_message(b"x" * 100), end_stream=True)
    await client.exchange()
    assert [client.answers[number].status for number in numbers] == ["0"] * 20
    # At most: what was given back of windows, messages, and ends of calls.
    assert pipe.writes - before <= 3


async def test_a_stream_that_ends_inside_a_message_has_failed() -> None:
    client = Client(Service.create())
    number = client.open()
    await client.send(number, frame_message(b"whole") + frame_message(b"half")[:-1], end=True)
    assert client.answers[number].data == frame_message(b"whole")
    assert client.answers[number].status == "13"


async def test_one_stream_without_a_window_does_not_hold_up_the_others() -> None:
    client = Client(Service.create())
    client.credit = False
    client.h2.update_settings({4: 10})
    slow, quick_one = client.open(), client.open()
    await client.send(slow, frame_message(bytes(100)))
    client.h2.increment_flow_control_window(1_000, quick_one)
    await client.send(quick_one, frame_message(bytes(100)), end=True)
    assert client.answers[quick_one].status == "0"
    assert len(client.answers[slow].data) == 10


async def test_frames_are_as_large_as_the_client_allows() -> None:
    service = Service.create()
    client = Client(service)
    client.h2.update_settings({5: 60_000})
    number = client.open()
    await client.exchange()
    await client.send(number, frame_message(bytes(50_000)))
    assert len(client.answers[number].data) == 50_005
    assert client.h2.max_inbound_frame_size == 60_000


async def test_a_client_may_do_without_the_dynamic_table() -> None:
    """Its library ends the connection if our encoder does not say that it follows."""
    client = Client(Service.create())
    client.h2.update_settings({1: 0})
    await client.exchange()
    for _ in range(3):
        number = client.open()
        await client.send(number, frame_message(b"x"), end=True)
        assert client.answers[number].status == "0"


async def test_a_client_can_send_no_more_than_is_read() -> None:
    may_read = asyncio.Event()

    async def read_late(stream: Stream) -> None:
        await may_read.wait()
        await echo(stream)

    client = Client(Service.create(SMALL, read_late))
    client.h2.update_settings({4: 2**20})
    number = client.open()
    await client.exchange()
    client.h2.increment_flow_control_window(2**20)
    sending = b"".join(frame_message(bytes(995)) for _ in range(200))
    sent = 0
    while room := min(client.h2.local_flow_control_window(number), 10_000):
        client.h2.send_data(number, sending[sent : sent + room])
        sent += room
        await client.exchange()
    assert sent == SMALL.stream_window
    may_read.set()
    await client.exchange()
    await client.send(number, sending[sent:], end=True)
    assert client.answers[number].data == sending


async def test_trailers_of_a_client_end_its_stream() -> None:
    client = Client(Service.create())
    number = client.open()
    await client.send(number, frame_message(b"x"))
    client.h2.send_headers(number, [("x-checksum", "1")], end_stream=True)
    await client.exchange()
    assert client.answers[number].status == "0"


async def test_what_the_server_has_ended_is_reset_without_harm() -> None:
    async def answer_once(stream: Stream) -> None:
        await stream.write(await stream.read() or b"")

    client = Client(Service.create(handler=answer_once))
    for _ in range(3):
        number = client.open()
        client.h2.send_data(number, frame_message(b"first"))
        client.h2.send_data(number, frame_message(b"too late"))
        await client.exchange()
        answer = client.answers[number]
        assert answer.data == frame_message(b"first")
        assert answer.status == "0"
        assert answer.reset == 0


async def test_a_reset_cancels_what_answers_and_wakes_what_only_waits() -> None:
    seen: list[object] = []

    async def answer(stream: Stream) -> None:
        try:
            if await stream.read() == b"work":
                await asyncio.Event().wait()
            seen.append(await stream.read())
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    client = Client(Service.create(handler=answer))
    for message in (b"work", b"wait"):
        number = client.open()
        await client.send(number, frame_message(message))
        client.h2.reset_stream(number)
        await client.exchange()
    assert seen == ["cancelled", None]


async def test_a_lost_connection_ends_its_calls() -> None:
    service = Service.create()
    client = Client(service)
    for _ in range(3):
        await client.send(client.open(), frame_message(b"x"))
    assert len(service.connection.streams.open) == 3
    service.lose()
    await settle()
    assert not service.connection.streams.open
    assert not service.server.connections


async def test_nothing_is_written_to_a_connection_that_is_lost() -> None:
    """Not even what was gathered before: uvloop's transports raise an error then."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    service = Service.create()
    service.feed(START + encode_frame(PING, 0, 0, b"12345678"))
    service.lose()
    service.pipe.closed = True
    service.connection.outbox.send_parts((b"one", b"more"))
    await settle()
    assert not errors


async def test_what_is_in_flight_ends_before_the_connection_does() -> None:
    """By hand: the client's library takes the first GOAWAY for the end."""
    block = Encoder().encode(HEADERS)
    opening = [encode_frame(HEADERS_FRAME, END_HEADERS, number, block) for number in (1, 3, 5)]
    service = Service.create()
    service.feed(START + opening[0])
    await service.read_frames()
    service.server.drain()
    announced, ping = await service.read_frames()
    assert (announced.kind, int.from_bytes(announced.payload[:4])) == (GOAWAY, 2**31 - 1)
    # The second call was on its way when the client heard of the end, the third ignores it.
    service.feed(opening[1] + encode_frame(PING, ACK, 0, ping.payload) + opening[2])
    (final,) = await service.read_frames()
    assert set(service.connection.streams.open) == {1, 3}
    assert (final.kind, int.from_bytes(final.payload[:4])) == (GOAWAY, 3)
    service.feed(encode_frame(DATA, END_STREAM, 5, frame_message(b"ignored")))
    for number in (3, 1):
        assert not service.pipe.closed
        service.feed(encode_frame(DATA, END_STREAM, number, frame_message(b"served")))
        answer = [frame for frame in await service.read_frames() if frame.stream == number]
        assert [frame.kind for frame in answer] == [HEADERS_FRAME, DATA, HEADERS_FRAME]
    assert service.pipe.closed


async def test_a_client_that_does_not_answer_the_end_is_not_waited_for() -> None:
    service = Service.create(Limits(closing_s=0.01))
    service.feed(START)
    service.server.drain()
    assert not service.pipe.closed
    await wait_until(lambda: service.pipe.closed)


@pytest.mark.parametrize("room", [True, False])
async def test_a_large_message_comes_only_once_there_is_room(room: bool) -> None:
    asked: list[int] = []
    answer = asyncio.Event()

    async def admit(size: int) -> bool:
        asked.append(size)
        await answer.wait()
        return room

    async def count(stream: Stream) -> None:
        stream.ask_before_large(admit)
        while (message := await stream.read()) is not None:
            await stream.write(str(len(message)).encode())

    client = Client(Service.create(handler=count))
    number, whole = client.open(), frame_message(bytes(500_000))
    first, rest = whole[:65_535], whole[65_535:]
    await client.send(number, frame_message(b"small") + first[:16_000])
    assert client.answers[number].data == frame_message(b"5")
    assert asked == [len(whole) - 16_000]
    await client.send(number, first[16_000:40_000])
    assert client.h2.local_flow_control_window(number) < 65_535
    answer.set()
    await client.exchange()
    if room:
        # What the window lacked is given at once, and once only.
        await client.send(number, first[40_000:] + rest, end=True)
        assert client.answers[number].data == frame_message(b"5") + frame_message(b"500000")
    assert asked == [len(whole) - 16_000]
    assert client.answers[number].status == "0"


@pytest.mark.parametrize("size", [60_000, 65_530, 65_531, 70_000, 81_000, 98_000, 98_400, 300_000])
async def test_a_message_about_as_large_as_the_window_comes_in_frames(size: int) -> None:
    client = Client(Service.create())
    number, message = client.open(), frame_message(bytes(size))
    await client.send(number, message, end=True)
    assert client.answers[number].data == message
