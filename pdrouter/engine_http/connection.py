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
    """

    __slots__ = (
        "_among",
        "_answer_bytes",
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
        "used",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        among: "set[Connection]",
        *,
        answer_bytes: int,
        silence_s: float,
    ) -> None:
        """Begin before it is open.

        Args:
            loop: the event loop.
            turns: spreads what answers wake.
            among: those that are open: it is one of them as long as it is.
            answer_bytes: size of the largest answer that is read.
            silence_s: seconds without a byte of one.
        """
        self._loop = loop
        self._turns = turns
        self._among = among
        self._answer_bytes = answer_bytes
        self._silence_s = silence_s
        self._transport: asyncio.Transport | None = None
        self._reader: AnswerReader | None = None
        self._done: asyncio.Future[EngineAnswer] | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._closed = False
        self._deadline = self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.heard = 0.0
        self.used = False

    @property
    def reusable(self) -> bool:
        """Whether it may take a request."""
        return self._done is None and not self._closed

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._reader = AnswerReader(self._answer_bytes)
        self._among.add(self)

    def data_received(self, data: bytes) -> None:
        """Read what has come of the answer."""
        reader, done = self._reader, self._done
        if reader is None or done is None or reader.answer is not None or done.done():
            self.close()  # Nobody has asked for anything.
            return
        self.heard = self._loop.time()
        try:
            answer = reader.feed(data)
        except PostFailed as failed:
            self.fail(failed)
            return
        if answer is not None:
            self._turns.resolve(done, answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request that is under way, unless the end of the connection ends its answer."""
        self._closed = True
        self._transport = None  # It refers to this connection, and so does its timer.
        self._stop_timer()
        self._among.discard(self)
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        reader, done = self._reader, self._done
        self._reader = None
        if reader is None:
            return
        if done is not None and reader.answer is None and not done.done():
            answer = reader.end() if error is None else None
            if answer is not None:
                self._turns.resolve(done, answer)
            else:
                stale = self.used and not reader.begun
                what = _describe_end(error)
                done.set_exception(PostFailed(FailureKind.TRANSPORT, what, stale=stale))
        reader.release()

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
        deadline: float,
        progress: PostProgress | None,
    ) -> EngineAnswer:
        """Send a request and read its answer. Cancelling closes the connection.

        Args:
            head: request line and headers.
            body: the body, in parts.
            size: how many bytes it has.
            deadline: when the answer must be complete, by the loop's clock.
            progress: learns how far it comes; None if nobody needs to know.

        Raises:
            PostFailed: there is no complete answer.
        """
        reader, transport = self._reader, self._transport
        if reader is None or transport is None:
            raise RuntimeError("the connection is not open")
        reader.expect(progress)
        done: asyncio.Future[EngineAnswer] = self._loop.create_future()
        self._done = done
        self.heard = self._loop.time()
        self._deadline = deadline
        self._watch()
        written = True
        try:
            if size <= _COPIED_BYTES:
                transport.write(b"".join((head, *body)))
            else:
                written = await self._write(transport, head, body, done)
            if progress is not None and written and not self._closed:
                progress.sent.set()
            answer = await done
            if written and reader.reusable:
                self.used = True
                self._done = None
            return answer
        finally:
            if self._done is not None:
                if not done.cancel() and not done.cancelled():
                    done.exception()  # Who has left does not ask for it.
                self.close()
            reader.answer = None
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
        if self._reader is not None and self._reader.answer is not None:
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
        if self._done is None:
            return
        now = self._loop.time()
        if now >= self._deadline or now >= self.heard + self._silence_s:
            self.fail(PostFailed(FailureKind.TIMEOUT, "no answer in time"))
        else:
            self._watch()

    async def _write(
        self,
        transport: asyncio.Transport,
        head: bytes,
        body: Sequence[bytes | memoryview],
        done: asyncio.Future[EngineAnswer],
    ) -> bool:
        """Write a large request; return false if its answer was there before its end."""
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
