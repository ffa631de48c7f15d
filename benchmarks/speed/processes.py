"""Child processes: servers that tell on standard output when they are ready."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

_FOREIGN = ("PDROUTER_", "AIBRIX_", "ROUTING_", "GRPC_", "PYTHON")
"""Variables that would make the processes others than those that users run."""
_PATIENCE_S = 30.0


class ProcessFailed(Exception):
    """A child process did not become ready."""


@asynccontextmanager
async def run_process(
    *command: str | Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program around a block, its standard output in a pipe; it is ended at the end."""
    own = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**own, **(environment or {})},
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def read_line(process: asyncio.subprocess.Process) -> str:
    """Return the next line that a process writes.

    Raises:
        ProcessFailed: it ends, or writes none.
    """
    if process.stdout is None:
        raise ProcessFailed("the process has no pipe")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise ProcessFailed(f"process {process.pid} says nothing") from None
    if not line:
        raise ProcessFailed(f"process {process.pid} has ended")
    return line.decode().strip()


@asynccontextmanager
async def run_module(name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a Python module around a block."""
    async with run_process(sys.executable, "-m", name, *arguments) as process:
        yield process


@dataclass(frozen=True, slots=True)
class RouterProcess:
    """A running `pdrouter serve`.

    Attributes:
        process: its process.
        addresses: where it takes ext_proc streams, one for each worker.
        admin_url: its HTTP port.
        start_s: seconds from the start of the process until it served.
    """

    process: asyncio.subprocess.Process
    addresses: tuple[str, ...]
    admin_url: str
    start_s: float

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    async def read_metrics(self) -> str:
        """Return its metrics page."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin_url}/metrics") as response,
        ):
            return await response.text()


@asynccontextmanager
async def run_router(
    environment: Mapping[str, str],
    on_line: Callable[[bytes], None] = lambda _: None,
    *,
    python: str | Path = sys.executable,
) -> AsyncIterator[RouterProcess]:
    """Run the router with these settings around a block, once it serves.

    Args:
        environment: its settings.
        on_line: is given each line of its log from then on.
        python: the Python that has it installed.
    """
    settings = {
        "ROUTING_ALGORITHM": "pd",
        "PDROUTER_GRPC_BIND": "127.0.0.1:0",
        "PDROUTER_HTTP_BIND": "127.0.0.1:0",
        **environment,
    }
    begun = time.monotonic()
    # Without -P, the router of this directory would run in any case.
    command = (python, "-P", "-m", "pdrouter", "serve")
    async with run_process(*command, environment=settings) as process:
        started: dict[str, Any] = {}
        several = int(environment.get("PDROUTER_WORKERS", "1")) > 1
        while started.get("event") != ("workers serving" if several else "serving"):
            started = json.loads(await read_line(process))
        start_s = time.monotonic() - begun
        ports = started["grpc_ports"] if several else [started["grpc_port"]]
        host = settings["PDROUTER_GRPC_BIND"].rpartition(":")[0]
        async with asyncio.TaskGroup() as tasks:
            # A reader that stalls would make the router drop its log.
            draining = tasks.create_task(_drain(process, on_line))
            yield RouterProcess(
                process,
                tuple(f"{host}:{port}" for port in ports),
                f"http://{started['http']}",
                start_s,
            )
            draining.cancel()


async def _drain(process: asyncio.subprocess.Process, on_line: Callable[[bytes], None]) -> None:
    while process.stdout is not None and (line := await process.stdout.readline()):
        on_line(line)
