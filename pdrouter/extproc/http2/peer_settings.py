"""What a peer wants of us: the settings that it sends (RFC 9113, section 6.5.2)."""

from pdrouter.extproc.http2 import frames
from pdrouter.extproc.http2.frames import ConnectionFault, ErrorCode, Setting
from pdrouter.extproc.http2.grpc_messages import SHRINK_TABLE

_LARGEST_FRAME_BYTES = 2**18
"""A frame is written whole, whether or not the peer reads: of larger ones too much would wait."""


class PeerSettings:
    """The settings of a peer, as far as they matter here.

    Attributes:
        frame_bytes: size of the largest frame that it gets: it may take larger ones.
        stream_window: bytes that may be under way to it on a new stream.
    """

    __slots__ = (
        "_max_table_bytes",
        "_table_shrunk",
        "_table_update",
        "frame_bytes",
        "stream_window",
    )

    def __init__(self, max_table_bytes: int) -> None:
        """Begin with what holds before any are sent.

        Args:
            max_table_bytes: size that the table of our header blocks could have.
        """
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        self.stream_window = frames.DEFAULT_WINDOW
        self._max_table_bytes = max_table_bytes
        self._table_shrunk = False
        self._table_update = b""

    def apply(self, payload: bytes) -> int:
        """Take what a SETTINGS frame says; return by how much windows of open streams grow.

        Raises:
            ConnectionFault: it says what cannot be.
        """
        before = self.stream_window
        for name, number in frames.read_settings(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if number > frames.MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "an impossible window")
                self.stream_window = number
            elif name == Setting.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_BYTES <= number <= frames.MAX_FRAME_BYTES:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "an impossible frame size")
                self.frame_bytes = min(number, _LARGEST_FRAME_BYTES)
            elif name == Setting.HEADER_TABLE_SIZE:
                # Our blocks do without the table. A smaller one must be acknowledged all the same.
                if number < self._max_table_bytes and not self._table_shrunk:
                    self._table_shrunk = True
                    self._table_update = SHRINK_TABLE
            elif name == Setting.ENABLE_PUSH and number > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "push is neither on nor off")
        return self.stream_window - before

    def encode_headers(self, stream: int, block: bytes, flags: int) -> bytes:
        """Write the frames of a header block; they must be sent next."""
        if self._table_update:
            block, self._table_update = self._table_update + block, b""
        return frames.encode_headers(stream, block, flags, self.frame_bytes)
