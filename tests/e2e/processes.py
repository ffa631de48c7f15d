"""The router as users run it: `pdrouter serve` in a process of its own."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from expectations import PATIENCE_S, Metrics, chat, eventually, parse_metrics
from failures import CHAT

from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess
from pdrouter.tools.local_stack import write_endpoints
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

_FOREIGN = ("PDROUTER_", "AIBRIX_", "ROUTING_", "GRPC_")
DEFAULTS = {
    "PDROUTER_GRPC_BIND": "127.0.0.1:0",
    "PDROUTER_HTTP_BIND": "127.0.0.1:0",
    # As in `run_checked_stack`.
    "PDROUTER_AGGREGATE": "fallback",
}
"""Variables that routers get. `benchmarks/transports` runs these tests over other transports."""


@dataclass(slots=True)
class RouterProcess:
    """A `pdrouter serve` that was started.

    Attributes:
        process: the process.
        errors_file: what it writes to standard error.
        lines: its log so far, one object for each line.
    """

    process: asyncio.subprocess.Process
    errors_file: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def start(
        cls, environment: Mapping[str, str], python_options: Sequence[str] = ()
    ) -> AsyncIterator[Self]:
        """Run the command with these variables; what is left of it at the end is killed.

        Binds to free ports of the loopback address unless the variables say otherwise.
        """
        own = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}
        with tempfile.TemporaryDirectory(prefix="pdrouter-") as directory:
            errors_file = Path(directory) / "stderr"
            with errors_file.open("wb") as errors:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, *python_options, "-m", "pdrouter", "serve"),
                    env={**own, **DEFAULTS, **environment},
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    limit=2**20,
                )
            router = cls(process, errors_file)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(router._collect())
                try:
                    yield router
                finally:
                    if process.returncode is None:
                        process.kill()

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, environment: Mapping[str, str], python_options: Sequence[str] = ()
    ) -> AsyncIterator[Self]:
        """Run the command, and wait until it serves, with all its workers."""
        several = int(environment.get("PDROUTER_WORKERS", "1")) > 1
        async with cls.start(environment, python_options) as router:
            await router.wait_for("workers serving" if several else "serving")
            yield router

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self.errors_file.read_text()

    @property
    def grpc_address(self) -> Address:
        """Where it accepts ext_proc streams."""
        return Address("127.0.0.1", self._started["grpc_port"])

    @property
    def worker_addresses(self) -> tuple[Address, ...]:
        """Where its workers accept ext_proc streams."""
        ports = self._started.get("grpc_ports") or [self._started["grpc_port"]]
        return tuple(Address("127.0.0.1", port) for port in ports)

    @property
    def admin_url(self) -> str:
        """Its HTTP port, without a path."""
        return f"http://{self._started['http']}"

    @property
    def resident_bytes(self) -> int:
        """Memory that it occupies."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        return [line for line in self.lines if line["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; return the exit code."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until it has logged an event so many times."""

        async def check() -> None:
            if self.process.returncode is not None:
                raise RuntimeError(f"the router has ended: {self.errors}")
            assert len(self.events(event)) >= count, (event, self.lines)

        await eventually(check)

    async def get(self, path: str) -> httpx.Response:
        """Get a page of its HTTP port."""
        async with httpx.AsyncClient(base_url=self.admin_url, timeout=PATIENCE_S) as client:
            return await client.get(path)

    async def read_metrics(self) -> Metrics:
        """Return what its `/metrics` says."""
        return parse_metrics((await self.get("/metrics")).text)

    async def expect_idle(self) -> None:
        """Wait until nothing is in flight, and check that nothing went wrong unnoticed."""

        async def check() -> None:
            state = (await self.get("/debug/state")).json()
            assert not state["requests"], state["requests"]
            assert not state["ledger"], state["ledger"]

        await eventually(check)
        self.expect_no_accident()

    def expect_no_accident(self) -> None:
        """Check that no exception got where it must not: into gRPC, into asyncio, into the log."""
        accidents = [line for line in self.lines if "exception" in line or line["level"] == "error"]
        assert not accidents, accidents
        assert "Traceback" not in self.errors

    @property
    def _started(self) -> dict[str, Any]:
        return (self.events("workers serving") or self.events("serving"))[0]

    async def _collect(self) -> None:
        stdout = self.process.stdout
        if stdout is None:
            raise RuntimeError("the process was started without a pipe")
        while line := await stdout.readline():
            self.lines.append(json.loads(line))
        await self.process.wait()


@dataclass(frozen=True, slots=True)
class Installation:
    """Routers in processes of their own, behind Envoy and before simulated engines.

    Attributes:
        routers: the routers.
        envoy: the Envoy in front of them.
        prefill: the prefill engine.
        decode: the decode engine.
    """

    routers: Sequence[RouterProcess]
    envoy: EnvoyProcess
    prefill: SimulatedEngine
    decode: SimulatedEngine

    def connect(self) -> httpx.AsyncClient:
        """Return a client of Envoy."""
        return httpx.AsyncClient(base_url=f"http://{self.envoy.listener}", timeout=PATIENCE_S)


@asynccontextmanager
async def run_installation(
    environment: Mapping[str, str],
    *,
    routers: int = 1,
    itl_ms: float = 5,
    router_ca_file: Path | None = None,
    prefill_engines: int = 1,
) -> AsyncIterator[Installation]:
    """Run so many routers with these settings, with all that they need.

    Args:
        environment: settings of the routers, by variable.
        routers: how many there are.
        itl_ms: time between two tokens.
        router_ca_file: with what Envoy checks the routers' certificates; None for plain text.
        prefill_engines: how many there are; `Installation.prefill` is the first.
    """
    async with AsyncExitStack() as stack:
        prefills = [
            await stack.enter_async_context(SimulatedEngine(_engine("prefill", itl_ms)))
            for _ in range(prefill_engines)
        ]
        decode = await stack.enter_async_context(SimulatedEngine(_engine("decode", itl_ms)))
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pdrouter-"))
        endpoints_file = Path(directory) / "endpoints.yaml"
        write_endpoints(endpoints_file, "demo", prefills, [decode])
        settings = {
            "ROUTING_ALGORITHM": "pd",
            "PDROUTER_ENDPOINTS": str(endpoints_file),
            **environment,
        }
        processes = [
            await stack.enter_async_context(RouterProcess.serving(settings)) for _ in range(routers)
        ]
        config = EnvoyConfig(
            routers=tuple(each for router in processes for each in router.worker_addresses),
            listen=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            router_ca_file=None if router_ca_file is None else str(router_ca_file),
        )
        bootstrap = await asyncio.to_thread(lambda: to_yaml(build_bootstrap(config)))
        envoy = await stack.enter_async_context(EnvoyProcess.run(bootstrap))
        yield Installation(processes, envoy, prefills[0], decode)


def _engine(role: Any, itl_ms: float) -> EngineConfig:
    return EngineConfig(role=role, models=("demo",), itl_ms=itl_ms)


async def read_stream(client: httpx.AsyncClient, tokens: int) -> str:
    """Send a streaming request; return how its answer ends."""
    count = 0
    try:
        async with client.stream("POST", CHAT, json=chat(stream=True, max_tokens=tokens)) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                count += '"content":"' in line and '"content":""' not in line
                if line == "data: [DONE]":
                    return "complete" if count == tokens else f"only {count} tokens"
    except httpx.RemoteProtocolError:
        return "cut"
    return "without an end"


@asynccontextmanager
async def streaming(
    installation: Installation, client: httpx.AsyncClient, *, streams: int, tokens: int
) -> AsyncIterator[list[asyncio.Task[str]]]:
    """Open streams, and wait until tokens flow in each of them."""
    decode = installation.decode
    async with asyncio.TaskGroup() as tasks:
        opened = [tasks.create_task(read_stream(client, tokens)) for _ in range(streams)]

        async def check() -> None:
            assert decode.count("vllm:num_requests_running") == streams
            assert decode.count("vllm:generation_tokens_total") >= streams

        await eventually(check)
        yield opened
