"""Connections to engines, which may say anything, at any length, but not for ever."""

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


class TooManyInterimAnswers(aiohttp.ClientPayloadError):
    """An engine gives one interim answer after another."""


def create_connector(keepalive_s: float) -> aiohttp.TCPConnector:
    """Return a pool of connections to any number of engines.

    A request waits in the engine, where the load is seen, not for a connection.

    Args:
        keepalive_s: how long an idle connection is kept.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s)
    # aiohttp has no public way to name the protocol of its connections.
    connector._factory = partial(_connect, asyncio.get_running_loop())  # noqa: SLF001
    return connector


def _connect(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _EngineConnection(loop)


class _EngineConnection(ResponseHandler):
    """Reads answers, of which few are interim ones.

    Each interim answer costs time on the event loop and is dropped: until the head of the real one
    has come, what arrives is looked at in small pieces, so that few of them are read too many.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._interim = 0
        self._has_head = False

    def set_response_params(self, **params: Any) -> None:  # noqa: ANN401 - passed on
        """Begin with the answer to the next request."""
        self._interim = 0
        self._has_head = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Read what has arrived."""
        position = 0
        while not self._has_head and len(data) - position > _HEAD_PIECE_BYTES:
            super().data_received(data[position : position + _HEAD_PIECE_BYTES])
            position += _HEAD_PIECE_BYTES
            if self.exception() is not None:
                return
        super().data_received(data[position:] if position else data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take an answer whose head is complete."""
        if 100 <= data[0].code < 200 and data[0].code != 101:
            self._interim += 1
        else:
            self._has_head = True
        if self._interim <= MAX_INTERIM_ANSWERS:
            super().feed_data(data, size)
        elif self.exception() is None:
            message = f"more than {MAX_INTERIM_ANSWERS} interim answers"
            # In this order: to close forgets what was wrong.
            self.close()
            self.set_exception(TooManyInterimAnswers(message))
