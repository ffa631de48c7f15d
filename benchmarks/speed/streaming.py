"""Scenario `streaming`: answers of many tokens, and what the router adds to each."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from benchmarks.speed.accounting import read_cpu_s
from benchmarks.speed.engines import Engines, find_free_port, wait_until_accepting
from benchmarks.speed.plan import Plan
from benchmarks.speed.processes import run_process
from benchmarks.speed.programs import find_program
from benchmarks.speed.requests import PODS, read_looks
from benchmarks.speed.results import Results
from benchmarks.speed.variants import ROUTER, Variant, run_router_variant, run_variant
from benchmarks.steps import make_body

NAME = "streaming"
_TOKENS_PER_S = 50
_MOST_ROUNDS = 4
_PATIENCE_S = 60.0
STOPPED = f"{ROUTER}, stopped"
"""The router once more, whose process is stopped as soon as all streams flow."""
_FLOWING_S = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """Answers that flow at the same time.

    Attributes:
        streams: how many.
        tokens: the tokens of each.
        repeats: how often in a sample: short ones use too little for one measurement.
    """

    streams: int
    tokens: int
    repeats: int = 1

    def __str__(self) -> str:
        return f"{self.streams} streams of {self.tokens} tokens"


SHORT = Case(64, 20, repeats=5)
USUAL = Case(64, 200)
CASES = (SHORT, USUAL, Case(512, 200))


class ClientFailed(Exception):
    """The client of the streams has failed."""


async def run(plan: Plan, results: Results) -> None:
    """Measure Envoy alone, both routers and the contenders in turns, several times."""
    server, client = await _compile(plan.directory, "stream_server", "stream_client")
    body = plan.directory / "streaming-body"
    body.write_bytes(make_body(8000))
    for case in CASES[:2] if plan.quick else CASES:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            engines = await enter(_stream(plan.engines, server, case.tokens))
            endpoints = engines.write_endpoints(plan.directory / "streaming.yaml", PODS)
            settings = {"PDROUTER_ENDPOINTS": str(endpoints)}
            variants = [
                await enter(run_variant(None)),
                await enter(run_router_variant(settings, plan.before)),
                await enter(run_router_variant(settings)),
                *[await enter(run_variant(each)) for each in plan.contenders],
            ]
            for variant in variants:
                # The router looks into its first streams, to know how long handing over takes.
                await _measure(variant, case, *_list_command(variant, case, client, body, engines))
            rounds = min(plan.rounds, _MOST_ROUNDS)
            for number in range(rounds):
                for variant in variants[:: 1 if number % 2 else -1]:
                    command = _list_command(variant, case, client, body, engines)
                    figures = await _measure(variant, case, *command)
                    results.add(NAME, str(case), variant.name, figures)
                    if case == USUAL and variant.name == ROUTER:
                        figures = await _measure_stopped(variant, *command)
                        results.add(NAME, str(case), STOPPED, figures)
                plan.tell(f"{NAME}: {case}, round {number + 1} of {rounds}")


def _list_command(
    variant: Variant, case: Case, client: Path, body: Path, engines: Engines
) -> tuple[str | Path, ...]:
    port = variant.envoy.listener.rpartition(":")[2]
    return (client, port, str(case.streams), str(body), engines.decode_address)


async def _measure(variant: Variant, case: Case, *command: str | Path) -> dict[str, float]:
    looks, messages = await read_looks(variant), await variant.count_messages()
    server, envoy = read_cpu_s(variant.pids), read_cpu_s((variant.envoy.pid,))
    runs = [await _run_client(*command) for _ in range(case.repeats)]
    complete, tokens, per_s, p50, p99 = zip(*runs, strict=True)
    figures = {
        "tokens_per_s": mean(per_s),
        "token_p50_us": median(p50),
        "token_p99_us": median(p99),
        "incomplete": case.streams * case.repeats - sum(complete),
        "envoy_cpu_us_per_token": (read_cpu_s((variant.envoy.pid,)) - envoy) / sum(tokens) * 1e6,
    }
    if variant.pids:
        used = read_cpu_s(variant.pids) - server
        figures["server_cpu_us_per_token"] = used / sum(tokens) * 1e6
        sent = await variant.count_messages()
        figures["messages"] = (sent.messages - messages.messages) / (
            sent.streams - messages.streams
        )
    return figures | (await read_looks(variant)).since(looks)


async def _measure_stopped(variant: Variant, *command: str | Path) -> dict[str, float]:
    """Measure tokens while the router's process takes no time from anything."""
    client = asyncio.create_task(_run_client(*command))
    try:
        await asyncio.sleep(_FLOWING_S)
        for pid in variant.pids:
            os.kill(pid, signal.SIGSTOP)
        _, _, per_s, p50, p99 = await client
    finally:
        for pid in variant.pids:
            os.kill(pid, signal.SIGCONT)
        client.cancel()
    return {"tokens_per_s": per_s, "token_p50_us": p50, "token_p99_us": p99}


async def _run_client(*command: str | Path) -> tuple[float, ...]:
    """Let all streams flow once; return what the client prints."""
    async with run_process(*command) as process:
        async with asyncio.timeout(_PATIENCE_S):
            output, _ = await process.communicate()
        if process.returncode:
            raise ClientFailed(f"the client has ended with {process.returncode}")
    return tuple(map(float, output.split()))


@asynccontextmanager
async def _stream(engines: Engines, server: Path, tokens: int) -> AsyncIterator[Engines]:
    """Run the engine that streams around a block; the prefill engines stay the same."""
    port = find_free_port()
    interval_us = 1_000_000 // _TOKENS_PER_S
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
