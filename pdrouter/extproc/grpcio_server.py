"""The gRPC port on grpcio: ext_proc streams, health, TLS, drain."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from pdrouter.extproc.server import HEALTH_SERVICES, SERVICE, ReceiveStream, Server, ServerOptions
from pdrouter.extproc.tls import TlsFiles
from pdrouter.extproc.wire import CreateExchange, StreamCut
from pdrouter.pem_files import CertificatesInvalid

log = logging.getLogger(__name__)

_grpcios_log = logging.getLogger("grpc._cython.cygrpc")
_MAX_PENDING_STREAMS = 1_000_000
_MARGIN_S = 3600


class GrpcioServer(Server):
    """Carries exchanges over gRPC's own server."""

    def __init__(
        self,
        create_exchange: CreateExchange,
        options: ServerOptions,
        services: Mapping[str, ReceiveStream],
    ) -> None:
        super().__init__(create_exchange, options)
        _grpcios_log.addFilter(_is_no_cancellation)
        self._health = HealthServicer()
        self._server: Any = grpc.aio.server(options=_list_channel_options(options))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    # Without serializers, messages stay bytes: the codec is faster.
                    {"Process": grpc.stream_stream_rpc_method_handler(self._process)},
                ),
                *(_describe_service(path, receive) for path, receive in services.items()),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> None:
        """Listen."""
        host, port = self._options.host, self._options.port
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self._options.tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                credentials = _create_credentials(self._options.tls)
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        for service in HEALTH_SERVICES:
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def _say_not_serving(self) -> None:
        await self._health.enter_graceful_shutdown()

    @asynccontextmanager
    async def _refuse_streams(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            # The server's stop ends this one. If its grace ended at that very moment, gRPC would
            # touch the server after its destruction, and crash.
            tasks.create_task(self._server.stop(seconds + _MARGIN_S))
            yield

    async def stop(self) -> None:
        """Stop at once; what is open is cancelled."""
        await self._server.stop(None)

    async def _process(self, requests: AsyncIterator[bytes], context: Any) -> None:  # noqa: ANN401 - grpc has no types
        del requests  # The context's own reader costs less.
        try:
            await self._streams.carry(
                context.read, context.write, grpc.aio.EOF, read_trace=lambda: _read_trace(context)
            )
        except StreamCut:
            await context.abort(grpc.StatusCode.ABORTED, "a leg of the request has failed")


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Return whether a record of grpcio's is about something else than a stream that was cancelled.

    Where that comes before the stream's task has begun, or while it ends, grpcio says that an
    exception was not handled; it is nobody's fault.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def _read_trace(context: Any) -> str:  # noqa: ANN401 - grpc has no types
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get("traceparent", ""))


def _list_channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    keepalive_ms = int(options.keepalive_s * 1000)
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        # A reply holds a body that was received, with what an engine has added to it.
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        # Envoy may probe idle connections as often as it is configured to.
        ("grpc.http2.max_ping_strikes", 0),
        # A burst waits its turn: by default, gRPC refuses streams at random while more than 1,000
        # are new. Envoy's circuit breaker is the place for a limit.
        ("grpc.server.max_pending_requests", _MAX_PENDING_STREAMS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_STREAMS),
        # Two processes that share a port by accident would each get a part of the connections.
        ("grpc.so_reuseport", 0),
    ]


def _describe_service(path: str, receive: ReceiveStream) -> grpc.GenericRpcHandler:
    """Return what serves calls of one path, which stream to the server and get one answer."""

    async def serve(requests: AsyncIterator[bytes], context: Any) -> bytes:  # noqa: ANN401 - grpc has no types
        del requests  # The context's own reader costs less.
        return await receive(context.read, grpc.aio.EOF)

    service, method = path.strip("/").split("/")
    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
        service, {method: grpc.stream_unary_rpc_method_handler(serve)}
    )
    return handler


def _create_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow the files: each new connection gets what is in them then.

    Raises:
        CertificatesInvalid: the files cannot be used now. Later, files that cannot be used leave
            the last good ones in use.
    """
    current = files.read()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current
        try:
            newest = files.read()
        except CertificatesInvalid as error:
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
            return None
        if newest == current:
            return None
        current = newest
        log.info("TLS certificates were replaced")
        return _configure_tls(newest)

    return grpc.dynamic_ssl_server_credentials(
        _configure_tls(current), fetch, require_client_authentication=files.client_ca is not None
    )


def _configure_tls(
    contents: tuple[bytes, bytes, bytes | None],
) -> grpc.ServerCertificateConfiguration:
    certificate, key, client_ca = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)
