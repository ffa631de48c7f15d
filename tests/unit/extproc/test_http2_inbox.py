"""What a connection receives is taken in pieces, each in a turn of the event loop."""

import asyncio

import pytest

from pdrouter.extproc.http2 import inbox
from pdrouter.extproc.http2.frames import (
    DATA,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    Frame,
    encode_frame,
)
from pdrouter.extproc.http2.inbox import PIECE_BYTES, PIECE_FRAMES, Inbox
from pdrouter.turns import Turns


class Reading(asyncio.ReadTransport):
    """Knows whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = True

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True

    def is_reading(self) -> bool:
        return self._reads

    def is_closing(self) -> bool:
        return False


class Peer:
    """Sends numbered frames to an inbox."""

    def __init__(self, max_payload: int = 100) -> None:
        self.now = 0.0
        self.breaks = -1
        self.taken: list[int] = []
        self.faults: list[ErrorCode] = []
        self.transport = Reading()
        self.inbox = Inbox(
            max_payload,
            self.receive,
            lambda fault: self.faults.append(fault.code),
            Turns(lambda: self.now),
            lambda: self.now,
        )
        self.inbox.open(self.transport)
        self.inbox.feed(PREFACE)

    def receive(self, frame: Frame) -> None:
        if frame.stream == self.breaks:
            raise KeyError(frame.stream)
        if frame.flags:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a flag")
        self.taken.append(frame.stream)

    def send(self, first: int, end: int, *, bad: int = -1) -> int:
        """Send frames; return how many bytes they take."""
        data = b"".join(
            encode_frame(DATA, int(number == bad), number, b"x") for number in range(first, end)
        )
        self.inbox.feed(data)
        return len(data)

    async def take_turns(self, count: int) -> list[int]:
        """Return how many frames each turn takes."""
        taken = []
        for _ in range(count):
            before = len(self.taken)
            self.now += 1.0
            await asyncio.sleep(0)
            taken.append(len(self.taken) - before)
        return taken


async def test_a_read_of_many_frames_is_taken_in_turns_and_in_order() -> None:
    peer = Peer()
    peer.send(0, 5 * PIECE_FRAMES)
    assert len(peer.taken) == PIECE_FRAMES
    by_turn = await peer.take_turns(20)
    assert max(by_turn) == PIECE_FRAMES
    assert peer.taken == list(range(5 * PIECE_FRAMES))


async def test_many_reads_in_one_turn_count_together() -> None:
    peer = Peer()
    for first in range(0, 2 * PIECE_FRAMES, 4):
        peer.send(first, first + 4)
    assert len(peer.taken) == PIECE_FRAMES
    await peer.take_turns(3)
    assert len(peer.taken) == 2 * PIECE_FRAMES
    for number in range(2 * PIECE_FRAMES, 4 * PIECE_FRAMES):
        peer.now += 1.0
        peer.send(number, number + 1)
        assert len(peer.taken) == number + 1
    assert peer.taken == list(range(4 * PIECE_FRAMES))


async def test_a_peer_is_not_read_while_too_much_of_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer()
    size = peer.send(0, PIECE_FRAMES + 1)
    monkeypatch.setattr(inbox, "HELD_BYTES", 2 * size)
    for number in range(1, 3):
        peer.send(number * (PIECE_FRAMES + 1), (number + 1) * (PIECE_FRAMES + 1))
        assert peer.transport.is_reading()
    peer.send(3 * (PIECE_FRAMES + 1), 4 * (PIECE_FRAMES + 1))
    assert not peer.transport.is_reading()
    await peer.take_turns(20)
    assert peer.transport.is_reading()
    assert peer.taken == list(range(4 * (PIECE_FRAMES + 1)))


async def test_what_is_beyond_a_turns_bytes_is_read_in_the_next() -> None:
    peer = Peer(max_payload=2**18)
    frame = encode_frame(DATA, 0, 7, bytes(2**18))
    for turn in range(1, 4):
        reads = 0
        while peer.transport.is_reading():
            peer.inbox.feed(frame)
            reads += 1
        assert PIECE_BYTES <= reads * len(frame) < PIECE_BYTES + len(frame)
        await peer.take_turns(1)
        assert peer.transport.is_reading()
        assert peer.taken == [7] * reads * turn


async def test_what_a_transport_has_read_meanwhile_comes_later() -> None:
    peer = Peer()
    peer.send(0, PIECE_FRAMES + 1)
    peer.send(PIECE_FRAMES + 1, 2 * PIECE_FRAMES)
    assert len(peer.taken) == PIECE_FRAMES
    await peer.take_turns(5)
    assert peer.taken == list(range(2 * PIECE_FRAMES))


@pytest.mark.parametrize("bad", [3, PIECE_FRAMES - 1, PIECE_FRAMES, 2 * PIECE_FRAMES + 5])
async def test_nothing_is_taken_behind_a_fault(bad: int) -> None:
    peer = Peer()
    peer.send(0, 4 * PIECE_FRAMES, bad=bad)
    await peer.take_turns(20)
    assert peer.taken == list(range(bad))
    assert peer.faults == [ErrorCode.PROTOCOL_ERROR]
    assert peer.transport.is_reading()  # The peer may close it, and is seen to.


@pytest.mark.parametrize("broken", [3, 2 * PIECE_FRAMES + 5], ids=["at once", "in its turn"])
async def test_a_frame_that_breaks_what_acts_on_it_ends_the_connection(
    broken: int, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    peer.breaks = broken
    peer.send(0, 4 * PIECE_FRAMES)
    await peer.take_turns(20)
    assert peer.taken == list(range(broken))
    assert peer.faults == [ErrorCode.INTERNAL_ERROR]
    (line,) = caplog.records
    assert (line.levelname, line.exc_info is not None) == ("ERROR", True)


async def test_nothing_is_taken_once_the_connection_is_gone() -> None:
    peer = Peer()
    peer.send(0, 4 * PIECE_FRAMES)
    peer.inbox.close()
    await peer.take_turns(20)
    assert len(peer.taken) == PIECE_FRAMES
