"""The gRPC port on our own HTTP/2 server: ext_proc streams, health, TLS, drain."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from pdrouter.extproc.http2.grpc_messages import RpcFailed, Status
from pdrouter.extproc.http2.health import CHECK_PATH, WATCH_PATH, Health
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.rpc_server import RpcServer
from pdrouter.extproc.http2.stream import END, Stream
from pdrouter.extproc.server import HEALTH_SERVICES, SERVICE, ReceiveStream, Server, ServerOptions
from pdrouter.extproc.tls import FollowedTls
from pdrouter.extproc.wire import CreateExchange, StreamCut


class Http2Server(Server):
    """Carries exchanges over our own HTTP/2."""

    def __init__(
        self,
        create_exchange: CreateExchange,
        options: ServerOptions,
        services: Mapping[str, ReceiveStream],
    ) -> None:
        super().__init__(create_exchange, options)
        self._health = Health(HEALTH_SERVICES)
        self._server = RpcServer(
            {
                f"/{SERVICE}/Process": self._process,
                CHECK_PATH: self._health.check,
                WATCH_PATH: self._health.watch,
                **{path: _serve(receive) for path, receive in services.items()},
            },
            Limits(message_bytes=options.max_message_bytes, keepalive_s=options.keepalive_s),
            options.turns,
        )

    async def start(self) -> None:
        """Listen."""
        options = self._options
        tls = None if options.tls is None else FollowedTls(options.tls).context
        self.port = await self._server.listen(options.host, options.port, tls)

    async def _say_not_serving(self) -> None:
        self._health.stop_serving()

    @asynccontextmanager
    async def _refuse_streams(self, seconds: float) -> AsyncIterator[None]:
        del seconds  # Whoever drains knows when to stop.
        self._server.drain()
        yield

    async def stop(self) -> None:
        """Stop at once; what is open is cancelled."""
        await self._server.stop()

    async def _process(self, stream: Stream) -> None:
        try:
            await self._streams.carry(
                stream.read,
                stream.write,
                END,
                stream.ask_before_large,
                read_trace=lambda: stream.head.traceparent,
            )
        except StreamCut as cut:
            raise RpcFailed(Status.ABORTED, "a leg of the request has failed") from cut


def _serve(receive: ReceiveStream) -> Callable[[Stream], Awaitable[None]]:
    """Return what serves calls which stream to the server and get one answer."""

    async def serve(stream: Stream) -> None:
        await stream.write(await receive(stream.read, END))

    return serve
