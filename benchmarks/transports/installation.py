"""A router on a chosen transport, in a process of its own, with Envoy in front of it."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.transports.backends import Engines
from benchmarks.transports.contenders import Transport
from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess

MODEL = "demo"
_START_S = 30.0
_ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Installation:
    """A router behind an Envoy.

    Attributes:
        router: the router's process.
        grpc: address of its gRPC port.
        admin: address of its HTTP port.
        envoy: process of Envoy.
        url: where clients send their requests.
    """

    router: int
    grpc: str
    admin: str
    envoy: int
    url: str

    async def count_in_flight(self) -> int:
        """Return how many requests the router has."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.admin}/debug/state") as response,
        ):
            return len((await response.json())["requests"])


@asynccontextmanager
async def run_installation(transport: Transport, engines: Engines) -> AsyncIterator[Installation]:
    """Run a router and an Envoy while the context lasts."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pdrouter-")))
        endpoints = directory / "endpoints.yaml"
        roleset = {"name": "all", "prefill": [engines.prefill], "decode": [engines.decode]}
        endpoints.write_text(yaml.safe_dump({"models": [{"name": MODEL, "rolesets": [roleset]}]}))
        log = directory / "log"
        process = await _start_router(transport, endpoints, log)
        stack.push_async_callback(_stop, process)
        started = await _wait_until_serving(process, log)
        config = EnvoyConfig(
            routers=(Address("127.0.0.1", started["grpc_port"]),),
            listen=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
        )
        bootstrap = await asyncio.to_thread(lambda: to_yaml(build_bootstrap(config)))
        envoy = await stack.enter_async_context(EnvoyProcess.run(bootstrap))
        yield Installation(
            process.pid,
            f"127.0.0.1:{started['grpc_port']}",
            started["http"],
            envoy.pid,
            f"http://{envoy.listener}/v1/chat/completions",
        )


async def _start_router(
    transport: Transport, endpoints: Path, log: Path
) -> asyncio.subprocess.Process:
    settings = {
        "ROUTING_ALGORITHM": "pd",
        "PDROUTER_TRANSPORT": transport.name,
        "PDROUTER_ENDPOINTS": str(endpoints),
        "PDROUTER_GRPC_BIND": _ANY_PORT,
        "PDROUTER_HTTP_BIND": _ANY_PORT,
        # Thousands of new connections at once wait for a busy machine.
        "PDROUTER_PREFILL_CONNECT_TIMEOUT": "30",
    }
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pdrouter", "serve"),
            env={**os.environ, **settings},
            stdout=output,
        )


async def _wait_until_serving(process: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    async with asyncio.timeout(_START_S):
        while process.returncode is None:
            event = _find_start(log)
            if event is not None:
                return event
            await asyncio.sleep(0.05)
    raise RuntimeError(f"the router has ended with {process.returncode}")


def _find_start(log: Path) -> dict[str, Any] | None:
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and '"serving"' in line:
            event: dict[str, Any] = json.loads(line)
            return event
    return None


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
