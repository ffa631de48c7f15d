"""Reads one answer, which may come in any way, but not in one that keeps the loop busy."""

from collections.abc import Mapping

import httptools
import msgspec

from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress

MAX_INTERIM_ANSWERS = 20
"""Answers of status 1xx before the real one; engines give one, if any."""

_MAX_HEAD_BYTES = 64 * 1024
_LEAST_CHUNK_BYTES = 16
_CHUNK_FRAMING_BYTES = 64
_SMALL_CHUNKS = 2048
"""Chunks of an answer that may be smaller."""
_DRAINED_BYTES = 64 * 1024
"""What is kept of an answer that nobody hands on: it may say how long the prompt was."""
_LEAST_ERROR = 400
_BODILESS = (204, 304)
_SWITCHING_PROTOCOLS = 101


class EngineAnswer(msgspec.Struct, frozen=True):
    """An engine's HTTP answer, of any status.

    Attributes:
        status: its status.
        headers: its headers, names in lower case.
        body: its body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class AnswerReader:
    """Reads the answers on one connection, one after the other.

    Attributes:
        answer: the answer that is expected, once it is complete.
        reusable: whether another request may follow that one.
    """

    __slots__ = (
        "_body",
        "_bytes",
        "_chunks",
        "_fed_bytes",
        "_headers",
        "_interim",
        "_limit",
        "_parser",
        "_progress",
        "_status",
        "_until_end",
        "answer",
        "reusable",
    )

    def __init__(self, limit: int) -> None:
        """Begin before anything has come.

        Args:
            limit: bytes of the largest body that is read.
        """
        self._limit = limit
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._status = 0
        self._until_end = False
        self.reusable = False
        self.expect(None)

    def expect(self, progress: PostProgress | None) -> None:
        """Begin with the next answer.

        Args:
            progress: learns of its head.
        """
        self._progress = progress
        self._bytes = self._chunks = self._fed_bytes = self._interim = 0
        self.answer: EngineAnswer | None = None

    @property
    def begun(self) -> bool:
        """Whether a byte of the answer has come."""
        return self._fed_bytes > 0

    def feed(self, data: bytes) -> EngineAnswer | None:
        """Take what has come; return the answer, if it is complete now.

        Raises:
            PostFailed: it is no answer, or not one that is read.
        """
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            failed = _explain(error)
            if self.answer is None or not isinstance(failed, PostFailed):
                raise failed from None
            self.reusable = False  # Nobody has asked for what comes behind it.
        if self.answer is None:
            # The parser itself keeps a header or a trailer of any length.
            framing = self._fed_bytes - self._bytes
            if framing > _MAX_HEAD_BYTES + _CHUNK_FRAMING_BYTES * self._chunks:
                message = "the answer's head or trailers have no end"
                raise PostFailed(FailureKind.TRANSPORT, message)
        return self.answer

    def end(self) -> EngineAnswer | None:
        """Return the answer, if it is complete now that its connection is closed."""
        if self.answer is None and self._until_end:
            self._complete(reusable=False)
        return self.answer

    def release(self) -> None:
        """Let go of the parser, which refers to this: nothing more is read."""
        del self._parser

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.answer is not None:
            raise PostFailed(FailureKind.TRANSPORT, "another answer follows")
        self._headers = {}
        self._status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # A trailer: nobody asks for any.
        self._headers[name.decode("utf-8", "surrogateescape").lower()] = value.decode(
            "utf-8", "surrogateescape"
        )

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._pass_over(status)
            return
        self._status = status
        headers = self._headers
        encoding = headers.get("content-encoding")
        if encoding and encoding.strip().lower() not in ("", "identity"):
            message = "the answer is compressed, though not asked to"
            raise PostFailed(FailureKind.TRANSPORT, message)
        self._until_end = not (
            "content-length" in headers or "transfer-encoding" in headers or status in _BODILESS
        )
        if self._progress is not None:
            self._progress.note_head(status)

    def on_body(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._progress is not None and self._drains(self._progress):
            if self._bytes - len(piece) < _DRAINED_BYTES:
                self._body.append(piece)
        elif self._bytes > self._limit:
            message = f"the answer is larger than {self._limit} bytes"
            raise PostFailed(FailureKind.TOO_LARGE, message)
        else:
            self._body.append(piece)

    def on_chunk_header(self) -> None:
        # Each chunk costs time on the event loop.
        self._chunks += 1
        if self._chunks > _SMALL_CHUNKS + self._bytes // _LEAST_CHUNK_BYTES:
            message = f"the answer comes in chunks of less than {_LEAST_CHUNK_BYTES} bytes"
            raise PostFailed(FailureKind.TRANSPORT, message)

    def on_message_complete(self) -> None:
        if self._status:  # Else that was an interim answer.
            self._complete(reusable=self._parser.should_keep_alive())

    def _pass_over(self, status: int) -> None:
        if status == _SWITCHING_PROTOCOLS:
            raise PostFailed(FailureKind.TRANSPORT, "the engine switches protocols")
        self._interim += 1
        if self._interim > MAX_INTERIM_ANSWERS:
            message = f"more than {MAX_INTERIM_ANSWERS} interim answers"
            raise PostFailed(FailureKind.TRANSPORT, message)

    def _drains(self, progress: PostProgress) -> bool:
        return progress.drains and self._status < _LEAST_ERROR

    def _complete(self, *, reusable: bool) -> None:
        pieces, self._body = self._body, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._progress is not None and self._drains(self._progress):
            body = body[:_DRAINED_BYTES]
        self.answer = EngineAnswer(self._status, self._headers, body)
        self.reusable = reusable


def _explain(error: httptools.HttpParserError) -> Exception:
    """Return what is to be raised for an error of the parser, or of what it has called."""
    if not isinstance(error, httptools.HttpParserCallbackError):
        return PostFailed(FailureKind.TRANSPORT, f"this is no HTTP answer: {error}")
    cause = error.__context__
    return cause if isinstance(cause, PostFailed) else error
