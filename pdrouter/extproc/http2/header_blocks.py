"""Header blocks of one connection: put together from frames, decoded (RFC 7541), and checked."""

from typing import NamedTuple, cast

from hpack import Decoder, HPACKError, OversizedHeaderListError

from pdrouter.extproc.http2.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
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


class HeaderBlock(NamedTuple):
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

    __slots__ = ("_cost", "_decoder", "_ended", "_fragments", "_heads", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        """Begin with an empty table.

        Args:
            max_bytes: size of the largest header list, and of its compressed form.
        """
        self._max_bytes = max_bytes
        self._decoder = Decoder(max_bytes)
        self._heads: dict[bytes, RequestHead] = {}
        self._fragments: list[bytes] = []
        self._cost = 0
        self._ended = False

    @property
    def max_table_bytes(self) -> int:
        """Size that the peer's table may have."""
        return int(self._decoder.max_allowed_table_size)

    def add(self, frame: Frame) -> HeaderBlock | None:
        """Take a HEADERS or a CONTINUATION frame; return the block if that is its end.

        Raises:
            ConnectionFault: the block has no end.
        """
        if frame.kind == CONTINUATION:
            fragment = frame.payload
        else:
            self._ended, self._cost = bool(frame.flags & END_STREAM), 0
            fragment = strip_padding(frame)
        # Empty fragments cost as well: there is no limit on their number otherwise.
        self._cost += len(fragment) + _FRAGMENT_COST
        if self._cost > self._max_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without an end")
        self._fragments.append(fragment)
        if not frame.flags & END_HEADERS:
            return None
        block = HeaderBlock(frame.stream, self._ended, b"".join(self._fragments))
        self._fragments.clear()
        return block

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
