"""The router's gRPC port on this HTTP/2 server: what `pdrouter.extproc.server` is on grpcio."""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from contextlib import suppress

import grpc

from benchmarks.transports.http2.health import CHECK_PATH, WATCH_PATH, Health
from benchmarks.transports.http2.limits import Limits
from benchmarks.transports.http2.rpc_server import RpcServer
from benchmarks.transports.http2.stream import END, Stream
from pdrouter.extproc.server import HEALTH_SERVICES, SERVICE, ServerOptions
from pdrouter.extproc.tls import CertificatesInvalid, TlsFiles
from pdrouter.extproc.wire import CreateExchange, OpenStreams

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
        services: Sequence[grpc.GenericRpcHandler] = (),
    ) -> None:
        """Set up the server.

        Args:
            create_exchange: called for each stream.
            options: how to listen.
            services: none: those of the router are written for grpcio.

        Raises:
            ValueError: there are services.
        """
        if services:
            raise ValueError("only ext_proc and health are carried")
        self._options = options
        self._streams = OpenStreams(create_exchange)
        self._health = Health(HEALTH_SERVICES)
        self._server = RpcServer(
            {
                f"/{SERVICE}/Process": self._process,
                CHECK_PATH: self._health.check,
                WATCH_PATH: self._health.watch,
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
        choose_tls = None if options.tls is None else FollowedTls(options.tls).follow
        self.port = await self._server.listen(options.host, options.port, choose_tls)

    async def drain(self, lame_duck_s: float, drain_s: float) -> None:
        """Let open requests finish, then stop; see `ExtProcServer.drain`."""
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
        await self._streams.carry(stream.read, stream.write, END)


class FollowedTls:
    """The TLS of new connections, which follows the files when they change."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            CertificatesInvalid: they cannot be used now.
        """
        self._files = files
        self._current = files.read()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["h2"])
        if files.client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._load()

    def follow(self) -> ssl.SSLContext:
        """Return the context, with what is in the files now, or was when they were last good."""
        try:
            newest = self._files.read()
        except CertificatesInvalid as error:
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
            return self._context
        if newest != self._current:
            self._current = newest
            self._load()
            log.info("TLS certificates were replaced")
        return self._context

    def _load(self) -> None:
        files = self._files
        self._context.load_cert_chain(files.certificate, files.key, password="")
        if files.client_ca is not None:
            self._context.load_verify_locations(files.client_ca)
