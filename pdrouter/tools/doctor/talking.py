"""One request to an engine, and what is said of its answer."""

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

_T = TypeVar("_T")

_ASK_S = 10.0
_TRIAL_S = 60.0
_LARGEST = 16 * 1024 * 1024
_SHOWN = 300
OK = 200


@dataclass(frozen=True, slots=True)
class EngineReply:
    """An answer of any status."""

    status: int
    body: bytes


async def send(
    session: aiohttp.ClientSession,
    address: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> EngineReply:
    """Send a GET, or a POST with a body.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: there is no answer.
    """
    method, seconds = ("GET", _ASK_S) if body is None else ("POST", _TRIAL_S)
    async with (
        asyncio.timeout(seconds),
        session.request(
            method, f"http://{address}{path}", data=body, headers=headers, allow_redirects=False
        ) as response,
    ):
        content = bytearray()
        async for piece in response.content.iter_any():
            content += piece
            if len(content) > _LARGEST:
                raise aiohttp.ClientPayloadError(f"{path} is larger than {_LARGEST} bytes")
        return EngineReply(response.status, bytes(content))


def decode(data: bytes, kind: type[_T], default: _T) -> _T:
    """Return an answer, or a default if it is no such thing."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        return default


def show(answer: EngineReply) -> str:
    """Say what an engine answers, in one line."""
    text = " ".join(answer.body[:_SHOWN].decode(errors="replace").split())
    return f"it answers {answer.status}: {text}"


def describe(error: Exception) -> str:
    """Say why there was no answer, without what the libraries put around it."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, socket.gaierror):
            return f"the name is not resolved: {error.os_error.strerror}"
        number = error.os_error.errno
        return os.strerror(number) if number else str(error.os_error)
    return str(error) or type(error).__name__
