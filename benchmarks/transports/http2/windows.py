"""Flow control (RFC 9113, section 5.2): how many bytes may be under way, in each direction."""

from benchmarks.transports.http2.frames import MAX_WINDOW


class WindowExceeded(Exception):
    """The peer sent more than it may, or lets us send more than a window can be."""


class SendWindow:
    """How much we may send.

    Attributes:
        left: bytes; negative after the peer has made its windows smaller.
    """

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def grow(self, increment: int) -> None:
        """Take what the peer gives; a negative number takes away.

        Raises:
            WindowExceeded: the window is too large now.
        """
        self.left += increment
        if self.left > MAX_WINDOW:
            raise WindowExceeded


class ReceiveWindow:
    """How much the peer may send. What has been used is given back in large steps."""

    __slots__ = ("_left", "_size", "_used")

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._used = 0

    def receive(self, size: int) -> None:
        """Count bytes that have come.

        Raises:
            WindowExceeded: the peer may not have sent them.
        """
        self._left -= size
        self._used += size
        if self._left < 0:
            raise WindowExceeded

    def give_back(self) -> int:
        """Return by how much to open the window again; 0 if it is still at least half open."""
        used = self._used
        if used * 2 < self._size:
            return 0
        self._used = 0
        self._left += used
        return used
