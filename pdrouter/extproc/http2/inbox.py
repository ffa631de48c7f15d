"""What a connection receives: frames, of which each turn of the event loop takes so many."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator

from pdrouter.extproc.http2.frames import ConnectionFault, ErrorCode, Frame, FrameReader
from pdrouter.turns import Turns

log = logging.getLogger(__name__)

PIECE_FRAMES = 32
"""How many frames are taken in a turn: about a millisecond's, where a dozen requests begin."""
PIECE_BYTES = 2**19
"""After how much a connection is read again in the next turn only: a turn reads no more, and what
the last read brings beyond it. In a burst, a megabyte takes 3 ms."""
HELD_BYTES = 32 * 2**20
"""How much of what was read may wait for its turn. What the windows allow is less, with the headers
of all streams: it is never reached by Envoy, which ends a connection whose peer does not read, with
1,000 resets or 10,000 frames of any kind to send."""


class Inbox:
    """Reads frames from a connection.

    The loop reads a connection up to 32 times in a turn, and a read may bring a quarter of a
    megabyte, in a hundred frames. What is beyond a turn's bytes stays with the kernel for a turn;
    frames which a turn does not take wait for theirs, in the order of all that waits. Until they
    are taken, the windows of HTTP/2 do not open for more.
    """

    def __init__(
        self,
        max_payload: int,
        receive: Callable[[Frame], None],
        fail: Callable[[ConnectionFault], None],
        turns: Turns,
        clock: Callable[[], float],
    ) -> None:
        """Begin before there is a transport.

        Args:
            max_payload: size of the largest payload, as announced to the peer.
            receive: acts on a frame.
            fail: ends the connection, whose peer is at fault.
            turns: spreads what is ready at once.
            clock: the loop's, which stands still within a turn.
        """
        self._reader = FrameReader(max_payload)
        self._receive = receive
        self._fail = fail
        self._turns = turns
        self._clock = clock
        self._turn = clock()
        self._frames_left = PIECE_FRAMES
        self._bytes_left = PIECE_BYTES
        self._transport: asyncio.ReadTransport | None = None
        self._frames: Iterator[Frame] | None = None
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._paused = False

    def open(self, transport: asyncio.ReadTransport) -> None:
        """Take the transport."""
        self._transport = transport

    def feed(self, data: bytes) -> None:
        """Act on the frames that are complete now, in this turn or in later ones."""
        self._bytes_left -= len(data)
        if self._frames is None:
            self._frames = self._reader.feed(data)
            now = self._clock()
            if now != self._turn:
                self._turn, self._frames_left = now, PIECE_FRAMES
            self._take()
        else:
            self._held.append(data)
            self._held_bytes += len(data)
        if self._bytes_left <= 0 or self._held_bytes > HELD_BYTES:
            self._pause()

    def close(self) -> None:
        """Act on no more frames."""
        self._transport = None
        self._stop()

    def _stop(self) -> None:
        self._frames = None
        self._held.clear()
        self._held_bytes = 0

    def _pause(self) -> None:
        """Read no more before the next turn, nor as long as too much waits."""
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()
            self._turns.end_with(self._resume)

    def _resume(self) -> None:
        self._bytes_left = PIECE_BYTES
        transport = self._transport
        if self._paused and transport is not None and self._held_bytes <= HELD_BYTES:
            self._paused = False
            if not transport.is_closing():
                transport.resume_reading()

    def _go_on(self) -> None:
        """Take frames in their turn."""
        self._frames_left = PIECE_FRAMES
        self._take()
        self._resume()

    def _take(self) -> None:
        """Act on as many frames as there is room for, and put off the others."""
        receive, room = self._receive, self._frames_left
        try:
            while self._frames is not None:
                for frame in self._frames:
                    receive(frame)
                    room -= 1
                    if not room:
                        self._turns.put_off(self._go_on)
                        return
                self._frames = self._feed_held()
            self._frames_left = room
        except ConnectionFault as fault:
            self._stop()
            self._fail(fault)
        except Exception:
            # It is not known what the frame has done, nor what it should have.
            log.exception("a frame cannot be acted upon")
            self._stop()
            self._fail(ConnectionFault(ErrorCode.INTERNAL_ERROR, "internal error"))

    def _feed_held(self) -> Iterator[Frame] | None:
        if not self._held:
            return None
        data = self._held.popleft()
        self._held_bytes -= len(data)
        return self._reader.feed(data)
