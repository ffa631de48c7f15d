"""The router's gRPC port as an ASGI application under granian, whose HTTP/2 is hyper's, in Rust.

ASGI as granian has it knows no trailers, and gRPC ends a call by them: a call that the server ends
has no status, and its client takes that for an error. Envoy ends ext_proc streams itself, and so
seldom sees it. A status without messages can be sent, in the headers of the response.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP2Settings
from granian.server.embed import Server

from benchmarks.transports.http2.grpc_messages import (
    MessageReader,
    RpcFailed,
    Status,
    encode_message,
)
from pdrouter.extproc.server import SERVICE, ServerOptions
from pdrouter.extproc.tls import TlsFiles
from pdrouter.extproc.wire import CreateExchange, OpenStreams

log = logging.getLogger(__name__)

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]

_PATH: Final = f"/{SERVICE}/Process"
_GRPC: Final = (b"content-type", b"application/grpc")
_OPEN: Final = {"type": "http.response.start", "status": 200, "headers": [_GRPC]}
_CLOSE: Final = {"type": "http.response.body", "body": b"", "more_body": False}
_STREAMS = 10_000
_WINDOW_BYTES = 2**20
_CONNECTION_WINDOW_BYTES = 2**24
_HEADER_LIST_BYTES = 64 * 2**10
_PATIENCE_S = 5.0
_POLL_S = 0.01


class GranianServer:
    """Carries exchanges over ASGI.

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
        self._granian: Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0
        self.draining = False

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
            CertificatesInvalid: the files for TLS cannot be used.
        """
        options = self._options
        # Granian does not tell which port it got, and shares one that is taken.
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        with socket.create_server((options.host, options.port), family=family) as probe:
            self.port = probe.getsockname()[1]
        self._granian = _create_granian(self._application, self.port, options)
        self._serving = asyncio.get_running_loop().create_task(self._granian.serve())
        async with asyncio.timeout(_PATIENCE_S):
            while not await _is_listening(options.host, self.port):
                await asyncio.sleep(_POLL_S)

    async def drain(self, lame_duck_s: float, drain_s: float) -> None:
        """Let open requests finish, then stop. New ones are served until then: granian cannot
        refuse them, nor ask its clients for no more."""
        self.draining = True
        try:
            async with asyncio.timeout(drain_s):
                await asyncio.sleep(lame_duck_s)
                await self._streams.wait_until_idle()
        except TimeoutError:
            log.warning("drain time is over, %d requests are cancelled", self._streams.count)
        await self.stop()

    async def stop(self) -> None:
        """Stop at once; what is open is cancelled."""
        if self._granian is None or self._serving is None:
            return
        self._granian.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait((self._serving,), timeout=_PATIENCE_S)
        self._serving.cancel()
        with suppress(asyncio.CancelledError):
            await self._serving

    async def _application(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] != _PATH:
            await _refuse(send, Status.UNIMPLEMENTED)
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("granian runs an application in a task")
        call = Call(send, MessageReader(self._options.max_message_bytes), task)
        pump = asyncio.get_running_loop().create_task(call.pump(receive))
        try:
            await self._streams.carry(call.read, call.write, None)
            await call.close()
        except RpcFailed as failed:
            if call.opened:
                await send(_CLOSE)
            else:
                await _refuse(send, failed.status)
        except asyncio.CancelledError:
            if not call.left:  # Otherwise it was the pump's, for this call only.
                raise
        finally:
            pump.cancel()


@dataclass(slots=True)
class Call:
    """One call: ASGI's events on one side, messages on the other.

    Attributes:
        send: sends an event.
        messages: puts messages together.
        task: what answers the call.
        opened: whether the response has begun.
        ended: whether the peer has sent all.
        left: whether the peer has gone.
    """

    send: Send
    messages: MessageReader
    task: asyncio.Task[Any]
    opened: bool = False
    ended: bool = False
    left: bool = False
    _reader: asyncio.Future[None] | None = None

    async def pump(self, receive: Receive) -> None:
        """Take what the peer sends, until it is gone: then stop what answers the call."""
        while not self.left:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.ended = self.left = True
            else:
                self.messages.feed(event["body"])
                self.ended = self.ended or not event["more_body"]
            reader = self._reader
            if reader is not None and not reader.done():
                reader.set_result(None)
            elif self.left:
                self.task.cancel()

    async def read(self) -> bytes | None:
        """Wait for the next message; None if there is none any more.

        Raises:
            RpcFailed: the message is not acceptable.
        """
        while (message := self.messages.take()) is None and not self.ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return message

    async def write(self, message: bytes) -> None:
        """Send a message, once the peer takes it."""
        if not self.opened:
            self.opened = True
            await self.send(_OPEN)
        body = encode_message(message)
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def close(self) -> None:
        """End the response, as far as that can be done without a status."""
        if self.left:
            return
        if self.opened:
            await self.send(_CLOSE)
        else:
            await _refuse(self.send, Status.OK)


async def _refuse(send: Send, status: Status) -> None:
    """Answer with nothing but a status: it may stand in the headers then."""
    code = (b"grpc-status", str(int(status)).encode())
    await send({**_OPEN, "headers": [_GRPC, code]})
    await send(_CLOSE)


def _create_granian(
    application: Callable[..., Awaitable[None]], port: int, options: ServerOptions
) -> Server:
    tls: TlsFiles | None = options.tls
    if tls is not None:
        tls.read()
    return Server(
        application,
        options.host,
        port,
        interface=Interfaces.ASGINL,
        http=HTTPModes.http2,
        backlog=1024,
        backpressure=_STREAMS,
        http2_settings=HTTP2Settings(
            initial_connection_window_size=_CONNECTION_WINDOW_BYTES,
            initial_stream_window_size=_WINDOW_BYTES,
            keep_alive_interval=int(options.keepalive_s * 1000),
            keep_alive_timeout=int(options.keepalive_s),
            max_concurrent_streams=_STREAMS,
            max_headers_size=_HEADER_LIST_BYTES,
        ),
        ssl_protocol_min=SSLProtocols.tls12,  # Envoy speaks 1.2 to upstreams by default.
        websockets=False,
        log_enabled=False,
        ssl_cert=None if tls is None else tls.certificate,
        ssl_key=None if tls is None else tls.key,
        ssl_ca=None if tls is None else tls.client_ca,
        ssl_client_verify=tls is not None and tls.client_ca is not None,
    )


async def _is_listening(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
