"""Compares transports: `python -m benchmarks.transports [measure | end-to-end | report]`."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.transports.contenders import TRANSPORTS
from benchmarks.transports.end_to_end import run_all_tests
from benchmarks.transports.experiment import (
    REPOSITORY,
    Experiment,
    Plan,
    check_replies,
    count_lines,
    list_versions,
)
from benchmarks.transports.load import LoadFailed
from benchmarks.transports.report import write_report
from benchmarks.transports.tools import ToolMissing

_REPORTS = REPOSITORY / "benchmarks" / "reports"
_RUNS = REPOSITORY / "benchmarks" / "runs"


def measure(plan: Plan) -> dict[str, Any]:
    """Measure all transports; return what reports keep of it.

    Raises:
        LoadFailed: a load was not served, or not the same by all.
        ToolMissing: a program is not installed.
    """
    load_average, *_ = os.getloadavg()
    experiment = Experiment(plan)
    asyncio.run(experiment.run())
    check_replies(experiment.samples)
    return {
        "rounds": plan.rounds,
        "cores": os.cpu_count(),
        "load_average": load_average,
        "versions": list_versions(),
        "lines": {name: count_lines(transport) for name, transport in TRANSPORTS.items()},
        "samples": experiment.samples,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked, and write the report anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("measure", "end-to-end", "report"),
        default="measure",
        help="measure takes 5 minutes; end-to-end runs the tests over each transport; report only "
        "writes the page anew",
    )
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=int, default=Plan.seconds, help="of each load")
    parser.add_argument("--tests", nargs="+", default=["tests/e2e"], help="tests of end-to-end")
    parser.add_argument("--output", type=Path, default=_REPORTS, help="for the report")
    parser.add_argument("--artefacts", type=Path, default=_RUNS, help="for JSON")
    options = parser.parse_args(arguments)
    runs = options.artefacts
    measured, tested = runs / "transports.json", runs / "transports-tests.json"
    try:
        if options.what == "measure":
            _write(measured, measure(Plan(rounds=options.rounds, seconds=options.seconds)))
        elif options.what == "end-to-end":
            _write(tested, asyncio.run(run_all_tests(tuple(options.tests))))
    except (LoadFailed, ToolMissing) as error:
        print(error, file=sys.stderr)
        return 1
    if measured.exists():
        tests = json.loads(tested.read_text()) if tested.exists() else None
        page = write_report(json.loads(measured.read_text()), tests)
        (options.output / "transports.md").write_text(page)
    return 0


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
