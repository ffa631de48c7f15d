"""Log lines of requests that have ended, held until Envoy has told when their first token came."""

import asyncio
import time
from collections.abc import Callable

from pdrouter.serving.record import RequestRecord

HOLD_S = 1.5
"""How long a line waits: Envoy tells within a second, if it tells this router."""
MOST_HELD = 5_000
"""Lines that wait at once; further ones are written as they are."""


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

    def hold(self, record: RequestRecord) -> None:
        """Hold a line for a while; it is written in any case."""
        if len(self._held) >= MOST_HELD:
            self._write(record)
            return
        self._held[record.request_id] = (time.monotonic() + HOLD_S, record)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_S, self._write_due)

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

    def _write_due(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._held:
            request_id, (due, record) = next(iter(self._held.items()))
            if due > now:
                wait_s = due - now
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._write_due)
                return
            del self._held[request_id]
            self._write(record)
