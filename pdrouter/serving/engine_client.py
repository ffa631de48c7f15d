"""Requests to the engines of side legs, over pooled connections."""

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.client import ClientLimits, HttpClient
from pdrouter.engine_http.progress import PostProgress
from pdrouter.engine_http.tls import EngineTls
from pdrouter.openai.headers import RANK
from pdrouter.openai.pieces import Pieces
from pdrouter.turns import Turns

_KEEPALIVE_S = 75.0
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def address_rank(pod: Pod) -> Mapping[str, str]:
    """Return the header that says which rank behind a pod's address is meant, if there are any."""
    return _NO_HEADERS if pod.number is None else {RANK: str(pod.number)}


@dataclass(slots=True)
class EngineClient:
    """Asks engines. Use as an async context manager.

    Attributes:
        limits: limits of each request.
        tls: how engines are spoken to; None for plain text.
        turns: spreads what is ready at once; None for turns of its own.
    """

    limits: ClientLimits
    tls: EngineTls | None = None
    turns: Turns | None = None
    _http: HttpClient | None = field(default=None, init=False)

    async def __aenter__(self) -> "EngineClient":
        self._http = HttpClient(self.limits, _KEEPALIVE_S, self.tls, self.turns)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()

    def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: Pieces,
        total_s: float,
        *,
        progress: PostProgress | None = None,
        once: bool = False,
        fresh: bool = False,
        plain: bool = False,
    ) -> Coroutine[Any, Any, EngineAnswer]:
        """Send a request and read the whole answer. Cancelling closes the connection.

        Args:
            address: `ip:port` of the pod.
            path: path with query string.
            headers: request headers.
            body: request body.
            total_s: seconds for everything.
            progress: learns how far it comes; None if nobody needs to know.
            once: whether it must not be sent again where its connection was stale.
            fresh: whether it needs a connection that was used a moment ago, or a new one.
            plain: whether what listens there is no engine, and speaks no TLS.

        Raises:
            PostFailed: there is no complete answer within the limits.
        """
        return self._open.request(
            "POST",
            address,
            path,
            headers,
            body=body.parts,
            total_s=total_s,
            progress=progress,
            once=once,
            fresh=fresh,
            plain=plain,
        )

    def get(
        self, address: str, path: str, total_s: float, *, plain: bool = False
    ) -> Coroutine[Any, Any, EngineAnswer]:
        """Ask for something, and read the whole answer.

        Args:
            address: `ip:port` of the pod.
            path: path with query string.
            total_s: seconds for everything.
            plain: whether that port speaks no TLS, though the one for requests does.

        Raises:
            PostFailed: there is no complete answer within the limits.
        """
        return self._open.request(
            "GET", address, path, _NO_HEADERS, body=None, total_s=total_s, plain=plain
        )

    @property
    def _open(self) -> HttpClient:
        if self._http is None:
            raise RuntimeError("the client is not open")
        return self._http
