"""Scenario `workers`: the same requests, served by one worker or by several that know the same."""

import socket
from contextlib import ExitStack

from benchmarks.speed.load import Load
from benchmarks.speed.plan import Plan
from benchmarks.speed.requests import MANY, PODS, measure_load
from benchmarks.speed.results import Results
from benchmarks.speed.variants import ROUTER, run_router_variant
from benchmarks.steps import make_body

NAME = "workers"
COUNTS = (1, 2)
"""On two cores, more have nothing to run on."""
_REQUESTS = 3000
_QUICK_REQUESTS = 1000
_FIRST_REQUESTS = 200


def describe(count: int) -> str:
    """Return what a variant is called."""
    return ROUTER if count == 1 else f"{ROUTER}, {count} workers"


async def run(plan: Plan, results: Results) -> None:
    """Load both in turns, several times."""
    endpoints = plan.engines.write_endpoints(plan.directory / "workers.yaml", PODS)
    body = plan.directory / "workers-body"
    body.write_bytes(make_body(MANY.kilobytes * 1000))
    count = _QUICK_REQUESTS if plan.quick else _REQUESTS
    for round_number in range(plan.rounds):
        # A router at a time: one that only waits would take its part of two cores all the same.
        for workers in COUNTS if round_number % 2 == 0 else reversed(COUNTS):
            environment = {
                "PDROUTER_ENDPOINTS": str(endpoints),
                "PDROUTER_WORKERS": str(workers),
                "PDROUTER_GRPC_BIND": f"127.0.0.1:{find_free_ports(workers)}",
            }
            async with run_router_variant(environment) as variant:
                headers = {"target-pod": plan.engines.decode_address}
                first = Load(variant.url, body, _FIRST_REQUESTS, MANY.concurrency, headers)
                await measure_load(variant, first)
                load = Load(variant.url, body, count, MANY.concurrency, headers)
                results.add(NAME, str(MANY), describe(workers), await measure_load(variant, load))
    plan.tell(f"{NAME}: done")


def find_free_ports(count: int) -> int:
    """Return the first of so many free ports that follow on each other."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for number in range(1, count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except OSError:
                continue
            return port
