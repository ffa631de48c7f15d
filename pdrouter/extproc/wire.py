"""The open ext_proc streams of a server, whatever carries their bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.limits import Admit

CreateExchange = Callable[[Callable[[bytes], Awaitable[object]], Callable[[], object]], Exchange]
"""Called for each stream, with what sends a message and what interrupts the reading of them."""


class StreamCut(Exception):
    """A request has failed when it was too late for an answer: the stream is to be reset."""


class OpenStreams:
    """Runs an exchange for each stream, and knows how many are open.

    Attributes:
        count: how many are open.
    """

    def __init__(self, create_exchange: CreateExchange) -> None:
        """Begin without streams.

        Args:
            create_exchange: called for each stream.
        """
        self._create_exchange = create_exchange
        self._loop = asyncio.get_running_loop()
        self.count = 0
        self._idle = asyncio.Event()

    async def carry(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[object]],
        end: object,
        ask_before_large: Callable[[Admit], object] | None = None,
        *,
        read_trace: Callable[[], str] | None = None,
    ) -> None:
        """Carry one stream, until either side ends it. To reset it, cancel this.

        Args:
            read: waits for the next message, in bytes.
            write: sends a message, once the peer takes it.
            end: what `read` gives after the last message.
            ask_before_large: takes what to ask before a large message is let in, where it can
                be kept out.
            read_trace: gives the `traceparent` in the stream's metadata; empty if there is none.

        Raises:
            StreamCut: the stream is to be reset, and the client's answer with it.
        """
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a stream is carried by a task")
        exchange = self._create_exchange(write, task.cancel)
        if read_trace is not None:
            exchange.follow(read_trace)
        if ask_before_large is not None:
            ask_before_large(exchange.admit)
        self.count += 1
        try:
            while not exchange.ended and (message := await read()) is not end:
                receiving = exchange.receive(message)
                # Its body would otherwise be kept twice while prefill takes its time.
                del message
                await receiving
        except asyncio.CancelledError:
            if not exchange.cut:
                raise
            task.uncancel()
            raise StreamCut from None
        finally:
            try:
                exchange.close()
                await exchange.call.wait_closed()
            finally:
                self.count -= 1
                if not self.count:
                    self._idle.set()

    async def wait_until_idle(self) -> None:
        """Return once no stream is open."""
        if self.count:
            self._idle.clear()
            await self._idle.wait()
