"""A Kubernetes API server in the test's own event loop."""

import asyncio
import json
import ssl
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from aiohttp import web

from .calls import Call, SeenRequest
from .connections import reset, until_client_leaves
from .deployments import DeploymentController
from .discovery import describe
from .failures import ApiError
from .faults import Cut, Delay, Faults, Hang, Refuse
from .kinds import Kinds
from .objects import Json
from .representations import Form
from .resource_api import ResourceApi
from .store import Store
from .watches import OpenWatch, Watches, WatchStream, WatchTiming

_GZIP_ABOVE_BYTES = 128 * 1024
_STOP_S = 5


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the server shows to its clients (PEM files).

    Attributes:
        cert: its certificate.
        key: the private key.
        ca: the authority that kubeconfig tells clients to trust.
    """

    cert: Path
    key: Path
    ca: Path

    def context(self) -> ssl.SSLContext:
        """The server's side of TLS."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        return context


class FakeApiServer:
    """A kube-apiserver for tests, on a free port of the loopback address.

    Behaves as measured with a real one wherever a client could tell, except that it knows no
    schemas (an unknown field is stored), no admission and no RBAC. Use it as an async context
    manager.

    Args:
        absent: plurals that are not installed; their paths are unknown, as without the CRD.
        token: the bearer token that requests must carry; None asks for none.
        certificate: serves TLS with it; None serves plain HTTP.
        bookmark_interval: seconds between bookmarks of a watch.
        final_bookmarks: seconds before the end of a watch at which it sends one more.
        transition: which state of an object a DELETED event carries when labels leave the selector.
        termination_delay: seconds from a graceful deletion to the object's end; None is the whole
            grace period.
        gzip: whether large lists are compressed for clients that accept it.

    Attributes:
        store: the objects.
        faults: what goes wrong with the next requests.
        watches: those that clients have open.
        requests: what clients asked for, oldest first.
        token: the bearer token that requests must carry from now on.
        host: the address it listens on.
        port: the port it listens on.
    """

    def __init__(
        self,
        *,
        absent: Collection[str] = (),
        token: str | None = None,
        certificate: Certificate | None = None,
        bookmark_interval: float = 60,
        final_bookmarks: tuple[float, ...] = (2, 1),
        transition: Literal["new", "previous"] = "new",
        termination_delay: float | None = None,
        gzip: bool = False,
    ) -> None:
        self.store = Store(Kinds(absent), self._schedule, termination_delay)
        self.faults = Faults()
        self.watches = Watches()
        self.requests: list[SeenRequest] = []
        self.token = token
        self.host = "127.0.0.1"
        self.port = 0
        self._certificate = certificate
        self._timing = WatchTiming(bookmark_interval, final_bookmarks)
        self._transition: Literal["new", "previous"] = transition
        self._gzip = gzip
        self._api = ResourceApi(self.store)
        self._timers: set[asyncio.TimerHandle] = set()
        self._controller: DeploymentController | None = None
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"{'https' if self._certificate else 'http'}://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._controller is not None:
            self._controller.stop()
        for timer in self._timers:
            timer.cancel()
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before if it did before."""
        loop = asyncio.get_running_loop()
        self._web = web.Server(self._handle, handler_cancellation=True, access_log=None)
        context = self._certificate.context() if self._certificate else None
        self._listener = await loop.create_server(self._web, self.host, self.port, ssl=context)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset all connections and refuse new ones; the objects stay."""
        if self._listener is None or self._web is None:
            return
        self._listener.close()
        for connection in self._web.connections:
            reset(connection.transport)
        await self._web.shutdown(_STOP_S)
        self._listener = self._web = None

    async def restart(self, certificate: Certificate | None = None) -> None:
        """Stop, and come back with an empty watch cache, perhaps with another certificate."""
        await self.stop()
        self.store.history.cool_watch_cache()
        self._certificate = certificate or self._certificate
        await self.start()

    async def roll_back(self, resource_version: int) -> None:
        """Come back with the objects and the counter of an earlier version: etcd was restored."""
        await self.stop()
        self.store.roll_back(resource_version)
        await self.start()

    def run_deployments(
        self, allocate_ip: Callable[[Json], str], *, rolling: bool = False
    ) -> DeploymentController:
        """Keep pods for every Deployment until the server ends; see `DeploymentController`."""
        self._controller = DeploymentController(self.store, allocate_ip, rolling=rolling)
        self._controller.start()
        return self._controller

    def count(self, verb: str | None = None, resource: str | None = None, **query: str) -> int:
        """How many requests came in with this verb, for this plural, with these parameters."""
        return sum(
            verb in (None, seen.verb)
            and resource in (None, seen.resource)
            and query.items() <= seen.query.items()
            for seen in self.requests
        )

    def write_kubeconfig(self, path: Path, *, namespace: str = "default") -> Path:
        """Write a configuration with which kubectl and client libraries find this server."""
        cluster: Json = {"server": self.url}
        if self._certificate:
            cluster["certificate-authority"] = str(self._certificate.ca)
        context = {"cluster": "fake", "user": "fake", "namespace": namespace}
        user = {} if self.token is None else {"token": self.token}
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fake", "cluster": cluster}],
            "users": [{"name": "fake", "user": user}],
            "contexts": [{"name": "fake", "context": context}],
            "current-context": "fake",
        }
        path.write_text(json.dumps(configuration), encoding="utf-8")
        path.chmod(0o600)
        return path

    def _schedule(self, delay: float, function: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            function()

        timer = asyncio.get_running_loop().call_later(delay, run)
        self._timers.add(timer)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        query = dict(request.rel_url.query)
        call = Call.parse(self.store.kinds, request.method, request.path, query)
        self.requests.append(
            SeenRequest(
                verb=call.verb,
                resource=call.resource,
                namespace=call.namespace,
                name=call.name,
                method=request.method,
                path=request.path,
                query=query,
                headers={name.lower(): value for name, value in request.headers.items()},
            )
        )
        cut_after = None
        try:
            match self.faults.take(call.verb, call.resource):
                case Refuse(error):
                    raise error()
                case Hang():
                    await until_client_leaves()
                case Delay(seconds):
                    await asyncio.sleep(seconds)
                case Cut(after_bytes):
                    cut_after = after_bytes
            self._authenticate(request)
            response = await self._answer(request, call, cut_after)
        except ApiError as error:
            response = _refusal(error)
        if cut_after is not None and isinstance(response, web.Response):
            await _send_cut(request, response, cut_after)
        return response

    async def _answer(
        self, request: web.BaseRequest, call: Call, cut_after: int | None
    ) -> web.StreamResponse:
        if call.verb == "discovery":
            return _discovered(describe(self.store.kinds, request.path))
        if call.kind is None:
            return _discovered(None)
        if call.verb == "watch":
            return await self._watch(request, call, cut_after)
        response = await self._api.answer(request, call, call.kind)
        body, accepted = response.body, request.headers.get("Accept-Encoding", "")
        is_large = isinstance(body, bytes) and len(body) > _GZIP_ABOVE_BYTES
        if self._gzip and is_large and "gzip" in accepted:
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def _watch(
        self, request: web.BaseRequest, call: Call, cut_after: int | None
    ) -> web.StreamResponse:
        watch = OpenWatch(call, dict(request.rel_url.query))
        form = Form.accepted(request.headers.get("Accept", ""))
        stream = WatchStream(self.store, watch, form, self._timing, self._transition, cut_after)
        self.watches.add(watch)
        try:
            return await stream.serve(request)
        finally:
            self.watches.remove(watch)

    def _authenticate(self, request: web.BaseRequest) -> None:
        if self.token is None or request.path in ("/healthz", "/livez", "/readyz"):
            return
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            raise ApiError(401, "Unauthorized")


def _refusal(error: ApiError) -> web.Response:
    response = web.Response(
        body=msgspec.json.encode(error.status),
        status=error.code,
        content_type="application/json",
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def _discovered(described: Json | str | None) -> web.Response:
    if described is None:
        return web.Response(text="404 page not found\n", status=404)
    if isinstance(described, str):
        return web.Response(text=described)
    return web.Response(body=msgspec.json.encode(described), content_type="application/json")


async def _send_cut(request: web.BaseRequest, response: web.Response, after_bytes: int) -> None:
    """Send the head of a response and a part of its body, then reset the connection."""
    body: Any = response.body or b""
    partial = web.StreamResponse(status=response.status, headers=response.headers)
    partial.content_length = len(body)
    await partial.prepare(request)
    await partial.write(body[:after_bytes])
    reset(request.transport)
    await until_client_leaves()
