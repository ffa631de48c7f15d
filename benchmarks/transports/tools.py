"""Programs that a benchmark needs, and ports for them."""

import asyncio
import shutil
import socket

_PATIENCE_S = 20.0


class ToolMissing(Exception):
    """A program is not installed."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(f"{program} is missing: install Debian's package {package}")


def find_tool(program: str, package: str) -> str:
    """Return the path of a program.

    Raises:
        ToolMissing: it is not installed.
    """
    path = shutil.which(program)
    if path is None:
        raise ToolMissing(program, package)
    return path


def find_free_port() -> int:
    """Return a port of the loopback address that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def wait_for_port(port: int) -> None:
    """Return once something accepts connections.

    Raises:
        TimeoutError: nothing does.
    """
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
