"""Scenario `starting`: the time until the router serves, and what it costs when nothing happens."""

import asyncio
import time

from benchmarks.speed.accounting import read_cpu_s, read_peak_memory_mb
from benchmarks.speed.plan import Plan
from benchmarks.speed.processes import run_router
from benchmarks.speed.requests import PODS
from benchmarks.speed.results import Results
from benchmarks.speed.variants import ROUTER

NAME = "starting"
START = "start"
SCRAPING = "idle, 100 pods scraped each second"
NOT_SCRAPING = "idle, 100 pods not scraped"
_IDLE_PODS = 100
_SCRAPED_MS = 1000
_SELDOM_MS = 60000
_IDLE_S = 10.0
_QUICK_IDLE_S = 3.0
_FIRST_SCRAPES_S = 2.0


async def run(plan: Plan, results: Results) -> None:
    """Start the router several times, and leave it alone."""
    few = str(plan.engines.write_endpoints(plan.directory / "few.yaml", PODS))
    many = str(plan.engines.write_endpoints(plan.directory / "many.yaml", _IDLE_PODS))
    for _ in range(plan.rounds):
        async with run_router({"PDROUTER_ENDPOINTS": few}) as router:
            memory = read_peak_memory_mb((router.pid,))
            results.add(NAME, START, ROUTER, {"start_s": router.start_s, "memory_mb": memory})
    for case, interval_ms in ((SCRAPING, _SCRAPED_MS), (NOT_SCRAPING, _SELDOM_MS)):
        environment = {
            "PDROUTER_ENDPOINTS": many,
            "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": str(interval_ms),
        }
        async with run_router(environment) as router:
            await asyncio.sleep(_FIRST_SCRAPES_S)
            cpu, begun = read_cpu_s((router.pid,)), time.monotonic()
            await asyncio.sleep(_QUICK_IDLE_S if plan.quick else _IDLE_S)
            used = (read_cpu_s((router.pid,)) - cpu) / (time.monotonic() - begun)
            results.add(NAME, case, ROUTER, {"cpu_percent": 100 * used})
    plan.tell(f"{NAME}: done")
