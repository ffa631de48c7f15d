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
    """Reads the answer to one request.

    Attributes:
        begun: whether a byte of it has come.
        answer: the answer, once it is complete.
        reusable: whether another request may follow on its connection.
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
        "begun",
        "reusable",
    )

    def __init__(self, limit: int, progress: PostProgress | None) -> None:
        """Begin before anything has come.

        Args:
            limit: bytes of the largest body that is read.
            progress: learns of the answer's head.
        """
        self._limit = limit
        self._progress = progress
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._status = 0
        self._bytes = 0
        self._chunks = 0
        self._fed_bytes = 0
        self._interim = 0
        self._until_end = False
        self.begun = False
        self.answer: EngineAnswer | None = None
        self.reusable = False

    @property
    def complete(self) -> bool:
        """Whether the answer is there."""
        return self.answer is not None

    def feed(self, data: bytes) -> None:
        """Take what has come.

        Raises:
            PostFailed: it is no answer, or not one that is read.
        """
        self.begun = True
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            failed = _explain(error)
            if self.answer is None or not isinstance(failed, PostFailed):
                raise failed from None
            self.reusable = False  # Nobody has asked for what comes behind it.
            return
        # The parser itself keeps a header or a trailer of any length.
        framing = self._fed_bytes - self._bytes
        if self.answer is None and framing > _MAX_HEAD_BYTES + _CHUNK_FRAMING_BYTES * self._chunks:
            raise PostFailed(FailureKind.TRANSPORT, "the answer's head or trailers have no end")

    def end(self) -> bool:
        """Return whether the answer is complete now that its connection is closed."""
        if self.answer is None and self._until_end:
            self._complete(reusable=False)
        return self.answer is not None

    def release(self) -> None:
        """Let go of the parser, which refers to this: nothing more is read."""
        del self._parser

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.answer is not None:
            raise PostFailed(FailureKind.TRANSPORT, "another answer follows")

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
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
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
        if not self._status:
            self._headers.clear()  # That was an interim answer.
        else:
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
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
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
