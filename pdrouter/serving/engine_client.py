"""One POST to the engine of a side leg, over pooled connections."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import SimpleNamespace, TracebackType

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from pdrouter.load.engine_connections import create_connector
from pdrouter.openai.pieces import Pieces

# Up to this size, to copy a body costs less than to write it in pieces.
_SMALL_BODY_BYTES = 64 * 1024
_KEEPALIVE_S = 75.0


class FailureKind(StrEnum):
    """What went wrong between the router and an engine."""

    CONNECT = "connect"
    TRANSPORT = "transport"
    TIMEOUT = "timeout"
    STATUS = "status"
    TOO_LARGE = "too-large"


class EngineAnswer(msgspec.Struct, frozen=True):
    """An engine's HTTP answer, of any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class PostFailed(Exception):
    """There is no HTTP answer.

    Attributes:
        kind: what went wrong.
        stale: whether the connection had been used before and was closed without an answer: the
            engine had most likely closed it while it was idle.
    """

    def __init__(self, kind: FailureKind, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.stale = stale


@dataclass(slots=True)
class _Connection:
    reused: bool = False


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits of one POST.

    Attributes:
        connect_s: seconds to establish a connection.
        response_s: seconds without a byte of the answer.
        answer_bytes: size of the largest answer that is read.
    """

    connect_s: float
    response_s: float
    answer_bytes: int


@dataclass(slots=True)
class EngineClient:
    """HTTP client with keep-alive connections to every pod. Use as an async context manager."""

    limits: ClientLimits
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    async def __aenter__(self) -> "EngineClient":
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=create_connector(_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "pdrouter"},
            skip_auto_headers=("accept", "accept-encoding"),
            # Nobody asks for compressed answers; to unpack 2 MB of zeros takes 100 ms of the loop.
            auto_decompress=False,
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(
        self, address: str, path: str, headers: Mapping[str, str], body: Pieces, total_s: float
    ) -> EngineAnswer:
        """Send a request and read the whole answer. Cancelling closes the connection.

        Args:
            address: `ip:port` of the pod.
            path: path with query string.
            headers: request headers.
            body: request body.
            total_s: seconds for everything.

        Raises:
            PostFailed: there is no complete answer within the limits.
        """
        session = self._session
        if session is None:
            raise RuntimeError("the client is not open")
        connection = _Connection()
        try:
            async with session.post(
                URL(f"http://{address}{path}", encoded=True),
                data=bytes(body) if len(body) <= _SMALL_BODY_BYTES else _PiecesPayload(body),
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=total_s,
                    sock_connect=self.limits.connect_s,
                    sock_read=self.limits.response_s,
                    # By default, deadlines above 5 s end up to 1 s late.
                    ceil_threshold=math.inf,
                ),
                trace_request_ctx=connection,
            ) as response:
                return EngineAnswer(
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                    await self._read(response),
                )
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise PostFailed(FailureKind.CONNECT, str(error)) from None
        except TimeoutError:
            raise PostFailed(FailureKind.TIMEOUT, f"no answer from {address} in time") from None
        except aiohttp.ClientConnectionError as error:
            raise PostFailed(
                FailureKind.TRANSPORT, _describe(error), stale=connection.reused
            ) from None
        except aiohttp.ClientError as error:
            raise PostFailed(FailureKind.TRANSPORT, _describe(error)) from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            response.close()
            raise PostFailed(FailureKind.TRANSPORT, "the answer is compressed, though not asked to")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self.limits.answer_bytes:
                # Leaving the response unread closes its connection.
                response.close()
                message = f"the answer is larger than {self.limits.answer_bytes} bytes"
                raise PostFailed(FailureKind.TOO_LARGE, message)
        return bytes(body)


class _PiecesPayload(aiohttp.Payload):
    """Writes a body in pieces, as the engine takes them: there is no copy of it as a whole."""

    def __init__(self, body: Pieces) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text; nothing that is used here asks for it."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body."""
        for part in self._value.parts:
            view = memoryview(part)
            for start in range(0, len(view), _SMALL_BODY_BYTES):
                await writer.write(view[start : start + _SMALL_BODY_BYTES])


async def _note_reuse(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    del session, params
    context.trace_request_ctx.reused = True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
