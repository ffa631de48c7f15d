"""Connections to engines, which may answer in any way, but not in one that keeps the loop busy."""

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

MAX_INTERIM_ANSWERS = 20
"""Answers of status 1xx before the real one; engines give one, if any."""
_HEAD_PIECE_BYTES = 1024
_LEAST_CHUNK_BYTES = 16
_SMALL_CHUNKS = 2048
"""Chunks of an answer that may be smaller."""


class AnswerRefused(aiohttp.ClientPayloadError):
    """An engine answers in a way that costs far more than its answer is worth."""


def create_connector(keepalive_s: float | None) -> aiohttp.TCPConnector:
    """Return a pool of connections to any number of engines.

    A request waits in the engine, where the load is seen, not for a connection.

    Args:
        keepalive_s: how long an idle connection is kept; None to use each once.
    """
    connector = (
        aiohttp.TCPConnector(limit=0, force_close=True)
        if keepalive_s is None
        else aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s)
    )
    # aiohttp has no public way to name the protocol of its connections.
    connector._factory = partial(_connect, asyncio.get_running_loop())  # noqa: SLF001
    return connector


def _connect(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _EngineConnection(loop)


class _EngineConnection(ResponseHandler):
    """Reads answers, of which few are interim ones, and none is in chunks of a few bytes.

    Each interim answer, and each chunk, costs time on the event loop. Until the head of the real
    answer has come, what arrives is read in small pieces, so that few answers are read too many.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._has_head = False
        self._chunked = False
        self._bytes = 0
        self._line_ends = 0

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401 - passed on
        """Begin with the answer to the next request."""
        self._interim = 0
        self._has_head = self._chunked = False
        self._bytes = self._line_ends = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        position = 0
        while not self._has_head and len(data) - position > _HEAD_PIECE_BYTES:
            super().data_received(data[position : position + _HEAD_PIECE_BYTES])
            position += _HEAD_PIECE_BYTES
            if self.exception() is not None:
                return
        rest = data[position:] if position else data
        if self._chunked and self._has_small_chunks(rest):
            self._refuse(f"chunks of less than {_LEAST_CHUNK_BYTES} bytes")
        else:
            super().data_received(rest)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take an answer whose head is complete."""
        if 100 <= data[0].code < 200 and data[0].code != 101:
            self._interim += 1
        else:
            self._has_head = True
            self._chunked = data[0].chunked
        if self._interim <= MAX_INTERIM_ANSWERS:
            super().feed_data(data, size)
        elif self.exception() is None:
            self._refuse(f"more than {MAX_INTERIM_ANSWERS} interim answers")

    def _refuse(self, message: str) -> None:
        refused = AnswerRefused(message)
        if self._payload is not None:
            self._payload.set_exception(refused)
        # In this order: to close forgets what was wrong.
        self.close()
        self.set_exception(refused)

    def _has_small_chunks(self, data: bytes) -> bool:
        """Return whether chunks are so small that to read them costs far more than other answers.

        There are two line ends to a chunk; in JSON and in metrics there are none.
        """
        self._bytes += len(data)
        self._line_ends += data.count(b"\r\n")
        return self._line_ends > 2 * (_SMALL_CHUNKS + self._bytes // _LEAST_CHUNK_BYTES)
