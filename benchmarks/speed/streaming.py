"""Scenario `streaming`: answers of many tokens, and what the router adds to each."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.accounting import read_cpu_s
from benchmarks.speed.engines import Engines, find_free_port, wait_until_accepting
from benchmarks.speed.plan import Plan
from benchmarks.speed.processes import run_process
from benchmarks.speed.programs import find_program
from benchmarks.speed.requests import PODS, read_looks
from benchmarks.speed.results import Results
from benchmarks.speed.variants import Variant, run_router_variant, run_variant
from benchmarks.steps import make_body

NAME = "streaming"
STREAMS = (64, 512)
_TOKENS_PER_S = 50
_SECONDS = 4.0
_QUICK_SECONDS = 2.0
_MOST_ROUNDS = 4
_PATIENCE_S = 60.0


class ClientFailed(Exception):
    """The client of the streams has failed."""


async def run(plan: Plan, results: Results) -> None:
    """Measure Envoy alone, the router and the contenders in turns, several times."""
    server, client = await _compile(plan.directory, "stream_server", "stream_client")
    seconds = _QUICK_SECONDS if plan.quick else _SECONDS
    body = plan.directory / "streaming-body"
    body.write_bytes(make_body(8000))
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(_stream(plan.engines, server, seconds))
        endpoints = engines.write_endpoints(plan.directory / "streaming.yaml", PODS)
        variants = [
            await stack.enter_async_context(run_variant(None)),
            await stack.enter_async_context(
                run_router_variant({"PDROUTER_ENDPOINTS": str(endpoints)})
            ),
            *[await stack.enter_async_context(run_variant(each)) for each in plan.contenders],
        ]
        rounds = min(plan.rounds, _MOST_ROUNDS)
        for number in range(rounds):
            for streams in STREAMS[:1] if plan.quick else STREAMS:
                for variant in variants[:: 1 if number % 2 else -1]:
                    command = (client, variant.envoy.listener.rpartition(":")[2], str(streams))
                    figures = await _measure(variant, *command, str(body), engines.decode_address)
                    results.add(NAME, f"{streams} streams", variant.name, figures)
            plan.tell(f"{NAME}: round {number + 1} of {rounds}")


async def _measure(variant: Variant, *command: str | Path) -> dict[str, float]:
    looks, messages = await read_looks(variant), await variant.count_messages()
    server, envoy = read_cpu_s(variant.pids), read_cpu_s((variant.envoy.pid,))
    async with run_process(*command) as process:
        async with asyncio.timeout(_PATIENCE_S):
            output, _ = await process.communicate()
        if process.returncode:
            raise ClientFailed(f"the client has ended with {process.returncode}")
    complete, tokens, per_s, p50, p99 = map(float, output.split())
    figures = {
        "tokens_per_s": per_s,
        "token_p50_us": p50,
        "token_p99_us": p99,
        "incomplete": float(str(command[2])) - complete,
        "envoy_cpu_us_per_token": (read_cpu_s((variant.envoy.pid,)) - envoy) / tokens * 1e6,
    }
    if variant.pids:
        used = read_cpu_s(variant.pids) - server
        figures["server_cpu_us_per_token"] = used / tokens * 1e6
        sent = await variant.count_messages()
        figures["messages"] = (sent.messages - messages.messages) / (
            sent.streams - messages.streams
        )
    return figures | (await read_looks(variant)).since(looks)


@asynccontextmanager
async def _stream(engines: Engines, server: Path, seconds: float) -> AsyncIterator[Engines]:
    """Run the engine that streams around a block; the prefill engines stay the same."""
    port = find_free_port()
    tokens, interval_us = int(seconds * _TOKENS_PER_S), 1_000_000 // _TOKENS_PER_S
    async with run_process(server, str(port), str(tokens), str(interval_us)):
        await wait_until_accepting(port)
        yield replace(engines, decode_port=port)


async def _compile(directory: Path, *names: str) -> list[Path]:
    """Compile the programs; return where they are.

    Raises:
        ProgramMissing: there is no compiler.
    """
    for name in names:
        source = Path(__file__).with_name(f"{name}.c")
        command = ("-O2", "-Wall", "-o", str(directory / name), str(source))
        async with run_process(find_program("cc"), *command) as process:
            if await process.wait():
                raise ClientFailed(f"{name}.c does not compile")
    return [directory / name for name in names]
