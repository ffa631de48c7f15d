"""One request to an engine, and what is said of its answer."""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import msgspec

from pdrouter.engine_http.tls import EngineTls, describe_failure

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


@dataclass(frozen=True, slots=True)
class Asker:
    """Asks engines as the router would.

    Attributes:
        session: sends the requests.
        tls: how engines are spoken to; None for plain text.
    """

    session: aiohttp.ClientSession
    tls: EngineTls | None

    async def send(
        self,
        address: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        plain: bool = False,
    ) -> EngineReply:
        """Send a GET, or a POST with a body.

        Args:
            address: `ip:port` of the engine.
            path: path with query string.
            body: what is posted.
            headers: request headers.
            plain: whether that port speaks no TLS, though the one for requests does.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: there is no answer.
        """
        method, seconds = ("GET", _ASK_S) if body is None else ("POST", _TRIAL_S)
        scheme, name = "http", None
        context: ssl.SSLContext | bool = True
        if self.tls is not None and not plain:
            scheme = "https"
            context, name = self.tls.open(address.rpartition(":")[0].strip("[]"))
        url = f"{scheme}://{address}{path}"
        async with (
            asyncio.timeout(seconds),
            self.session.request(
                *(method, url),
                data=body,
                headers=headers,
                allow_redirects=False,
                ssl=context,
                server_hostname=name,
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
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        return describe_failure(cause) if isinstance(cause, OSError) else str(cause)
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, socket.gaierror):
            return f"the name is not resolved: {error.os_error.strerror}"
        return describe_failure(error.os_error)
    return str(error) or type(error).__name__
