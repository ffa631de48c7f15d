"""The gRPC port on our own HTTP/2 server: ext_proc streams, health, TLS, drain."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from pdrouter.extproc.http2.grpc_messages import RpcFailed, Status
from pdrouter.extproc.http2.health import CHECK_PATH, WATCH_PATH, Health
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.rpc_server import RpcServer
from pdrouter.extproc.http2.stream import END, Stream
from pdrouter.extproc.server import HEALTH_SERVICES, SERVICE, ReceiveStream, ServerOptions
from pdrouter.extproc.tls import FollowedTls
from pdrouter.extproc.wire import CreateExchange, OpenStreams, StreamCut

log = logging.getLogger(__name__)


class Http2Server:
    """Carries exchanges over our own HTTP/2.

    Attributes:
        port: the port that it listens on, once started.
        draining: whether it is about to end.
    """

    def __init__(
        self,
        create_exchange: CreateExchange,
        options: ServerOptions,
        services: Mapping[str, ReceiveStream],
    ) -> None:
        """Set up the server.

        Args:
            create_exchange: called for each stream.
            options: how to listen.
            services: what else is served on the port, by the paths of calls.
        """
        self._options = options
        self._streams = OpenStreams(create_exchange)
        self._health = Health(HEALTH_SERVICES)
        self._server = RpcServer(
            {
                f"/{SERVICE}/Process": self._process,
                CHECK_PATH: self._health.check,
                WATCH_PATH: self._health.watch,
                **{path: _serve(receive) for path, receive in services.items()},
            },
            Limits(message_bytes=options.max_message_bytes, keepalive_s=options.keepalive_s),
        )
        self.port = 0
        self.draining = False

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
            CertificatesInvalid: the files for TLS cannot be used.
        """
        options = self._options
        tls = None if options.tls is None else FollowedTls(options.tls).context
        self.port = await self._server.listen(options.host, options.port, tls)

    async def drain(self, lame_duck_s: float, drain_s: float) -> None:
        """Let open requests finish, then stop; see `GrpcioServer.drain`."""
        self.draining = True
        self._health.stop_serving()
        deadline = asyncio.get_running_loop().time() + drain_s
        await asyncio.sleep(min(lame_duck_s, drain_s))
        self._server.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._streams.wait_until_idle()
        if self._streams.count:
            log.warning("drain time is over, %d requests are cancelled", self._streams.count)
        await self.stop()

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
