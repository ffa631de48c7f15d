"""Scenario `waiting`: thousands of requests that all wait for their prefill at the same time.

`python -m benchmarks.speed.waiting --port N --requests N` is the prefill engine: it answers no
request before so many are waiting.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import uvloop

from benchmarks.speed.accounting import read_cpu_s, read_peak_memory_mb
from benchmarks.speed.engines import (
    PREFILL_ANSWER,
    Engines,
    find_free_port,
    wait_until_accepting,
)
from benchmarks.speed.load import Load, send_load
from benchmarks.speed.plan import Plan
from benchmarks.speed.processes import run_module
from benchmarks.speed.requests import PODS, read_looks
from benchmarks.speed.results import Results
from benchmarks.speed.variants import ROUTER, Variant, run_router_variant
from benchmarks.steps import make_body
from pdrouter.process_limits import raise_file_limit

NAME = "waiting"
REQUESTS = 5000
_QUICK_REQUESTS = 1000
_CONNECTIONS = 50
_LOOK_S = 0.5


async def run(plan: Plan, results: Results) -> None:
    """Let all requests wait at the same time, once."""
    count = _QUICK_REQUESTS if plan.quick else REQUESTS
    body = plan.directory / "waiting-body"
    body.write_bytes(make_body(8000))
    async with _run_prefill(plan.engines, count) as engines:
        endpoints = engines.write_endpoints(plan.directory / "waiting.yaml", PODS)
        async with run_router_variant({"PDROUTER_ENDPOINTS": str(endpoints)}) as variant:
            load = Load(variant.url, body, count, _CONNECTIONS, streams=-(-count // _CONNECTIONS))
            results.add(NAME, f"{count} requests", ROUTER, await _measure(variant, load))
    plan.tell(f"{NAME}: done")


async def _measure(variant: Variant, load: Load) -> dict[str, float]:
    looks, cpu, begun = await read_looks(variant), read_cpu_s(variant.pids), time.monotonic()
    sampler = _Sampler(variant)
    async with asyncio.TaskGroup() as tasks:
        sampling = tasks.create_task(sampler.run())
        report = await send_load(load)
        sampling.cancel()
    return {
        "succeeded": report.succeeded,
        "failed": report.failed,
        "seconds": time.monotonic() - begun,
        "waiting_at_once": sampler.most_waiting,
        "peak_memory_mb": read_peak_memory_mb(variant.pids),
        "server_cpu_us": (read_cpu_s(variant.pids) - cpu) / load.requests * 1e6,
        **(await read_looks(variant)).since(looks),
    }


@dataclass(slots=True)
class _Sampler:
    """Notes how many requests the router has open at the most."""

    variant: Variant
    most_waiting: float = 0.0

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while self.variant.router is not None:
            await asyncio.sleep(_LOOK_S)
            page = await self.variant.router.read_metrics()
            (open_now,) = (
                float(line.split()[1])
                for line in page.splitlines()
                if line.startswith("pdrouter_requests_in_flight ")
            )
            self.most_waiting = max(self.most_waiting, open_now)


@asynccontextmanager
async def _run_prefill(engines: Engines, count: int) -> AsyncIterator[Engines]:
    """Run the prefill engine around a block; the decode engines stay the same."""
    port = find_free_port()
    arguments = ("--port", str(port), "--requests", str(count))
    async with run_module("benchmarks.speed.waiting", *arguments):
        await wait_until_accepting(port)
        yield replace(engines, prefill_port=port)


class _Gate:
    """Keeps answers back until so many are due."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._due: list[Callable[[], None]] = []

    def add(self, answer: Callable[[], None]) -> None:
        """Keep an answer, or give all of them."""
        self._due.append(answer)
        if len(self._due) == self._count:
            for give in self._due:
                give()
            self._due.clear()


class _Connection(asyncio.Protocol):
    """A connection to the engine, with one request at a time."""

    def __init__(self, answer: bytes, gate: _Gate) -> None:
        self._answer = answer
        self._gate = gate
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their classes.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._transport is None:
            return
        if head.startswith(b"POST"):
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            if len(body) == length:
                self._received.clear()
                self._gate.add(partial(self._transport.write, self._answer))
        else:  # The router asks for metrics, too.
            self._received.clear()
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


async def _serve(port: int, count: int) -> None:
    body = json.dumps(PREFILL_ANSWER).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    answer = f"{head}\r\n\r\n".encode() + body
    gate = _Gate(count)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _Connection(answer, gate), "0.0.0.0", port, backlog=8192)
    await asyncio.Event().wait()


def main() -> None:
    """Be the engine until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    options = parser.parse_args()
    raise_file_limit()
    uvloop.run(_serve(options.port, options.requests))


if __name__ == "__main__":
    main()
