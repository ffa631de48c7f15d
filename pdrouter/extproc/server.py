"""What carries exchanges between Envoy and this process, whatever it is built on."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from pdrouter.extproc.tls import TlsFiles
from pdrouter.extproc.wire import CreateExchange, OpenStreams
from pdrouter.turns import Turns

log = logging.getLogger(__name__)

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
        turns: spreads what is ready at once; None for turns of its own.
    """

    host: str
    port: int
    max_message_bytes: int
    keepalive_s: float
    tls: TlsFiles | None
    turns: Turns | None = None


class Server(ABC):
    """Carries exchanges: one class for each transport.

    Attributes:
        port: the port that it listens on, once started.
        draining: whether it is about to end.
    """

    def __init__(self, create_exchange: CreateExchange, options: ServerOptions) -> None:
        """Set up what all have in common.

        Args:
            create_exchange: called for each stream.
            options: how to listen.
        """
        self._streams = OpenStreams(create_exchange)
        self._options = options
        self.port = 0
        self.draining = False

    @abstractmethod
    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
            CertificatesInvalid: the files for TLS cannot be used.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Stop at once; what is open is cancelled."""

    @abstractmethod
    async def _say_not_serving(self) -> None:
        """Let the health service say so."""

    @abstractmethod
    def _refuse_streams(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Take no more streams, while those that are open go on for so long at the most."""

    async def drain(self, lame_duck_s: float, drain_s: float) -> None:
        """Let open requests finish, then stop.

        Health turns NOT_SERVING at once. For `lame_duck_s` seconds new streams are still served,
        until their senders have noticed; then no more, and after `drain_s` seconds in all what is
        still open is cancelled.
        """
        self.draining = True
        await self._say_not_serving()
        deadline = asyncio.get_running_loop().time() + drain_s
        await asyncio.sleep(min(lame_duck_s, drain_s))
        async with self._refuse_streams(drain_s):
            # Watchers of the health service do not end by themselves: only requests are waited for.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._streams.wait_until_idle()
            if self._streams.count:
                log.warning("drain time is over, %d requests are cancelled", self._streams.count)
            await self.stop()


CreateServer: TypeAlias = Callable[
    [CreateExchange, ServerOptions, Mapping[str, ReceiveStream]], Server
]
"""Sets up a server; the last is what else it serves on the port, by the paths of calls."""
