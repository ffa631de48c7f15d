"""One connection to an engine, and one request on it at a time."""

import asyncio
from collections.abc import Sequence
from ssl import SSLError
from typing import cast

from pdrouter.engine_http.answers import AnswerReader, EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engine_http.tls import describe_failure
from pdrouter.turns import Turns

_COPIED_BYTES = 64 * 1024
"""Up to this size, to copy a body costs less than to write it in pieces."""
_PIECE_BYTES = 256 * 1024
"""How much of a larger one is written before a look at whether the engine still reads."""


class Connection(asyncio.Protocol):
    """A connection.

    Attributes:
        used: whether a request was answered on it.
        heard: when a byte came last, or a request was begun, by the loop's clock.
        idle_since: when its last answer was complete, by the loop's clock.
    """

    __slots__ = (
        "_closed",
        "_deadline",
        "_done",
        "_due",
        "_loop",
        "_reader",
        "_resumed",
        "_silence_s",
        "_timer",
        "_transport",
        "_turns",
        "heard",
        "idle_since",
        "used",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
        self._loop = loop
        self._turns = turns
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._done: asyncio.Future[EngineAnswer] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._closed = False
        self._deadline = self._silence_s = self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.heard = 0.0
        self.used = False
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        """Whether it may take a request."""
        return not self._closed and self._reader is None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read what has come of the answer."""
        reader, done = self._reader, self._done
        if reader is None or reader.complete or done is None or done.done():
            self.close()  # Nobody has asked for anything.
            return
        self.heard = self._loop.time()
        try:
            reader.feed(data)
        except PostFailed as failed:
            self.fail(failed)
            return
        if reader.answer is not None:
            self._turns.resolve(done, reader.answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request that is under way, unless the end of the connection ends its answer."""
        self._closed = True
        self._transport = None  # It refers to this connection, and so does its timer.
        self._stop_timer()
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        reader, done = self._reader, self._done
        if reader is None or reader.complete or done is None or done.done():
            return
        if error is None and reader.end() and reader.answer is not None:
            self._turns.resolve(done, reader.answer)
            return
        what = _describe_end(error)
        stale = self.used and not reader.begun
        done.set_exception(PostFailed(FailureKind.TRANSPORT, what, stale=stale))

    def pause_writing(self) -> None:
        """Wait with what is left of a body: the engine does not read."""
        self._resumed = self._loop.create_future()

    def resume_writing(self) -> None:
        """Go on with the body."""
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    # What the client calls.

    async def send(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        size: int,
        *,
        limit: int,
        deadline: float,
        silence_s: float,
        progress: PostProgress | None,
    ) -> EngineAnswer:
        """Send a request and read its answer. Cancelling closes the connection.

        Args:
            head: request line and headers.
            body: the body, in parts.
            size: how many bytes it has.
            limit: bytes of the largest answer.
            deadline: when the answer must be complete, by the loop's clock.
            silence_s: seconds without a byte of it.
            progress: learns how far it comes; None if nobody needs to know.

        Raises:
            PostFailed: there is no complete answer.
        """
        reader = self._reader = AnswerReader(limit, progress)
        done: asyncio.Future[EngineAnswer] = self._loop.create_future()
        self._done = done
        self.heard = self._loop.time()
        self._deadline, self._silence_s = deadline, silence_s
        self._watch()
        try:
            written = await self._write(head, body, size, done)
            if written and progress is not None and not self._closed:
                progress.sent.set()
            answer = await done
            if written and reader.reusable:
                self.used = True
                self._reader = None
            return answer
        finally:
            self.idle_since = self._loop.time()
            if self._reader is not None:
                if not done.cancel() and not done.cancelled():
                    done.exception()  # Who has left does not ask for it.
                self.close()
            reader.release()
            # What has failed it knows this frame, and would know itself by it.
            self._done = None
            del done

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def fail(self, failed: PostFailed) -> None:
        """Fail the request that is under way, unless its answer is there."""
        if self._reader is not None and self._reader.complete:
            return
        if self._done is not None and not self._done.done():
            self._done.set_exception(failed)
        self.close()

    def _watch(self) -> None:
        """See to it that a request ends which takes too long, as a whole or in silence.

        The timer of an earlier one serves again: it looks what is due when it goes off.
        """
        due = min(self._deadline, self.heard + self._silence_s)
        if self._timer is not None and self._due <= due:
            return
        self._stop_timer()
        self._timer, self._due = self._loop.call_at(due, self._look), due

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._reader is None:
            return
        now = self._loop.time()
        if now >= self._deadline or now >= self.heard + self._silence_s:
            self.fail(PostFailed(FailureKind.TIMEOUT, "no answer in time"))
        else:
            self._watch()

    async def _write(
        self,
        head: bytes,
        body: Sequence[bytes | memoryview],
        size: int,
        done: asyncio.Future[EngineAnswer],
    ) -> bool:
        """Write a request; return false if its answer was there before its end."""
        transport = self._transport
        if transport is None:
            raise RuntimeError("the connection is not open")
        if size <= _COPIED_BYTES:
            transport.write(b"".join((head, *body)))
            return True
        transport.write(head)
        for part in body:
            view = memoryview(part)
            for start in range(0, len(view), _PIECE_BYTES):
                while self._resumed is not None and not self._closed and not done.done():
                    await asyncio.wait((self._resumed, done), return_when=asyncio.FIRST_COMPLETED)
                if done.done() or self._closed:
                    return False
                transport.write(view[start : start + _PIECE_BYTES])
        return True


def _describe_end(error: Exception | None) -> str:
    if error is None:
        return "the engine has closed the connection"
    return (
        f"the connection broke: {describe_failure(error)}"
        if isinstance(error, SSLError)
        else str(error)
    )
