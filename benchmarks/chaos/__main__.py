"""Thousands of requests over an installation in which everything fails, and what holds.

`python -m benchmarks.chaos` runs simulated engines, two routers and the real Envoy on loopback. It
exits 1 if a promise of docs/reliability.md is broken.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.chaos.installation import Scenario
from benchmarks.chaos.report import format_reports, list_broken, write_table
from benchmarks.chaos.run import Report, run_chaos
from pdrouter.process_limits import raise_file_limit
from pdrouter.tools.envoy_config import Routing

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SCENARIOS = {
    "NIXL pull": Scenario("nixl", Routing.ORIGINAL_DST),
    "NIXL pull, Envoy with a list of pods": Scenario("nixl", Routing.OVERRIDE_HOST),
    "Neuron, older wire": Scenario("neuron-legacy", Routing.ORIGINAL_DST),
    "SGLang": Scenario("bootstrap", Routing.ORIGINAL_DST, together=True),
    "NIXL push": Scenario("nixl-push", Routing.ORIGINAL_DST, together=True),
    "Mooncake": Scenario("mooncake", Routing.ORIGINAL_DST, together=True),
    "P2P": Scenario("offloading", Routing.ORIGINAL_DST, together=True),
    "TensorRT-LLM, context first": Scenario("trtllm", Routing.ORIGINAL_DST),
    "TensorRT-LLM, generation first": Scenario(
        "trtllm",
        Routing.ORIGINAL_DST,
        together=True,
        settings={"PDROUTER_TRTLLM_ORDER": "generation-first"},
    ),
}
"""By what the report calls them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return 0 if all promises held."""
    options = _parse(arguments)
    raise_file_limit()
    # What engines say of connections that are cut on purpose.
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)
    reports = asyncio.run(_run_all(options))
    table = format_reports(reports)
    print(table)
    if options.write:
        write_table(_PAGE, table)
    broken = False
    for name, report in reports.items():
        for promise in list_broken(report):
            broken = True
            print(f"broken, {name}: {promise}")
        for example in report.tally.examples:
            print(f"  {example}")
    print("promises were broken" if broken else "all promises held")
    return 1 if broken else 0


async def _run_all(options: argparse.Namespace) -> dict[str, Report]:
    tell = partial(print, flush=True)
    return {
        name: await run_chaos(scenario, options.seed, options.requests, tell)
        for number, (name, scenario) in enumerate(SCENARIOS.items(), 1)
        if options.only in (None, number)
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    add = parser.add_argument
    add("--requests", type=int, default=10_000, help="for each wire; 10,000")
    add("--seed", type=int, default=1, help="the same seed is the same plan; 1")
    numbers = range(1, len(SCENARIOS) + 1)
    told = "; ".join(f"{number}: {name}" for number, name in zip(numbers, SCENARIOS, strict=True))
    add("--only", type=int, choices=numbers, help=f"one of them only: {told}")
    add("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args(arguments)
    if options.requests < 1:
        parser.error("--requests must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
