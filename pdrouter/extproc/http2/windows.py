"""Flow control (RFC 9113, section 5.2): how many bytes may be under way, in each direction."""

import asyncio
from collections import deque

from pdrouter.extproc.http2.frames import MAX_WINDOW, ErrorCode


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

    def take(self, increment: int) -> ErrorCode | None:
        """Take what a WINDOW_UPDATE frame gives; return what is wrong with it, if anything is."""
        if not increment:
            return ErrorCode.PROTOCOL_ERROR
        try:
            self.grow(increment)
        except WindowExceeded:
            return ErrorCode.FLOW_CONTROL_ERROR
        return None


class SharedWindow(SendWindow):
    """How much we may send on all streams of a connection together: they take turns.

    Attributes:
        writing: whether the peer reads what is sent.
    """

    __slots__ = ("_turns", "writing")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.writing = True
        self._turns: deque[asyncio.Future[None]] = deque()

    def may_send(self, size: int) -> bool:
        """Return whether so many bytes may be sent now, before all that waits."""
        return self.writing and size <= self.left and not self._turns

    async def wait_for_turn(self) -> None:
        """Wait until there is room, and those that came earlier had their turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.done() or turn.cancelled():
                self._turns.remove(turn)
            raise

    def pass_turn(self) -> None:
        """Let the next one that waits send, if there is room."""
        while self._turns and self.writing and self.left > 0:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class ReceiveWindow:
    """How much the peer may send. What has been used is given back in large steps.

    Attributes:
        size: bytes, when it is wide open.
        left: bytes that may still come.
    """

    __slots__ = ("left", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size

    def receive(self, size: int) -> None:
        """Count bytes that have come.

        Raises:
            WindowExceeded: the peer may not have sent them.
        """
        self.left -= size
        if self.left < 0:
            raise WindowExceeded

    def open_for(self, size: int = 0) -> int:
        """Open the window again if half of it is used, and for so many bytes in any case.

        Returns:
            By how much it opens.
        """
        before = self.left
        if before * 2 <= self.size:
            self.left = self.size
        self.left = max(self.left, size)
        return self.left - before
