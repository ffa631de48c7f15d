"""The open ext_proc streams of a server, whatever carries their bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pdrouter.extproc.exchange import Exchange


class OpenStreams:
    """Runs an exchange for each stream, and knows how many are open.

    Attributes:
        count: how many are open.
    """

    def __init__(self, create_exchange: Callable[[], Exchange]) -> None:
        """Begin without streams.

        Args:
            create_exchange: called for each stream.
        """
        self._create_exchange = create_exchange
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def carry(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[object]],
        end: object,
    ) -> None:
        """Carry one stream, until either side ends it. To reset it, cancel this.

        Args:
            read: waits for the next message, in bytes.
            write: sends a message, once the peer takes it.
            end: what `read` gives after the last message.
        """
        exchange = self._create_exchange()
        self.count += 1
        self._idle.clear()
        try:
            while (message := await read()) is not end:
                answering = exchange.receive(message)
                # Its body would otherwise be kept twice while prefill takes its time.
                del message
                reply = await answering
                if reply is not None:
                    await write(reply)
                # The request may go on for minutes, without its body.
                del reply
                exchange.let_go()
                if exchange.ended:
                    break
        finally:
            exchange.close()
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def wait_until_idle(self) -> None:
        """Return once no stream is open."""
        await self._idle.wait()
