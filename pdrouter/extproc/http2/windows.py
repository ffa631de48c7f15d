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

    def take_now(self, size: int) -> bool:
        """Take room for so many bytes if there is some, and nobody waits for it."""
        if size > self.left or not self.writing or self._turns:
            return False
        self.left -= size
        return True

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

    Who receives takes from what is left, and opens the window when it is low.

    Attributes:
        size: bytes, when it is wide open.
        left: bytes that may still come; below 0 if the peer has sent more than it may.
        low: half of the size.
    """

    __slots__ = ("left", "low", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size
        self.low = size // 2

    def open_for(self, size: int = 0) -> int:
        """Open the window again if half of it is used, and for so many bytes in any case.

        Returns:
            By how much it opens.
        """
        before = self.left
        if before <= self.low:
            self.left = max(self.size, size)
        elif before < size:
            self.left = size
        return self.left - before
