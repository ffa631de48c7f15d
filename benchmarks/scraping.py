"""What scraping the engines' metrics costs, HTTP and reading, beside prometheus_client's parser.

`python -m benchmarks.scraping`. The engines' pages come from a process of their own: what the
simulated engine says of itself, with as many histograms more as a real engine's page is long.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engines.registry import find_dialect
from pdrouter.load.ledger import Ledger
from pdrouter.load.scraper import MetricsScraper
from pdrouter.process_limits import keep_freed_memory
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine_metrics import EngineMetrics

PAGE_BYTES = 100_000
SECONDS = 10.0
BUCKETS = (*(round(0.001 * 1.7**power, 6) for power in range(24)), "+Inf")


def make_page(size: int) -> bytes:
    """Return a page of about this size, the simulated engine's part in the middle."""
    metrics = EngineMetrics(EngineConfig())
    metrics.watch_load(
        running=lambda: 12,
        waiting=lambda: 3,
        cache_usage=lambda: 0.5,
        handles_outstanding=lambda: 0,
        rooms_open=lambda: 0,
        encodings_outstanding=lambda: 0,
    )
    metrics.prefill_seconds.observe(0.25)
    engine = metrics.exposition()
    histograms: list[str] = []
    padding, number = 0, 0
    while padding + len(engine) < size:
        histograms.append(make_histogram(f"vllm:request_stage_{number}_seconds"))
        padding += len(histograms[-1])
        number += 1
    half = len(histograms) // 2
    before, after = "".join(histograms[:half]), "".join(histograms[half:])
    return before.encode() + engine + after.encode()


def make_histogram(name: str) -> str:
    """Return a histogram as vLLM writes them."""
    labels = 'engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"'
    lines = [f"# HELP {name} Histogram of a stage in seconds.", f"# TYPE {name} histogram"]
    lines += [f'{name}_bucket{{{labels},le="{bound}"}} 1234.0' for bound in BUCKETS]
    lines += [f"{name}_sum{{{labels}}} 617.25", f"{name}_count{{{labels}}} 1234.0"]
    return "\n".join(lines) + "\n"


class Engine(asyncio.Protocol):
    """Answers every request with the page."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but their classes.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None and data.endswith(b"\r\n\r\n"):
            self._transport.write(self._answer)


async def serve(count: int) -> None:
    """Be so many engines until killed; print their ports."""
    page = make_page(PAGE_BYTES)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {len(page)}\r\n\r\n"
    answer = head.encode() + page
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Engine(answer), "127.0.0.1", 0) for _ in range(count)
    ]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


def time_call(call: Callable[[], object], times: int) -> float:
    """Return the seconds of CPU that one call takes."""
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


async def measure_scraping(ports: list[int], interval_s: float) -> None:
    """Print what the event loop of the router spends on scraping."""
    cache = PodCache()
    cache.replace(
        Pod.create(
            uid=str(port), name=str(port), ip="127.0.0.1", port=port, model="m", role=Role.DECODE
        )
        for port in ports
    )
    async with MetricsScraper(cache, Ledger(), interval_s=interval_s) as engines:
        running = asyncio.create_task(engines.run())
        while len(engines.samples) < len(ports):
            await asyncio.sleep(0.01)
        scrapes, cpu, start = engines.stats.scrapes, time.process_time(), time.perf_counter()
        await asyncio.sleep(SECONDS)
        scrapes = engines.stats.scrapes - scrapes
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - start
        fresh, failures = len(engines.samples), dict(engines.stats.failures)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    print(
        f"{len(ports):5} pods at {engines.interval_s:g} s:"
        f" {scrapes / elapsed:5.0f} scrapes/s, {cpu / scrapes * 1e6:4.0f} us of CPU each,"
        f" {cpu / elapsed:5.1%} of a core ({fresh} fresh, failures {failures})"
    )


def measure_reading() -> None:
    """Print what reading a page costs, without HTTP."""
    page = make_page(PAGE_BYTES)
    dialect = find_dialect("vllm")
    ours = time_call(lambda: dialect.read(page), 300)
    text = page.decode()
    theirs = time_call(lambda: list(text_string_to_metric_families(text)), 5)
    print(
        f"a page of {len(page):,} bytes is read in {ours * 1e6:.0f} us,"
        f" by prometheus_client in {theirs * 1e6:,.0f} us ({theirs / ours:.0f} x)"
    )


async def measure() -> None:
    """Measure everything."""
    measure_reading()
    for count, interval_s in ((10, 1.0), (100, 1.0), (500, 1.0)):
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.scraping", "--serve", str(count)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            if server.stdout is None:
                raise RuntimeError("the server has no output")
            ports = [int(port) for port in (await server.stdout.readline()).split()]
            await measure_scraping(ports, interval_s)
        finally:
            server.kill()
            await server.wait()


def main() -> None:
    """Measure, or be the engines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=int)
    options = parser.parse_args()
    # As the router does when it starts.
    keep_freed_memory()
    gc.freeze()
    uvloop.run(serve(options.serve) if options.serve else measure())


if __name__ == "__main__":
    main()
