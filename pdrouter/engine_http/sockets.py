"""Connections without TLS, of which each turn of the event loop attends to so many."""

import asyncio
import errno
import logging
import os
import select
import socket
from typing import TypeAlias

from pdrouter.turns import Turns

log = logging.getLogger(__name__)

AT_ONCE = 64
"""How many connections a turn attends to: about half a millisecond's."""
_READ_BYTES = 64 * 1024
_WRITABLE = select.EPOLLOUT
_READABLE = ~_WRITABLE
"""What else there is to attend to: the end of a connection shows when it is read."""

_Data: TypeAlias = bytes | bytearray | memoryview


class Sockets:
    """Attends to connections that are ready, those first which have waited longest.

    The event loop itself attends to all that are ready before it does anything else: 5,000 answers
    that come in the same moment would hold it for 30 ms, 150 that are established for 7. Here, what
    a turn does not attend to stays with the kernel until the next.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
        """Begin without connections.

        Args:
            loop: the event loop.
            turns: spreads what answers and new connections wake.
        """
        self._loop = loop
        self._turns = turns
        self._ready = select.epoll()
        self._open: dict[int, SocketTransport | _Connecting] = {}
        loop.add_reader(self._ready.fileno(), turns.gather, self._attend)

    async def connect(self, host: str, port: int, protocol: asyncio.Protocol) -> None:
        """Open a connection for a protocol.

        Raises:
            OSError: there is none.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        connected = socket.socket(family, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._establish(connected, (host, port))
        except BaseException:
            # The kernel forgets what is closed.
            self._open.pop(connected.fileno(), None)
            connected.close()
            raise
        transport = SocketTransport(self, connected, protocol, self._loop)
        self._open[connected.fileno()] = transport
        protocol.connection_made(transport)

    async def _establish(self, connected: socket.socket, address: tuple[str, int]) -> None:
        if self._ready.closed:
            raise ConnectionAbortedError("the client is closed")
        error = connected.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, os.strerror(error))
        established: asyncio.Future[None] = self._loop.create_future()
        self._open[connected.fileno()] = _Connecting(connected, established, self._turns)
        self._ready.register(connected, _WRITABLE | select.EPOLLONESHOT)
        await established
        if self._ready.closed:
            raise ConnectionAbortedError("the client is closed")
        self._ready.modify(connected, select.EPOLLIN)

    def wait_to_write(self, connected: socket.socket, *, waits: bool) -> None:
        """Attend to a connection also when it takes bytes, or no more than to what it brings."""
        self._ready.modify(connected, select.EPOLLIN | (_WRITABLE if waits else 0))

    def forget(self, connected: socket.socket) -> None:
        """Attend to a connection no more."""
        del self._open[connected.fileno()]
        self._ready.unregister(connected)

    def close(self) -> None:
        """Close what is open; nothing happens if that is done."""
        if self._ready.closed:
            return
        for transport in list(self._open.values()):
            transport.abort()
        self._loop.remove_reader(self._ready.fileno())
        self._ready.close()

    def _attend(self) -> None:
        for descriptor, events in self._ready.poll(0, AT_ONCE):
            transport = self._open.get(descriptor)
            if transport is None:
                continue  # The one before has closed it.
            try:
                transport.attend(events)
            except Exception as error:
                log.exception("a connection cannot be attended to")
                transport.lose(error)


class _Connecting:
    """A connection that is being established."""

    def __init__(
        self, connected: socket.socket, established: asyncio.Future[None], turns: Turns
    ) -> None:
        self._socket = connected
        self._established = established
        self._turns = turns

    def attend(self, events: int) -> None:
        """Tell, in its turn, whether it is established."""
        del events
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.lose(OSError(error, os.strerror(error)))
        else:
            self._turns.resolve(self._established, None)

    def abort(self) -> None:
        """Give it up at once."""
        self.lose(ConnectionAbortedError("the client is closed"))

    def lose(self, error: Exception) -> None:
        """Tell why there is none."""
        if not self._established.done():
            self._established.set_exception(error)


class SocketTransport(asyncio.Transport):
    """A connection, as far as a client of HTTP/1.1 needs it."""

    def __init__(
        self,
        sockets: Sockets,
        connected: socket.socket,
        protocol: asyncio.Protocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self._sockets = sockets
        self._socket = connected
        self._protocol = protocol
        self._loop = loop
        self._unsent = bytearray()
        self._refused: OSError | None = None
        self._closing = False

    def write(self, data: _Data) -> None:
        """Send bytes; if the peer does not take them all, the protocol is to wait."""
        if self._closing:
            return
        if self._unsent:
            self._unsent += data
            return
        sent = self._send(data)
        if sent < len(data) and not self._closing:
            self._unsent += memoryview(data)[sent:]
            self._sockets.wait_to_write(self._socket, waits=True)
            self._protocol.pause_writing()

    def abort(self) -> None:
        """Close at once."""
        self.lose(None)

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self._closing

    def attend(self, events: int) -> None:
        """Do what the connection is ready for."""
        if events & _READABLE:
            self._receive()
        if events & _WRITABLE and not self._closing:
            self._flush()

    def lose(self, error: Exception | None) -> None:
        """Close at once, and tell the protocol why."""
        if not self._closing:
            self._closing = True
            self._sockets.forget(self._socket)
            self._loop.call_soon(self._end, error)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self.lose(self._refused)

    def _flush(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if not self._unsent and not self._closing:
            self._sockets.wait_to_write(self._socket, waits=False)
            self._protocol.resume_writing()

    def _send(self, data: _Data) -> int:
        """Send what the peer takes; return how much that is."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError as error:
            # What the peer has sent before, such as that the body is too large, is read to its end.
            self._refused = error
            return 0
        except OSError as error:
            self.lose(error)
            return 0

    def _end(self, error: Exception | None) -> None:
        self._socket.close()
        self._protocol.connection_lost(error)
