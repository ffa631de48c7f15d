"""Header blocks of one connection: put together from frames, decoded (RFC 7541), and checked."""

from typing import cast

import msgspec
from hpack import Decoder, HPACKError, OversizedHeaderListError

from pdrouter.extproc.http2.frames import (
    END_HEADERS,
    END_STREAM,
    PADDED,
    WITH_PRIORITY,
    ConnectionFault,
    ErrorCode,
    Frame,
    strip_padding,
)
from pdrouter.extproc.http2.requests import RequestHead, read_request_head

_FRAGMENT_COST = 32
_KEPT_HEADS = 64
_SIZE_MASK = 0xE0
_SIZE_UPDATE = 0x20
"""How a dynamic table size update begins (RFC 7541, section 6.3)."""


class HeaderBlock(msgspec.Struct, frozen=True, gc=False):
    """A block that has come whole.

    Attributes:
        stream: the stream that it belongs to.
        ended: whether it is the last that comes on the stream.
        fragment: the block, compressed.
    """

    stream: int
    ended: bool
    fragment: bytes


class HeaderBlocks:
    """Reads header blocks. Each must be decoded, in order: it may change the table."""

    __slots__ = ("_begun", "_cost", "_decoder", "_fragments", "_heads", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        """Begin with an empty table.

        Args:
            max_bytes: size of the largest header list, and of its compressed form.
        """
        self._max_bytes = max_bytes
        self._decoder = Decoder(max_bytes)
        self._heads: dict[bytes, RequestHead] = {}
        self._begun: HeaderBlock | None = None
        self._fragments: list[bytes] = []
        self._cost = 0

    @property
    def max_table_bytes(self) -> int:
        """Size that the peer's table may have."""
        return int(self._decoder.max_allowed_table_size)

    def begin(self, frame: Frame) -> HeaderBlock | None:
        """Take a HEADERS frame; return the block if that is all of it.

        Raises:
            ConnectionFault: it is too large, or its padding is.
        """
        fragment = frame.payload
        if frame.flags & (PADDED | WITH_PRIORITY):
            fragment = strip_padding(frame)
        self._cost = 0
        self._count(fragment)
        block = HeaderBlock(frame.stream, bool(frame.flags & END_STREAM), fragment)
        if frame.flags & END_HEADERS:
            return block
        self._begun, self._fragments = block, [fragment]
        return None

    def go_on(self, frame: Frame) -> HeaderBlock | None:
        """Take a CONTINUATION frame; return the block if that is its end.

        Raises:
            ConnectionFault: it continues another stream's block, or the block has no end.
        """
        begun = self._begun
        if begun is None or frame.stream != begun.stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        self._count(frame.payload)
        self._fragments.append(frame.payload)
        if not frame.flags & END_HEADERS:
            return None
        self._begun = None
        return HeaderBlock(begun.stream, begun.ended, b"".join(self._fragments))

    def _count(self, fragment: bytes) -> None:
        # Empty fragments cost as well: there is no limit on their number otherwise.
        self._cost += len(fragment) + _FRAGMENT_COST
        if self._cost > self._max_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without an end")

    def read_head(self, block: HeaderBlock) -> RequestHead:
        """Return the head of a request.

        A block that left the dynamic table alone means the same until another one changes it: Envoy
        sends one and the same for all its streams. One that sets the table's size does something.

        Raises:
            ConnectionFault: the block is broken, or too large.
            RequestMalformed: HTTP/2 does not allow such a request.
        """
        head = self._heads.get(block.fragment)
        if head is None:
            before = self._copy_table()
            headers = self._decode(block.fragment)
            head = read_request_head(headers)
            keeps = len(self._heads) < _KEPT_HEADS and self._copy_table() == before
            if keeps and block.fragment[0] & _SIZE_MASK != _SIZE_UPDATE:
                self._heads[block.fragment] = head
        return head

    def read_trailers(self, block: HeaderBlock) -> None:
        """Check the trailers of a request; they mean nothing here, but may change the table.

        Raises:
            ConnectionFault: the block is broken, or too large.
        """
        self._decode(block.fragment)

    def _decode(self, fragment: bytes) -> list[tuple[str, str]]:
        before = self._copy_table()
        try:
            headers = cast("list[tuple[str, str]]", self._decoder.decode(fragment))
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from error
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "headers are broken") from error
        if self._copy_table() != before:
            self._heads.clear()
        return headers

    def _copy_table(self) -> tuple[object, ...]:
        return tuple(self._decoder.header_table.dynamic_entries)
