"""Measures the router behind the real Envoy, and writes a report.

`python -m benchmarks.speed`. Takes about ten minutes on two cores; `--quick` takes two.
"""

import argparse
import asyncio
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed import pods, requests, starting, streaming, waiting, workers
from benchmarks.speed.engines import run_engines
from benchmarks.speed.history import CommitUnusable, install_commit
from benchmarks.speed.plan import Plan
from benchmarks.speed.programs import ProgramMissing
from benchmarks.speed.report import write_report
from benchmarks.speed.results import Results
from benchmarks.speed.targets import judge
from benchmarks.speed.variants import parse_contender
from pdrouter.process_limits import raise_file_limit

_SCENARIOS = {
    module.NAME: module.run for module in (requests, streaming, waiting, pods, workers, starting)
}
_BEFORE = "68bea9a"
"""The first edition of the router, on which the targets are built."""
_REPORTS = Path(__file__).parents[1] / "reports"
_RUNS = Path(__file__).parents[1] / "runs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 if it went well."""
    options = _parse(arguments)
    raise_file_limit()
    try:
        results = asyncio.run(_measure(options))
    except (ProgramMissing, CommitUnusable) as error:
        print(error, file=sys.stderr)
        return 1
    write_report(options.output, options.artefacts, results)
    for verdict in judge(results):
        print(f"{'met   ' if verdict.met else 'missed'}  {verdict.target}: {verdict.found}")
    print(f"{options.output / 'speed.md'} is written")
    return 0


async def _measure(options: argparse.Namespace) -> Results:
    results = Results(_describe_run(options))
    with tempfile.TemporaryDirectory(prefix="pdrouter-") as name:
        async with run_engines(*options.engine_ports) as engines:
            before = await install_commit(options.before, Path(name) / "before")
            plan = Plan(
                engines, Path(name), before, options.contender, options.rounds, options.quick
            )
            for scenario in options.scenarios:
                await _SCENARIOS[scenario](plan, results)
    return results


def _describe_run(options: argparse.Namespace) -> dict[str, object]:
    return {
        "command": shlex.join(("python", "-m", "benchmarks.speed", *options.given)),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}",
        "python": platform.python_version(),
        "rounds": options.rounds,
        "quick": options.quick,
        "scenarios": options.scenarios,
        "before": options.before,
        "contenders": [contender.name for contender in options.contender],
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="*", choices=[*_SCENARIOS, []], metavar="SCENARIO", default=[])
    add("--rounds", type=int, help="samples of each figure; 5, or 2 with --quick")
    add("--quick", action="store_true", help="fewer cases, less time")
    add("--before", default=_BEFORE, metavar="COMMIT", help=f"what to measure beside; {_BEFORE}")
    add("--contender", type=parse_contender, action="append", default=[], metavar="NAME=ADDRESS")
    add("--engine-ports", type=int, nargs=2, default=(0, 0), metavar=("PREFILL", "DECODE"))
    add("--output", type=Path, default=_REPORTS, metavar="FOLDER", help="for the report")
    add("--artefacts", type=Path, default=_RUNS, metavar="FOLDER", help="for JSON")
    options = parser.parse_args(arguments)
    options.given = sys.argv[1:] if arguments is None else list(arguments)
    options.scenarios = options.scenarios or list(_SCENARIOS)
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


if __name__ == "__main__":
    sys.exit(main())
