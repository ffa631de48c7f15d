"""Listens, and answers calls by the handlers of their paths."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

from pdrouter.extproc.http2.connection import Connection
from pdrouter.extproc.http2.frames import ErrorCode
from pdrouter.extproc.http2.grpc_messages import RpcFailed, Status
from pdrouter.extproc.http2.limits import Limits
from pdrouter.extproc.http2.stream import Stream
from pdrouter.turns import Turns

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Stream], Awaitable[None]]


class RpcServer:
    """A gRPC server.

    Attributes:
        connections: those that are open.
        turns: spreads what is ready at once, on all of them.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], limits: Limits, turns: Turns | None = None
    ) -> None:
        """Set up the server.

        Args:
            handlers: what answers a call, by its path.
            limits: what a peer may do on one connection.
            turns: spreads what is ready at once; None for turns of its own.
        """
        self._handlers = handlers
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.connections: set[Connection] = set()
        self.turns = turns or Turns()
        self._loop = asyncio.get_running_loop()

    async def listen(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
    ) -> int:
        """Listen; return the port.

        Args:
            host: address to bind to.
            port: port to bind to; 0 for any.
            tls: what handshakes begin with; None for plain text.

        Raises:
            OSError: the address cannot be bound.
        """
        self._server = await self._loop.create_server(
            lambda: Connection(self.begin, self._limits, self.connections, self.turns),
            host,
            port,
            ssl=tls,
            backlog=1024,
        )
        return int(self._server.sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Take no more calls; connections close when their last one has ended."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.drain()

    async def stop(self) -> None:
        """Cancel what is open, and close all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        closing = list(self.connections)
        for connection in closing:
            connection.close(ErrorCode.NO_ERROR, "stopped")
        for connection in closing:
            await connection.lost.wait()  # Bounded by the moment that a peer has to close it.

    def begin(self, stream: Stream) -> None:
        """Begin to answer a call."""
        head = stream.head
        handler = self._handlers.get(head.path)
        if handler is None or head.encoding != "identity" or not head.grpc:
            handler = self._refuse
        self._tasks.add(self._loop.create_task(self._answer(handler, stream)))

    async def _refuse(self, stream: Stream) -> None:
        """Say why a call is not answered, once it is known to be well-formed."""
        head, patience_s = stream.head, self._limits.closing_s
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await stream.wait_for_end()
        if not head.grpc:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await stream.refuse_media_type()
            return
        what = f"grpc-encoding {head.encoding}" if head.path in self._handlers else head.path
        stream.end(Status.UNIMPLEMENTED, f"{what[:200]} is not known here")

    async def _answer(self, handler: Handler, stream: Stream) -> None:
        # From now on who abandons the stream cancels this: before, it would never come to its end.
        task = stream.task = asyncio.current_task(self._loop)
        try:
            if not stream.closed:
                await handler(stream)
        except RpcFailed as failed:
            stream.end(failed.status, failed.message)
        except asyncio.CancelledError:
            # To raise it would leave all that was under way to a search of all objects: a task
            # keeps what has cancelled it, and that the frames which know the task.
            stream.end(Status.UNAVAILABLE, "the server is stopping")
        except Exception:
            log.exception("call failed", extra={"fields": {"path": stream.head.path}})
            stream.end(Status.UNKNOWN, "internal error")
        else:
            stream.end(Status.OK)
        finally:
            stream.release()
            if task is not None:
                self._tasks.discard(task)
