"""What carries exchanges between Envoy and this process, whatever it is built on."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pdrouter.extproc.tls import TlsFiles
from pdrouter.extproc.wire import CreateExchange

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH_SERVICES = ("", SERVICE, "gateway-plugin")
"""Names that the health service knows; the last is aibrix's."""

Read: TypeAlias = Callable[[], Awaitable[Any]]
"""Waits for the next message of a stream, in bytes; after the last one it gives an end."""

ReceiveStream: TypeAlias = Callable[[Read, object], Awaitable[bytes]]
"""Takes what a client streams, with the end that its reader gives; returns the one answer."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens.

    Attributes:
        host: address to bind to.
        port: port to bind to; 0 for any.
        max_message_bytes: size of the largest message.
        keepalive_s: seconds after which an idle connection is probed.
        tls: certificates; None for plain text.
    """

    host: str
    port: int
    max_message_bytes: int
    keepalive_s: float
    tls: TlsFiles | None


class Server(Protocol):
    """What carries exchanges: one class for each transport."""

    port: int
    draining: bool

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

    async def start(self) -> None:
        """Listen."""

    async def drain(self, lame_duck_s: float, drain_s: float) -> None:
        """Let open requests finish, then stop."""

    async def stop(self) -> None:
        """Stop at once."""
