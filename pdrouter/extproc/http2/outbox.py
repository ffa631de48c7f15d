"""What a connection sends: gathered in each turn of the event loop, and bounded."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from pdrouter.extproc.http2.windows import SharedWindow
from pdrouter.turns import Turns

_WRITE_BUFFER_BYTES = 2**20
_GATHERED_BYTES = 2**16


class Outbox:
    """Writes frames to a connection, those of a turn at its end.

    Each write wakes the peer: many small ones cost both sides more than the frames do.

    Attributes:
        window: says whether the peer reads.
    """

    def __init__(self, window: SharedWindow, unread_bytes: int, turns: Turns) -> None:
        """Begin before there is a transport.

        Args:
            window: says whether the peer reads.
            unread_bytes: how much may wait for a peer that does not.
            turns: says when a turn ends.
        """
        self.window = window
        self._turns = turns
        self._unread_bytes = unread_bytes
        self._transport: asyncio.Transport | None = None
        self._gathered: list[bytes | memoryview] = []
        self._gathered_bytes = 0

    def open(self, transport: asyncio.Transport) -> None:
        """Take the transport."""
        transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        self._transport = transport

    def close(self) -> None:
        """Send nothing any more: the connection is lost."""
        self._transport = None
        self._gathered, self._gathered_bytes = [], 0

    def send(self, frames: bytes) -> None:
        """Send frames, together with all others of this turn; none before the handshake of TLS."""
        if self._transport is None:
            return
        if not self._gathered:
            self._turns.end_with(self._write)
        self._gathered.append(frames)
        self._gathered_bytes += len(frames)
        if self._gathered_bytes >= _GATHERED_BYTES:
            self._write()

    def send_parts(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send frames in parts, which are not joined before they are written."""
        if self._transport is None:
            return
        if not self._gathered:
            self._turns.end_with(self._write)
        self._gathered += parts
        self._gathered_bytes += sum(map(len, parts))
        if self._gathered_bytes >= _GATHERED_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left, and say that there will be no more."""
        transport = self._transport
        if transport is None:
            return
        self._write()
        if transport.can_write_eof() and not transport.is_closing():
            with suppress(OSError):  # The peer is gone already.
                transport.write_eof()

    def abort(self) -> None:
        """Close the connection, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self) -> None:
        """Write what is gathered. A peer that asks for ever more and reads nothing is given up."""
        transport, gathered = self._transport, self._gathered
        if transport is None or not gathered:
            return
        self._gathered, self._gathered_bytes = [], 0
        transport.write(b"".join(gathered))
        if not self.window.writing and transport.get_write_buffer_size() > self._unread_bytes:
            transport.abort()
