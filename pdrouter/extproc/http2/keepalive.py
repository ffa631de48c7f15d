"""Finds out whether a peer that says nothing is still there."""

import asyncio
from collections.abc import Callable


class Keepalive:
    """Asks a silent peer, and gives it up if it stays silent.

    Attributes:
        heard: set when the peer has sent something.
    """

    __slots__ = ("_ask", "_asked", "_give_up", "_seconds", "_timer", "heard")

    def __init__(
        self, seconds: float, ask: Callable[[], None], give_up: Callable[[], None]
    ) -> None:
        """Begin to listen.

        Args:
            seconds: of silence, before the question and after it.
            ask: asks for a sign of life.
            give_up: called once there was none.
        """
        self._seconds = seconds
        self._ask = ask
        self._give_up = give_up
        self.heard = False
        self._asked = False
        self._timer = self._wait()

    def stop(self) -> None:
        """Ask nothing any more."""
        self._timer.cancel()

    def _wait(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._seconds, self._check)

    def _check(self) -> None:
        if self._asked and not self.heard:
            self._give_up()
            return
        self._asked = not self.heard
        if self._asked:
            self._ask()
        self.heard = False
        self._timer = self._wait()
