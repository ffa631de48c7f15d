"""Which frame may come when, and on which stream (RFC 9113, sections 3.4, 4.3 and 6)."""

from pdrouter.extproc.http2 import frames
from pdrouter.extproc.http2.frames import ConnectionFault, ErrorCode, Frame

_ON_STREAMS = (frames.DATA, frames.HEADERS, frames.PRIORITY, frames.RST_STREAM, frames.CONTINUATION)
_ON_CONNECTION = (frames.SETTINGS, frames.PING, frames.GOAWAY)


class FrameOrder:
    """Checks the frames of one connection."""

    __slots__ = ("_inside_block", "_settled")

    def __init__(self) -> None:
        self._settled = False
        self._inside_block = 0

    def check(self, frame: Frame) -> None:
        """Check a frame.

        Raises:
            ConnectionFault: it may not come now, or not there.
        """
        kind, flags, stream, _ = frame
        if kind in (_ON_CONNECTION if stream else _ON_STREAMS):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on the wrong stream")
        if not self._settled:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings must come first")
            self._settled = True
        continues = kind == frames.CONTINUATION
        if self._inside_block and not (continues and stream == self._inside_block):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame inside a header block")
        if continues and not self._inside_block:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        if kind == frames.HEADERS and not stream & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if continues or kind == frames.HEADERS:
            self._inside_block = 0 if flags & frames.END_HEADERS else stream
