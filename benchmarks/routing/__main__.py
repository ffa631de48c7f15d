"""Compares ways to choose pods at rising load, and writes a report.

`python -m benchmarks.routing`. Takes 25 minutes on two cores; `--quick` takes seconds.
"""

import argparse
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.routing.cluster.presets import HARDWARE, SHAPES
from benchmarks.routing.cluster.results import Targets
from benchmarks.routing.comparison import compare, find_held_load
from benchmarks.routing.contenders import AIBRIX, CONTENDERS, OURS
from benchmarks.routing.experiment import (
    HALVES,
    Finding,
    Run,
    Scenario,
    Source,
    load_workload,
    measure_floor,
    perform_all,
)
from benchmarks.routing.report import Report, format_findings
from benchmarks.routing.traces import TRACE_NAMES
from benchmarks.routing.workloads import GENERATORS

_ROOT = Path(__file__).parents[2]
_TRACES = _ROOT.parent / "shared" / "traces"
_REPORTS = _ROOT / "benchmarks" / "reports"
_RUNS = _ROOT / "benchmarks" / "runs"

_LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
_BURSTY_LOADS = {"azure-code": (0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)}
"""Where minutes of silence come between bursts, the bursts decide: mean load is far lower."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    source = Source(options.traces, options.requests, options.half, options.seed)
    targets = Targets(options.ttft, options.ttft_factor, options.inter_token)
    scenarios = [
        Scenario(workload, hardware, shape)
        for hardware in options.hardware
        for shape in (options.shapes if hardware == options.hardware[0] else options.shapes[:1])
        for workload in options.workloads
    ]
    runs = [
        Run(scenario, contender, load)
        for scenario in scenarios
        for load in options.loads or _BURSTY_LOADS.get(scenario.workload, _LOADS)
        for contender in options.contenders
    ]
    findings = perform_all(runs, source, targets, options.processes)
    equal = perform_all(
        _plan_equal_loads(findings, options.contenders), source, targets, options.processes
    )
    for line in format_findings([*findings, *equal]):
        print(line)
    comparisons = [
        compare(
            scenario,
            [finding for finding in findings if finding.run.scenario == scenario],
            [finding for finding in equal if finding.run.scenario == scenario],
            measure_floor(HARDWARE[scenario.hardware], load_workload(scenario.workload, source)),
        )
        for scenario in scenarios
    ]
    Report(source, targets, findings, equal, comparisons).write(options.output, options.artefacts)
    print(f"\n{options.output / 'routing.md'} is written; the rest is in {options.artefacts}")


def _plan_equal_loads(findings: Sequence[Finding], contenders: Sequence[str]) -> list[Run]:
    """Return runs of all contenders at the load that aibrix's default holds in each scenario."""
    runs = []
    reference = [finding for finding in findings if finding.run.contender == AIBRIX]
    for scenario, group in groupby(reference, key=lambda finding: finding.run.scenario):
        held = find_held_load(list(group))
        if held is not None:
            runs += [Run(scenario, contender, round(held, 3)) for contender in contenders]
    return runs


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    add = parser.add_argument
    add("--traces", type=Path, default=_TRACES if _TRACES.is_dir() else None, metavar="FOLDER")
    add("--workloads", nargs="+", choices=(*TRACE_NAMES, *GENERATORS))
    add("--hardware", nargs="+", choices=tuple(HARDWARE), default=list(HARDWARE))
    add("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    add("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    add("--loads", nargs="+", type=float, help="in rising order")
    add("--half", choices=tuple(HALVES), default="second", help="part of each trace")
    add("--requests", type=int, help="how many at the most")
    add("--seed", type=int, default=0)
    defaults = Targets()
    add("--ttft", type=float, default=defaults.ttft_s, help="target in seconds")
    add("--ttft-factor", type=float, default=defaults.ttft_factor)
    add("--inter-token", type=float, default=defaults.inter_token_s, help="target in seconds")
    add("--output", type=Path, default=_REPORTS, metavar="FOLDER", help="for the report")
    add("--artefacts", type=Path, default=_RUNS, metavar="FOLDER", help="for JSON and plots")
    add("--processes", type=int, default=os.cpu_count() or 1)
    add("--quick", action="store_true", help="few requests, one cluster, three loads")
    options = parser.parse_args(arguments)
    if not {AIBRIX, OURS} <= set(options.contenders):
        parser.error(f"--contenders: the report compares {AIBRIX} and {OURS}, name both")
    if options.workloads is None:
        options.workloads = list(GENERATORS if options.traces is None else TRACE_NAMES)
    if options.quick:
        options.hardware, options.shapes = options.hardware[:1], options.shapes[:1]
        options.loads = options.loads or [0.5, 0.8, 1.0]
        options.requests = options.requests or 400
    return options


if __name__ == "__main__":
    main()
