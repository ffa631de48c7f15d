"""Requests that have ended whose log lines wait for Envoy to tell when their first token came."""

import asyncio
import time
from collections.abc import Callable
from itertools import islice

from pdrouter.serving.record import RequestRecord

HOLD_S = 1.5
"""How long a line waits: Envoy tells within a second, if it tells this router."""
MOST_HELD = 5_000
"""Lines that wait at once; further ones are written as they are."""
_AT_ONCE = 32
"""Lines that are let go before others may run."""


class HeldLines:
    """Holds the records of lines that are yet to be written."""

    def __init__(self, write: Callable[[RequestRecord], None]) -> None:
        """Begin with none.

        Args:
            write: writes the line of a request.
        """
        self._write = write
        self._held: dict[str, tuple[float, RequestRecord]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, record: RequestRecord) -> bool:
        """Hold a line, to be written after a while in any case; False if there is no room."""
        if len(self._held) >= MOST_HELD:
            return False
        self._held[record.request_id] = (time.monotonic() + HOLD_S, record)
        if self._timer is None:
            self._set_timer(HOLD_S)
        return True

    def take(self, request_id: str) -> RequestRecord | None:
        """Return a record whose line is held, and hold it no more; None if there is none."""
        held = self._held.pop(request_id, None)
        return None if held is None else held[1]

    def close(self) -> None:
        """Write all that is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._held:
            _, record = self._held.pop(next(iter(self._held)))
            self._write(record)

    def _set_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._write_due)

    def _write_due(self) -> None:
        now = time.monotonic()
        for request_id, (due, record) in list(islice(self._held.items(), _AT_ONCE)):
            if due > now:
                break
            del self._held[request_id]
            self._write(record)
        # Only now: what is written may have others counted, of which some are held.
        self._timer = None
        if self._held:
            due, _ = next(iter(self._held.values()))
            self._set_timer(max(0.0, due - now))
