"""Ends of connections that no orderly server brings about."""

import asyncio
import socket
import struct

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Send RST: drop the connection and what was not sent of it."""
    if not isinstance(transport, asyncio.WriteTransport):
        return
    if connection := transport.get_extra_info("socket"):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


async def until_client_leaves() -> None:
    """Do nothing; the web server cancels the handler when its connection is lost."""
    await asyncio.Event().wait()
