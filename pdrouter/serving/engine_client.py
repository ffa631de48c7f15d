"""One POST to the engine of a side leg, over pooled connections."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType, SimpleNamespace, TracebackType

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from pdrouter.cluster.pods import Pod
from pdrouter.load.engine_connections import create_connector
from pdrouter.openai.headers import RANK
from pdrouter.openai.pieces import Pieces

# Up to this size, to copy a body costs less than to write it in pieces.
_SMALL_BODY_BYTES = 64 * 1024
_KEEPALIVE_S = 75.0
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_LEAST_ERROR = 400
_DRAINED_BYTES = 64 * 1024
"""What is kept of an answer that nobody hands on: it may say how long the prompt was."""


class FailureKind(StrEnum):
    """What went wrong between the router and an engine."""

    CONNECT = "connect"
    TRANSPORT = "transport"
    TIMEOUT = "timeout"
    STATUS = "status"
    TOO_LARGE = "too-large"


def address_rank(pod: Pod) -> Mapping[str, str]:
    """Return the header that says which rank behind a pod's address is meant, if there are any."""
    return {} if pod.number is None else {RANK: str(pod.number)}


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


class PostProgress:
    """How far a POST has come, for whoever must act before its answer is complete.

    Attributes:
        sent: set once the whole request is written to an open connection.
        answered: set once the head of the answer is there.
        status: that answer's status; 0 before.
        drains: whether a good answer is read for its end alone: nothing of a large one is needed.
    """

    __slots__ = ("_unsent", "answered", "drains", "sent", "status")

    def __init__(self, *, drains: bool = False) -> None:
        """Begin before anything is sent.

        Args:
            drains: whether a good answer is read for its end alone.
        """
        self.drains = drains
        self.sent = asyncio.Event()
        self.answered = asyncio.Event()
        self.status = 0
        self._unsent = 0

    def expect(self, body_bytes: int) -> None:
        """Note the size of the body that is to be written."""
        self._unsent = body_bytes

    def note_sent(self, count: int) -> None:
        """Note that so many bytes of the body are written."""
        self._unsent -= count
        if self._unsent <= 0:
            self.sent.set()

    def note_head(self, status: int) -> None:
        """Note the head of the answer; an engine may give it before it has read the request."""
        self.status = status
        self.sent.set()
        self.answered.set()


@dataclass(slots=True)
class _Connection:
    progress: PostProgress | None
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
    _watched: aiohttp.ClientSession | None = field(default=None, init=False)

    async def __aenter__(self) -> "EngineClient":
        trace, watching = aiohttp.TraceConfig(), aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        watching.on_request_chunk_sent.append(_note_sent)
        connector = create_connector(_KEEPALIVE_S)
        self._session = _create_session(connector, trace)
        # To be told of what is written costs time, and few requests need it.
        self._watched = _create_session(connector, trace, watching)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sessions = (self._watched, self._session)
        self._watched = self._session = None
        for session in sessions:
            if session is not None:
                await session.close()

    async def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: Pieces,
        total_s: float,
        *,
        progress: PostProgress | None = None,
    ) -> EngineAnswer:
        """Send a request and read the whole answer. Cancelling closes the connection.

        Args:
            address: `ip:port` of the pod.
            path: path with query string.
            headers: request headers.
            body: request body.
            total_s: seconds for everything.
            progress: learns how far it comes; None if nobody needs to know.

        Raises:
            PostFailed: there is no complete answer within the limits.
        """
        session = self._session if progress is None else self._watched
        connection = _Connection(progress)
        if progress is not None:
            progress.expect(len(body))
        data = bytes(body) if len(body) <= _SMALL_BODY_BYTES else _PiecesPayload(body)
        return await self._send(
            session,
            "POST",
            address + path,
            headers=headers,
            data=data,
            total_s=total_s,
            connection=connection,
        )

    async def get(self, address: str, path: str, total_s: float) -> EngineAnswer:
        """Ask for something, and read the whole answer.

        Args:
            address: `ip:port` of the pod.
            path: path with query string.
            total_s: seconds for everything.

        Raises:
            PostFailed: there is no complete answer within the limits.
        """
        return await self._send(
            self._session,
            "GET",
            address + path,
            headers=_NO_HEADERS,
            data=None,
            total_s=total_s,
            connection=_Connection(None),
        )

    async def _send(
        self,
        session: aiohttp.ClientSession | None,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes | aiohttp.Payload | None,
        total_s: float,
        connection: _Connection,
    ) -> EngineAnswer:
        if session is None:
            raise RuntimeError("the client is not open")
        try:
            async with session.request(
                method,
                URL(f"http://{url}", encoded=True),
                data=data,
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
                drains = False
                if connection.progress is not None:
                    connection.progress.note_head(response.status)
                    drains = connection.progress.drains and response.status < _LEAST_ERROR
                return EngineAnswer(
                    response.status,
                    {name.lower(): value for name, value in response.headers.items()},
                    await self._read(response, drains=drains),
                )
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise PostFailed(FailureKind.CONNECT, str(error)) from None
        except TimeoutError:
            raise PostFailed(FailureKind.TIMEOUT, f"no answer from {url} in time") from None
        except aiohttp.ClientConnectionError as error:
            raise PostFailed(
                FailureKind.TRANSPORT, _describe(error), stale=connection.reused
            ) from None
        except aiohttp.ClientError as error:
            raise PostFailed(FailureKind.TRANSPORT, _describe(error)) from None

    async def _read(self, response: aiohttp.ClientResponse, *, drains: bool) -> bytes:
        """Read an answer. Of one that is read for its end only the beginning is kept."""
        if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            response.close()
            raise PostFailed(FailureKind.TRANSPORT, "the answer is compressed, though not asked to")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if drains:
                del body[_DRAINED_BYTES:]
            elif len(body) > self.limits.answer_bytes:
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


def _create_session(
    connector: aiohttp.TCPConnector, *traces: aiohttp.TraceConfig
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"user-agent": "pdrouter"},
        skip_auto_headers=("accept", "accept-encoding"),
        # Nobody asks for compressed answers; to unpack 2 MB of zeros takes 100 ms of the loop.
        auto_decompress=False,
        trace_configs=list(traces),
    )


async def _note_sent(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceRequestChunkSentParams,
) -> None:
    del session
    context.trace_request_ctx.progress.note_sent(len(params.chunk))


async def _note_reuse(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    del session, params
    context.trace_request_ctx.reused = True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
