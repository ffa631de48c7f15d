"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6)."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import Final

import msgspec

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_FRAME_BYTES: Final = 2**24 - 1

# Plain numbers: members of an enumeration cost more to compare, and each frame is compared.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

FRAME_HEADER: Final = Struct(">LBL")
"""Of a frame: its size and its type in one number, its flags, its stream."""

_PRIORITY_BYTES = 5
_HEADER_BYTES: Final = 9
_SETTING = Struct(">HL")
_NUMBER = Struct(">L")
_GOAWAY = Struct(">LL")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Setting(IntEnum):
    """Names of settings (section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ConnectionFault(Exception):
    """The peer broke the protocol or a limit: the connection ends with a GOAWAY."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame.

    Attributes:
        kind: its type.
        flags: its flags.
        stream: the stream that it belongs to; 0 for the connection.
        payload: what it carries, with padding.
    """

    kind: int
    flags: int
    stream: int
    payload: bytes


class FrameReader:
    """Cuts what a client sends into frames, however it arrives."""

    __slots__ = ("_begun", "_expects_preface", "_lacking", "_max_payload")

    def __init__(self, max_payload: int) -> None:
        """Begin at the client's preface.

        Args:
            max_payload: size of the largest payload, as announced to the peer.
        """
        self._begun = b""
        self._lacking: int | None = None
        self._max_payload = max_payload
        self._expects_preface = True

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Give the frames that are complete now.

        Raises:
            ConnectionFault: this is no HTTP/2, or a frame is too large.
        """
        whole = ((data, 0),) if not self._begun and not self._expects_preface else self._join(data)
        unpack, max_payload = FRAME_HEADER.unpack_from, self._max_payload
        for piece, first in whole:
            start, end, self._lacking = first, len(piece), None
            while (begin := start + _HEADER_BYTES) <= end:
                size_and_kind, flags, stream = unpack(piece, start)
                size = size_and_kind >> 8
                if size > max_payload:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
                stop = begin + size
                if stop > end:
                    self._lacking = stop - end
                    break
                payload = piece[begin:stop]
                yield Frame(size_and_kind & 0xFF, flags, stream & MAX_STREAM_ID, payload)
                start = stop
            self._begun = piece[start:]

    def _join(self, data: bytes) -> Sequence[tuple[bytes, int]]:
        """Join what had begun before; return pieces, and where to go on in each."""
        begun = self._begun
        if self._expects_preface:
            data = begun + data
            if not data.startswith(PREFACE[: len(data)]):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            if len(data) < len(PREFACE):
                self._begun = data
                return ()
            self._expects_preface = False
            return ((data, len(PREFACE)),)
        # What follows the frame that was begun stays where it is: of a large body, most does.
        lacking = len(data) if self._lacking is None else min(self._lacking, len(data))
        first = begun + data[:lacking]
        return ((first, 0),) if lacking == len(data) else ((first, 0), (data, lacking))


def encode_frame_header(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Write what precedes a payload of so many bytes."""
    return FRAME_HEADER.pack(size << 8 | kind, flags, stream)


def encode_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def encode_headers(stream: int, block: bytes, flags: int, max_payload: int) -> bytes:
    """Write a header block: a HEADERS frame, and CONTINUATION frames if it is a large one."""
    if len(block) <= max_payload:
        return encode_frame(HEADERS, flags | END_HEADERS, stream, block)
    first, rest = block[:max_payload], block[max_payload:]
    frames = [encode_frame(HEADERS, flags, stream, first)]
    while rest:
        part, rest = rest[:max_payload], rest[max_payload:]
        frames.append(encode_frame(CONTINUATION, 0 if rest else END_HEADERS, stream, part))
    return b"".join(frames)


def encode_settings(settings: dict[Setting, int]) -> bytes:
    """Write a SETTINGS frame."""
    payload = b"".join(_SETTING.pack(name, number) for name, number in settings.items())
    return encode_frame(SETTINGS, 0, 0, payload)


def encode_window_update(stream: int, increment: int) -> bytes:
    """Write a WINDOW_UPDATE frame; stream 0 means the connection."""
    return encode_frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(increment))


def encode_reset(stream: int, code: ErrorCode) -> bytes:
    """Write a RST_STREAM frame."""
    return encode_frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def encode_goaway(last_stream: int, code: ErrorCode, reason: str) -> bytes:
    """Write a GOAWAY frame: streams above the last one were not looked at."""
    return encode_frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream, code) + reason.encode())


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Return names and numbers of a SETTINGS frame; unknown names are among them.

    Raises:
        ConnectionFault: the size is no multiple of a setting's.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "half a setting")
    return list(_SETTING.iter_unpack(payload))


def read_number(payload: bytes) -> int:
    """Return what a RST_STREAM or a WINDOW_UPDATE frame carries.

    Raises:
        ConnectionFault: it is not four bytes.
    """
    if len(payload) != _NUMBER.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a number is not of four bytes")
    (number,) = _NUMBER.unpack(payload)
    return int(number)


def check_whole(frame: Frame) -> None:
    """Check that a frame is about the whole connection.

    Raises:
        ConnectionFault: it is about a stream.
    """
    if frame.stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on the wrong stream")


def check_priority(frame: Frame) -> None:
    """Check a PRIORITY frame, which means nothing here.

    Raises:
        ConnectionFault: it is broken, or about no stream.
    """
    if not frame.stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a priority of no stream")
    if len(frame.payload) != _PRIORITY_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a priority is not of five bytes")
    check_dependency(frame.stream, frame.payload)


def check_dependency(stream: int, priority: bytes) -> None:
    """Check what begins with the stream on which a stream depends (RFC 7540, section 5.3.1).

    Raises:
        ConnectionFault: it depends on itself.
    """
    if read_number(priority[: _NUMBER.size]) & MAX_STREAM_ID == stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")


def strip_padding(frame: Frame) -> bytes:
    """Return a payload without padding and priority (sections 6.1 and 6.2).

    Raises:
        ConnectionFault: there is more padding than payload, or a stream depends on itself.
    """
    payload, start, end = frame.payload, 0, len(frame.payload)
    if frame.flags & PADDED:
        if not payload:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no length of the padding")
        start, end = 1, end - payload[0]
    with_priority = frame.kind == HEADERS and frame.flags & WITH_PRIORITY
    if with_priority:
        start += _PRIORITY_BYTES
    if start > end:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    if with_priority:
        check_dependency(frame.stream, payload[start - _PRIORITY_BYTES : start])
    return payload[start:end]
