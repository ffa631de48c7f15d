"""gRPC's messages and statuses inside HTTP/2 streams (its PROTOCOL-HTTP2.md)."""

from enum import IntEnum
from struct import Struct
from typing import Final, NoReturn
from urllib.parse import quote

from hpack import Encoder, NeverIndexedHeaderTuple

_PREFIX = Struct(">BL")
_PREFIX_BYTES: Final = 5
_SMALL_BYTES = 1024
_JOINED_BYTES = 64 * 1024


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
        missing: bytes that the next message lacks, as far as is known; no more than 0 if it is
            whole, or not acceptable.
    """

    __slots__ = ("_max_bytes", "_pieces", "_size", "_whole", "missing")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes | bytearray] = []
        self._size = 0
        self._whole = 0
        self.missing = _PREFIX_BYTES

    @property
    def empty(self) -> bool:
        """Whether there is no byte left."""
        return not self._size

    def feed(self, piece: bytes) -> None:
        """Keep what has come. Small pieces are put together: each would take more than it holds."""
        if not piece:
            return
        pieces, size = self._pieces, len(piece)
        if not pieces or size >= _SMALL_BYTES:
            pieces.append(piece)
        else:
            last = pieces[-1]
            if isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
                last += piece
            else:
                pieces.append(bytearray(piece))
        self._size += size
        self.missing -= size
        if self.missing <= 0 and not self._whole:
            self._measure()

    def clear(self) -> None:
        """Throw away what is kept."""
        self._pieces.clear()
        self._size = self._whole = 0
        self.missing = _PREFIX_BYTES

    def take(self) -> bytes | None:
        """Return the next message; None if it is not complete.

        Raises:
            RpcFailed: it is larger than allowed, or compressed.
        """
        if self.missing > 0:
            return None
        whole, pieces = self._whole, self._pieces
        if not whole:
            self._refuse()
        first = pieces[0]
        if len(first) < whole:
            message = self._put_together(whole)
        else:
            message = bytes(first[_PREFIX_BYTES:whole])
            if len(first) > whole:
                pieces[0] = first[whole:]
            else:
                del pieces[0]
        self._size -= whole
        self._whole = 0
        self.missing = _PREFIX_BYTES - self._size
        if self.missing <= 0:
            self._measure()
        return message

    def _measure(self) -> None:
        """Find out what the next message lacks, of which the prefix has come."""
        pieces = self._pieces
        # No more are joined than the prefix needs: what a message leaves of a piece is copied.
        while len(pieces[0]) < _PREFIX_BYTES:
            pieces[:2] = [b"".join(pieces[:2])]
        compressed, size = _PREFIX.unpack_from(pieces[0])
        if compressed or size > self._max_bytes:
            self.missing = 0
            return
        self._whole = _PREFIX_BYTES + size
        self.missing = self._whole - self._size

    def _refuse(self) -> NoReturn:
        compressed, size = _PREFIX.unpack_from(self._pieces[0])
        if compressed:
            raise RpcFailed(Status.UNIMPLEMENTED, "compressed messages are not accepted")
        limit = f"{size} bytes, and may have {self._max_bytes}"
        raise RpcFailed(Status.RESOURCE_EXHAUSTED, f"a message has {limit}")

    def _put_together(self, size: int) -> bytes:
        """Return a message of several pieces, which with its prefix has so many bytes."""
        pieces = self._pieces
        parts = [memoryview(pieces[0])[_PREFIX_BYTES:]]
        size -= len(pieces[0])
        last = 1
        while len(pieces[last]) < size:
            parts.append(memoryview(pieces[last]))
            size -= len(pieces[last])
            last += 1
        parts.append(memoryview(pieces[last])[:size])
        message, rest = b"".join(parts), pieces[last][size:]
        self._pieces = [rest, *pieces[last + 1 :]] if rest else pieces[last + 1 :]
        return message


def encode_prefix(message: bytes) -> bytes:
    """Return what precedes a message."""
    return _PREFIX.pack(0, len(message))


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
