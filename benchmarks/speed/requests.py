"""Scenario `requests`: engines that answer at once, at rising concurrency and body size."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.accounting import read_cpu_s
from benchmarks.speed.engines import Engines
from benchmarks.speed.load import Load, send_load
from benchmarks.speed.plan import Plan
from benchmarks.speed.results import Results
from benchmarks.speed.stalls import Looks
from benchmarks.speed.variants import Variant, run_all_variants
from benchmarks.steps import make_body

NAME = "requests"
PODS = 8
_SETTLE_S = 0.1
_FIRST_REQUESTS = 50


@dataclass(frozen=True, slots=True)
class Case:
    """One point that is measured.

    Attributes:
        concurrency: requests at a time.
        kilobytes: size of their bodies.
    """

    concurrency: int
    kilobytes: int

    def __str__(self) -> str:
        size = f"{self.kilobytes} KB" if self.kilobytes < 1000 else f"{self.kilobytes // 1000} MB"
        return f"concurrency {self.concurrency}, {size}"


USUAL = Case(16, 8)
"""The case that targets speak of."""
ALONE = Case(1, 8)
MANY = Case(64, 8)
CONCURRENCIES = tuple(Case(concurrency, 8) for concurrency in (1, 16, 64, 256))
SIZES = tuple(Case(16, kilobytes) for kilobytes in (1, 8, 64, 220, 1000))
QUICK = (ALONE, USUAL, MANY, Case(16, 220))


@dataclass(frozen=True, slots=True)
class _Workload:
    """What is sent, and how many requests of a case a variant takes in the time of a sample."""

    engines: Engines
    directory: Path
    seconds: float
    rates: dict[tuple[str, Case], float]

    async def measure(self, variant: Variant, case: Case) -> dict[str, float]:
        """Send requests for about the time of a sample; return the figures."""
        rate = self.rates.get((variant.name, case))
        count = max(_FIRST_REQUESTS if rate is None else int(rate * self.seconds), case.concurrency)
        load = Load(
            variant.url,
            self._body_file(case),
            count,
            case.concurrency,
            {"target-pod": self.engines.decode_address},
        )
        figures = await measure_load(variant, load)
        self.rates[variant.name, case] = figures["requests_per_s"]
        return figures

    def _body_file(self, case: Case) -> Path:
        path = self.directory / f"body-{case.kilobytes}"
        if not path.exists():
            path.write_bytes(make_body(case.kilobytes * 1000))
        return path


async def measure_load(variant: Variant, load: Load) -> dict[str, float]:
    """Send requests to a variant; return what they cost."""
    looks = await read_looks(variant)
    messages = await variant.count_messages()
    server, envoy = read_cpu_s(variant.pids), read_cpu_s((variant.envoy.pid,))
    report = await send_load(load)
    await asyncio.sleep(_SETTLE_S)  # The last streams end after the last answers.
    count = report.succeeded
    figures = {
        "requests_per_s": count / report.seconds,
        "p50_us": report.p50_us,
        "p99_us": report.p99_us,
        "failed": report.failed,
        "envoy_cpu_us": (read_cpu_s((variant.envoy.pid,)) - envoy) / count * 1e6,
    }
    if variant.pids:
        used = read_cpu_s(variant.pids) - server
        figures["server_cpu_us"] = used / count * 1e6
        figures["server_cores"] = used / report.seconds
    sent = await variant.count_messages()
    figures["messages"] = (sent.messages - messages.messages) / count
    return figures | (await read_looks(variant)).since(looks)


async def read_looks(variant: Variant) -> Looks:
    if variant.router is None:
        return Looks({})
    return Looks.parse(await variant.router.read_metrics())


async def run(plan: Plan, results: Results) -> None:
    """Measure all cases with all variants in turns, several times."""
    endpoints = plan.engines.write_endpoints(plan.directory / "requests.yaml", PODS)
    environment = {"PDROUTER_ENDPOINTS": str(endpoints)}
    cases: Sequence[Any] = QUICK if plan.quick else list(dict.fromkeys((*CONCURRENCIES, *SIZES)))
    workload = _Workload(plan.engines, plan.directory, plan.sample_s, {})
    async with run_all_variants(environment, plan.before, plan.contenders) as variants:
        for case in cases:
            for variant in variants:
                await workload.measure(variant, case)
        for number in range(plan.rounds):
            # Each variant comes first, last and in between in turn.
            turn = number % len(variants)
            for case in cases:
                for variant in (*variants[turn:], *variants[:turn]):
                    figures = await workload.measure(variant, case)
                    results.add(NAME, str(case), variant.name, figures)
            plan.tell(f"{NAME}: round {number + 1} of {plan.rounds}")
