"""A client with pooled connections to any number of engines."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.connection import Connection
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engine_http.sockets import Sockets
from pdrouter.engine_http.tls import EngineTls, describe_failure
from pdrouter.turns import Turns

SURELY_OPEN_S = 1.0
"""For how long after its last answer an engine does not close a connection for being idle: vLLM and
SGLang wait 5 s by default."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits of one request.

    Attributes:
        connect_s: seconds to establish a connection.
        response_s: seconds without a byte of the answer.
        answer_bytes: size of the largest answer that is read.
    """

    connect_s: float
    response_s: float
    answer_bytes: int


class HttpClient:
    """Sends requests. A request waits in the engine, where load is seen, not for a connection."""

    def __init__(
        self,
        limits: ClientLimits,
        keepalive_s: float,
        tls: EngineTls | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Begin without connections.

        Args:
            limits: limits of each request.
            keepalive_s: how long an idle connection is kept.
            tls: how connections are encrypted; None if they are not.
            turns: spreads what is ready at once; None for turns of its own.
        """
        self._limits = limits
        self._keepalive_s = keepalive_s
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._idle: defaultdict[str, list[Connection]] = defaultdict(list)
        self._closed = False
        self._turns = turns or Turns()
        self._sockets = Sockets(self._loop, self._turns)
        self._sweeping = self._loop.call_later(keepalive_s, self._sweep)

    async def request(
        self,
        method: str,
        address: str,
        path: str,
        headers: Mapping[str, str],
        *,
        body: Sequence[bytes | memoryview] | None,
        total_s: float,
        progress: PostProgress | None = None,
        once: bool = False,
        fresh: bool = False,
        plain: bool = False,
    ) -> EngineAnswer:
        """Send a request and read the whole answer. Cancelling closes the connection.

        Args:
            method: the method.
            address: `ip:port`, an IPv6 address in brackets.
            path: path with query string.
            headers: request headers, without those of the body's framing.
            body: request body in parts; None for none.
            total_s: seconds for everything.
            progress: learns how far it comes; None if nobody needs to know.
            once: whether it must not be sent again, should the engine have closed the connection.
            fresh: whether it needs a connection that was used a moment ago, or a new one, since
                nobody will send it again.
            plain: whether what listens there speaks no TLS, though engines do.

        Raises:
            PostFailed: there is no complete answer within the limits.
            ValueError: a header cannot be sent.
        """
        size = sum(map(len, body)) if body else 0
        head = _write_head(method, address, path, headers, None if body is None else size)
        now = self._loop.time()
        deadline = now + total_s
        connection = self._take(address, now, SURELY_OPEN_S if fresh else self._keepalive_s)
        while True:
            if connection is None:
                connection = await self._connect(address, deadline, plain=plain)
            try:
                return await connection.send(head, body or (), size, deadline, progress)
            except PostFailed as failed:
                if once or not failed.stale:
                    raise
            finally:
                if connection.reusable:
                    self._idle[address].append(connection)
            connection = None

    def close(self) -> None:
        """Close all connections; requests that are under way fail."""
        self._closed = True
        self._sweeping.cancel()
        for connection in list(self._open):
            connection.close()
        self._idle.clear()
        self._sockets.close()

    def _take(self, address: str, now: float, idle_s: float) -> Connection | None:
        """Return the connection that was used last; None if that is longer ago.

        Args:
            address: where it leads to.
            now: the time, by the loop's clock.
            idle_s: seconds for which it may have been idle.
        """
        idle = self._idle.get(address)
        while idle:
            connection = idle[-1]
            if connection.reusable and connection.heard > now - self._keepalive_s:
                return idle.pop() if connection.heard > now - idle_s else None
            idle.pop().close()
        return None

    async def _connect(self, address: str, deadline: float, *, plain: bool) -> Connection:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        limits = self._limits
        connection = Connection(
            self._loop,
            self._turns,
            self._open,
            answer_bytes=limits.answer_bytes,
            silence_s=limits.response_s,
        )
        limit = self._loop.time() + limits.connect_s
        try:
            async with asyncio.timeout_at(min(limit, deadline)):
                if plain or self._tls is None:
                    await self._sockets.connect(host, int(port), connection)
                else:
                    context, name = self._tls.open(host)
                    await self._loop.create_connection(
                        lambda: connection, host, int(port), ssl=context, server_hostname=name
                    )
        except TimeoutError:
            kind = FailureKind.CONNECT if limit <= deadline else FailureKind.TIMEOUT
            raise PostFailed(kind, f"no connection to {address} in time") from None
        except OSError as error:
            message = f"cannot connect to {address}: {describe_failure(error)}"
            raise PostFailed(FailureKind.CONNECT, message) from error
        if self._closed:
            connection.close()
            raise PostFailed(FailureKind.CONNECT, "the client is closed")
        return connection

    def _sweep(self) -> None:
        """Close connections that nobody has used for long."""
        oldest = self._loop.time() - self._keepalive_s
        for address, idle in list(self._idle.items()):
            kept = []
            for connection in idle:
                if connection.reusable and connection.heard > oldest:
                    kept.append(connection)
                else:
                    self._turns.put_off(connection.close)
            if kept:
                self._idle[address] = kept
            else:
                del self._idle[address]
        self._sweeping = self._loop.call_later(self._keepalive_s, self._sweep)


def _write_head(
    method: str,
    address: str,
    path: str,
    headers: Mapping[str, str],
    body_bytes: int | None,
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"host: {address}", "user-agent: pdrouter"]
    lines += map(": ".join, headers.items())
    if body_bytes is not None:
        lines.append(f"content-length: {body_bytes}")
    text = "".join(lines)
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a header holds the end of a line")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
