"""Requests that no HTTP client library makes: frame by frame, or byte by byte."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from expectations import PATIENCE_S
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

Fields = Sequence[tuple[str, str]]

POST_CHAT: Fields = (
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", "/v1/chat/completions"),
    ("content-type", "application/json"),
)

# Frames as large as this need not be cut.
_FRAME = 10_000


async def send_frames(
    address: str, headers: Fields, *parts: bytes | Fields
) -> tuple[dict[str, str], bytes]:
    """Send a request over HTTP/2, and return its answer.

    Args:
        address: `host:port` of Envoy.
        headers: headers, pseudo headers first.
        parts: what follows: data as bytes, trailers as fields. The last one ends the stream.

    Raises:
        ConnectionResetError: there is no answer.
    """
    connection = H2Connection(H2Configuration(validate_outbound_headers=False))
    async with _connect(address) as (reader, writer):
        connection.initiate_connection()
        connection.send_headers(1, headers, end_stream=not parts)
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            if isinstance(part, bytes):
                for start in range(0, max(len(part), 1), _FRAME):
                    piece = part[start : start + _FRAME]
                    end = last and start + _FRAME >= len(part)
                    connection.send_data(1, piece, end_stream=end)
            else:
                connection.send_headers(1, part, end_stream=True)
        writer.write(connection.data_to_send())
        return await _read_answer(connection, reader, writer)


async def send_bytes(address: str, request: bytes) -> tuple[int, bytes]:
    """Send a request as bytes; return status and the rest of the answer.

    The request has to ask for the end of the connection, or Envoy has to end it.

    Raises:
        ConnectionResetError: there is no answer.
    """
    async with _connect(address) as (reader, writer):
        writer.write(request)
        answer = await reader.read()
    if not answer:
        raise ConnectionResetError("the connection ended without an answer")
    return int(answer.split(b" ", 2)[1]), answer


@asynccontextmanager
async def _connect(
    address: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def _read_answer(
    connection: H2Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[dict[str, str], bytes]:
    headers: dict[str, str] = {}
    body = b""
    while True:
        data = await reader.read(65_536)
        if not data:
            raise ConnectionResetError("the connection ended before the answer did")
        for event in connection.receive_data(data):
            match event:
                case ResponseReceived():
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                case DataReceived():
                    body += event.data
                case StreamEnded():
                    return headers, body
                case StreamReset() | ConnectionTerminated():
                    raise ConnectionResetError(f"{event}")
        writer.write(connection.data_to_send())
