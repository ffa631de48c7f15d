"""gRPC's messages and statuses inside HTTP/2 streams (its PROTOCOL-HTTP2.md)."""

from enum import IntEnum
from struct import Struct
from typing import Final, NoReturn
from urllib.parse import quote

from hpack import Encoder, NeverIndexedHeaderTuple

from pdrouter.extproc.http2.frames import DATA, FRAME_HEADER, encode_frame_header

PREFIX_BYTES: Final = 5
"""Of what precedes a message."""

_PREFIX = Struct(">BL")
"""Whether a message is compressed, and its size."""
_FIRST_OF_FRAME = Struct(f"{FRAME_HEADER.format}BL")
"""What a frame begins with in which a message does: its own header, and the prefix."""
_SMALL_BYTES = 1024


class Status(IntEnum):
    """gRPC's status codes, as far as they are sent here."""

    OK = 0
    UNKNOWN = 2
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RpcFailed(Exception):
    """A call ends with another status than OK.

    Attributes:
        status: the status.
        message: what the client is told.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class MessageReader:
    """Puts messages together from the pieces of a stream, when they are asked for.

    Attributes:
        missing: bytes that the next message lacks, as far as is known: those of its prefix until
            that has come. No more than 0 if it is whole, or not acceptable.
    """

    __slots__ = ("_lone", "_max_bytes", "_pieces", "_start", "_whole", "missing")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lone: bytes | None = None  # The next message if it came as one piece: most do.
        self._pieces: list[bytes] = []
        self._start = 0  # Of the next message in the first piece.
        self._whole = 0  # Its bytes with its prefix; 0 before that has come.
        self.missing = PREFIX_BYTES

    @property
    def empty(self) -> bool:
        """Whether there is no byte left."""
        return not self._pieces

    def feed(self, piece: bytes) -> None:
        """Keep what has come. Small pieces are put together: each would take more than it holds."""
        pieces, size = self._pieces, len(piece)
        if not pieces and self._lone is None and size >= PREFIX_BYTES:
            compressed, length = _PREFIX.unpack_from(piece)
            if PREFIX_BYTES + length == size and not compressed and length <= self._max_bytes:
                self._lone, self._whole, self.missing = piece[PREFIX_BYTES:], size, 0
                return
        if pieces and len(pieces[-1]) + size <= _SMALL_BYTES:
            pieces[-1] += piece
        elif piece:
            pieces.append(piece)
        self.missing -= size
        if self.missing <= 0 and not self._whole:
            self._measure()

    def clear(self) -> None:
        """Throw away what is kept."""
        self._lone = None
        self._pieces.clear()
        self._start = self._whole = 0
        self.missing = PREFIX_BYTES

    def take(self) -> bytes | None:
        """Return the next message; None if it is not complete.

        Raises:
            RpcFailed: it is larger than allowed, or compressed.
        """
        if self.missing > 0:
            return None
        message = self._lone
        if message is None:
            message = self._cut()
        self._lone, self._whole = None, 0
        self.missing += PREFIX_BYTES
        if self.missing <= 0:
            self._measure()
        return message

    def _cut(self) -> bytes:
        """Take the next message out of the pieces.

        Raises:
            RpcFailed: it is not acceptable.
        """
        if not self._whole:
            self._refuse()
        pieces, start = self._pieces, self._start
        stop = start + self._whole
        if stop <= len(pieces[0]):
            message = pieces[0][start + PREFIX_BYTES : stop]
        else:
            message, stop = self._put_together(stop)
        if stop < len(pieces[0]):
            self._start = stop
        else:
            del pieces[0]
            self._start = 0
        return message

    def _measure(self) -> None:
        """Find out what the next message lacks, of which the prefix has come."""
        pieces = self._pieces
        # No more are joined than the prefix needs: these are copied.
        while len(pieces[0]) - self._start < PREFIX_BYTES:
            pieces[:2] = [pieces[0][self._start :] + pieces[1]]
            self._start = 0
        compressed, size = _PREFIX.unpack_from(pieces[0], self._start)
        if not compressed and size <= self._max_bytes:
            self._whole = PREFIX_BYTES + size
            self.missing += size

    def _refuse(self) -> NoReturn:
        compressed, size = _PREFIX.unpack_from(self._pieces[0], self._start)
        if compressed:
            raise RpcFailed(Status.UNIMPLEMENTED, "compressed messages are not accepted")
        limit = f"{size} bytes, and may have {self._max_bytes}"
        raise RpcFailed(Status.RESOURCE_EXHAUSTED, f"a message has {limit}")

    def _put_together(self, stop: int) -> tuple[bytes, int]:
        """Let go of all pieces of a message but its last.

        Args:
            stop: where the message ends, seen from the first one's start.

        Returns:
            The message, and where it ends in the last one.
        """
        pieces, last = self._pieces, 0
        parts = [memoryview(pieces[0])[self._start + PREFIX_BYTES :]]
        while stop > len(pieces[last]):
            stop -= len(pieces[last])
            last += 1
            parts.append(memoryview(pieces[last])[:stop])
        del pieces[:last]
        return b"".join(parts), stop


def encode_prefix(message: bytes) -> bytes:
    """Return what precedes a message."""
    return _PREFIX.pack(0, len(message))


def encode_message(stream: int, message: bytes) -> bytes:
    """Write a message in a DATA frame of its own."""
    size = len(message)
    head = _FIRST_OF_FRAME.pack(PREFIX_BYTES + size << 8 | DATA, 0, stream, 0, size)
    return head + message


def encode_message_parts(stream: int, message: bytes, max_payload: int) -> list[bytes | memoryview]:
    """Write a message in DATA frames.

    Args:
        stream: the stream.
        message: the message.
        max_payload: size of the largest payload.

    Returns:
        The frames in parts: the message is not copied.
    """
    view, end = memoryview(message), max_payload - PREFIX_BYTES
    first = min(PREFIX_BYTES + len(message), max_payload)
    head = _FIRST_OF_FRAME.pack(first << 8 | DATA, 0, stream, 0, len(message))
    parts: list[bytes | memoryview] = [head, view[:end]]
    for start in range(end, len(message), max_payload):
        part = view[start : start + max_payload]
        parts += encode_frame_header(DATA, 0, stream, len(part)), part
    return parts


def _encode_block(*headers: tuple[str, str]) -> bytes:
    """Write a header block that neither needs nor changes the dynamic table: it fits any time."""
    encoded: bytes = Encoder().encode([NeverIndexedHeaderTuple(*header) for header in headers])
    return encoded


RESPONSE_BLOCK = _encode_block((":status", "200"), ("content-type", "application/grpc"))
UNSUPPORTED_MEDIA_TYPE_BLOCK = _encode_block((":status", "415"), ("content-type", "text/plain"))
UNSUPPORTED_MEDIA_TYPE_TEXT = b"this port speaks gRPC only\n"
SHRINK_TABLE = b"\x20"
"""Says, at the start of a block, that our dynamic table has no room from now on (RFC 7541, 6.3)."""

_OK_BLOCK = _encode_block(("grpc-status", "0"))


def encode_trailers(status: Status, message: str) -> bytes:
    """Write the header block that ends a call."""
    if status is Status.OK:
        return _OK_BLOCK
    return _encode_block(
        ("grpc-status", str(int(status))), ("grpc-message", quote(message, safe=" !$&'()*+,:;=@"))
    )
