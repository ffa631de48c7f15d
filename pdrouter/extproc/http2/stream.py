"""One call on a connection: messages in, messages out, and a status at the end."""

import asyncio
from typing import Protocol

from pdrouter.extproc.http2.frames import (
    DATA,
    END_STREAM,
    ErrorCode,
    encode_frame,
    encode_frame_header,
    encode_reset,
    encode_window_update,
)
from pdrouter.extproc.http2.grpc_messages import (
    PREFIX_BYTES,
    RESPONSE_BLOCK,
    UNSUPPORTED_MEDIA_TYPE_BLOCK,
    UNSUPPORTED_MEDIA_TYPE_TEXT,
    MessageReader,
    RpcFailed,
    Status,
    encode_message,
    encode_message_parts,
    encode_prefix,
    encode_trailers,
)
from pdrouter.extproc.http2.outbox import Outbox
from pdrouter.extproc.http2.peer_settings import PeerSettings
from pdrouter.extproc.http2.requests import RequestHead
from pdrouter.extproc.http2.windows import ReceiveWindow, SendWindow, SharedWindow
from pdrouter.extproc.limits import Admit
from pdrouter.turns import Turns

_WHOLE_BYTES = 2**20
"""Size of the largest message that is written at once, if the peer's windows let it."""

_COPIED_BYTES = 2**11
"""Size of the largest message that is copied into its frame: parts cost more. It fits any peer's
frames."""

END = None
"""What `Stream.read` gives after the last message."""


class Wire(Protocol):
    """What a stream needs of its connection.

    Attributes:
        window: what may be sent on all streams together.
        outbox: sends frames.
        peer: the settings of the peer.
        turns: spreads what is ready at once.
        loop: the event loop.
    """

    window: SharedWindow
    outbox: Outbox
    peer: PeerSettings
    turns: Turns
    loop: asyncio.AbstractEventLoop

    def forget(self, stream: "Stream") -> None:
        """Take a stream that is over off the list."""


class Stream:
    """A call.

    Attributes:
        id: its number.
        head: what it asks for.
        task: what answers it.
        ended: whether the peer has sent all.
        answered: whether anything was sent to the peer.
        closed: whether nothing more is sent.
        window: what may be sent.
    """

    __slots__ = (
        "_admit",
        "_body_bytes",
        "_discards",
        "_messages",
        "_reader",
        "_receive_window",
        "_wire",
        "_writer",
        "answered",
        "closed",
        "ended",
        "head",
        "id",
        "task",
        "window",
    )

    def __init__(
        self, number: int, head: RequestHead, wire: Wire, windows: tuple[int, int], max_bytes: int
    ) -> None:
        """Begin after the request's headers.

        Args:
            number: the stream's number.
            head: the request.
            wire: the connection.
            windows: bytes that may be received, and sent.
            max_bytes: size of the largest message.
        """
        self.id = number
        self.head = head
        self.task: asyncio.Task[None] | None = None
        self.ended = False
        self.answered = False
        self._admit: Admit | None = None
        self._wire = wire
        self._receive_window = ReceiveWindow(windows[0])
        self.window = SendWindow(windows[1])
        self._messages = MessageReader(max_bytes)
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self.closed = False
        self._body_bytes = 0
        self._discards = False

    async def read(self) -> bytes | None:
        """Wait for the next message; `END` if there is none any more.

        Raises:
            RpcFailed: the message is not acceptable.
        """
        messages, window = self._messages, self._receive_window
        while not self.closed:
            missing = messages.missing
            if missing <= 0:
                return messages.take()
            if self.ended:
                if not messages.empty:
                    raise RpcFailed(Status.INTERNAL, "the stream ended inside a message")
                return END
            if missing > window.left and missing > window.size and self._admit is not None:
                # A message that is larger than a window needs leave.
                if not await self._admit(missing):
                    return END
                if self._is_over():
                    continue
            # Also where less than half of the window is used, or the message would never be whole.
            if window.left <= window.low or window.left < missing:
                self._open(missing)
            self._reader = self._wire.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return END

    def _is_over(self) -> bool:
        return self.ended or self.closed

    def ask_before_large(self, admit: Admit) -> None:
        """Ask from now on before the window is opened for a message that is larger than it.

        Args:
            admit: says whether there is room for so many bytes; if not, the reading ends.
        """
        self._admit = admit

    async def write(self, message: bytes) -> None:
        """Send a message, once the peer takes it."""
        wire, window, size = self._wire, self.window, PREFIX_BYTES + len(message)
        if not self.answered:
            wire.outbox.send(wire.peer.encode_headers(self.id, RESPONSE_BLOCK, 0))
            self.answered = True
        if size <= window.left and size <= _WHOLE_BYTES and wire.window.take_now(size):
            window.left -= size
            if size <= _COPIED_BYTES:
                wire.outbox.send(encode_message(self.id, message))
            else:
                parts = encode_message_parts(self.id, message, wire.peer.frame_bytes)
                wire.outbox.send_parts(parts)
            return
        try:
            await self._write_parts(encode_prefix(message) + message)
        finally:
            wire.window.pass_turn()

    def end(self, status: Status, message: str = "") -> None:
        """Tell the peer how the call ended; nothing happens if the stream is over."""
        if self.closed:
            return
        block = encode_trailers(status, message)
        block = block if self.answered else RESPONSE_BLOCK + block
        self._wire.outbox.send(self._wire.peer.encode_headers(self.id, block, END_STREAM))
        self._close()

    async def refuse_media_type(self) -> None:
        """Tell a client that does not speak gRPC so, as PROTOCOL-HTTP2.md demands."""
        if self.closed:
            return
        self._wire.outbox.send(
            self._wire.peer.encode_headers(self.id, UNSUPPORTED_MEDIA_TYPE_BLOCK, 0)
        )
        try:
            await self._write_parts(UNSUPPORTED_MEDIA_TYPE_TEXT)
        finally:
            self._wire.window.pass_turn()
            if not self.closed:
                self._wire.outbox.send(encode_frame(DATA, END_STREAM, self.id))
                self._close()

    async def wait_for_end(self) -> None:
        """Wait until the peer has sent all, and keep nothing of it."""
        self._discards = True
        if not self.ended:
            self._messages.clear()
            self._open()
            self._reader = self._wire.loop.create_future()
            await self._reader

    def receive(self, data: bytes, size: int, ended: bool) -> ErrorCode | None:
        """Take a part of the messages; return what is wrong with it, if anything is.

        Args:
            data: the part.
            size: by how much it counts: padding does.
            ended: whether it is the last one.
        """
        if self.ended:
            return ErrorCode.STREAM_CLOSED
        window, messages = self._receive_window, self._messages
        window.left -= size
        if window.left < 0:
            return ErrorCode.FLOW_CONTROL_ERROR
        self.ended = ended
        length = self.head.content_length
        if length is not None:
            self._body_bytes += len(data)
            if self._body_bytes > length or (ended and self._body_bytes < length):
                return ErrorCode.PROTOCOL_ERROR
        if not self._discards:
            messages.feed(data)
        reader, missing = self._reader, messages.missing
        if reader is not None:
            if ended or missing <= 0 or (missing > window.left and not self._discards):
                self._wake_reader(reader)
            elif window.left <= window.low:
                self._open()
        return None

    def abandon(self) -> None:
        """Stop what answers the call: the peer has reset it, or is gone."""
        self.closed = True
        reader = self._reader
        if reader is not None and not reader.done():
            # Envoy resets each stream whose request has ended: for one that waits for nothing but
            # the next message that is its end, and an end costs less than a cancellation.
            self._wake_reader(reader)
        elif self.task is not None:
            self.task.cancel()

    def release(self) -> None:
        """Let go of what has answered the call: it refers to the stream, too.

        Two that refer to each other are found only by a search of all objects, which takes the
        longer the more requests there were since the last.
        """
        self._admit = None
        self.task = None

    def _wake_reader(self, reader: asyncio.Future[None]) -> None:
        """Let who waits for a message go on when it is its turn."""
        self._reader = None
        self._wire.turns.resolve(reader, None)

    def wake(self) -> None:
        """Go on writing if the stream's window allows it again."""
        if self._writer is not None and self.window.left > 0 and not self._writer.done():
            self._writer.set_result(None)

    def _open(self, size: int = 0) -> None:
        increment = self._receive_window.open_for(size)
        if increment and not self.closed:
            self._wire.outbox.send(encode_window_update(self.id, increment))

    async def _write_parts(self, data: bytes) -> None:
        wire, rest = self._wire, memoryview(data)
        while rest:
            room = wire.window.left if wire.window.writing else 0
            allowed = min(self.window.left, room, wire.peer.frame_bytes, len(rest))
            if allowed > 0:
                self.window.left -= allowed
                wire.window.left -= allowed
                header = encode_frame_header(DATA, 0, self.id, allowed)
                wire.outbox.send_parts((header, rest[:allowed]))
                rest = rest[allowed:]
            elif self.window.left <= 0:
                wire.window.pass_turn()
                await self._wait_for_window()
            else:
                await wire.window.wait_for_turn()

    async def _wait_for_window(self) -> None:
        self._writer = self._wire.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def _close(self) -> None:
        """Forget a stream on which all is sent."""
        self.closed = True
        if not self.ended:
            # What the client may still send is of no use any more (RFC 9113, section 8.1).
            self._wire.outbox.send(encode_reset(self.id, ErrorCode.NO_ERROR))
        self._wire.forget(self)
