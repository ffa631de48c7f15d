"""Frames and messages are the same however their bytes are cut."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from pdrouter.extproc.http2.frames import DATA, PREFACE, FrameReader
from pdrouter.extproc.http2.grpc_messages import (
    MessageReader,
    encode_message,
    encode_message_parts,
    encode_prefix,
)

MESSAGES = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(900, 40_000).map(bytes)), max_size=6
)
CUTS = st.lists(st.integers(1, 30_000), min_size=1, max_size=30)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, index = [], 0
    while data:
        size = sizes[index % len(sizes)]
        pieces.append(data[:size])
        data, index = data[size:], index + 1
    return pieces


@given(MESSAGES, CUTS, st.integers(20, 20_000))
def test_messages_come_through_frames_however_they_are_cut(
    messages: list[bytes], sizes: list[int], max_payload: int
) -> None:
    parts: list[bytes | memoryview] = [PREFACE]
    for message in messages:
        parts += encode_message_parts(1, message, max_payload)
    frames, reader, received = FrameReader(max_payload), MessageReader(2**20), []
    for piece in cut(b"".join(parts), sizes):
        for frame in frames.feed(piece):
            assert (frame.kind, frame.flags, frame.stream) == (DATA, 0, 1)
            assert len(frame.payload) <= max_payload
            reader.feed(frame.payload)
            while (taken := reader.take()) is not None:
                received.append(taken)
    assert received == messages
    assert reader.empty


@given(st.binary(max_size=40))
def test_a_message_is_the_same_copied_and_in_parts(message: bytes) -> None:
    assert encode_message(3, message) == b"".join(encode_message_parts(3, message, 45))


@given(MESSAGES, CUTS)
def test_messages_may_be_taken_when_all_have_come(messages: list[bytes], sizes: list[int]) -> None:
    reader = MessageReader(2**20)
    for piece in cut(
        b"".join(part for each in messages for part in (encode_prefix(each), each)), sizes
    ):
        reader.feed(piece)
    assert [reader.take() for _ in messages] == messages
    assert reader.take() is None
    assert reader.empty


def test_a_prefix_in_two_pieces_joins_no_more_than_these() -> None:
    reader = MessageReader(1000)
    for _ in range(64):
        reader.feed(bytes(16 * 1024))  # Of 5 bytes each message: the pieces end inside a prefix.
    tracemalloc.start()
    try:
        for _ in range(4000):
            assert reader.take() == b""
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024


def test_what_follows_a_message_in_its_piece_is_not_copied() -> None:
    reader = MessageReader(1000)
    reader.feed((encode_prefix(b"xy") + b"xy") * 2000)
    tracemalloc.start()
    try:
        for _ in range(2000):
            assert reader.take() == b"xy"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reader.empty
    assert peak < 4096
