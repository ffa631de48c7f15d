"""Compares ways to choose pods at rising load, and writes a report.

`python -m benchmarks.routing`. What is named is simulated, unless that has been done before, and
the report is made of all that has been done: so it can be done in parts. All of it takes an hour of
two cores; `--quick` takes seconds.
"""

import argparse
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.routing.cluster.presets import HARDWARE, SHAPES
from benchmarks.routing.cluster.results import Targets
from benchmarks.routing.comparison import Comparison, group_by_scenario
from benchmarks.routing.contenders import COMPARED, CONTENDERS, REPEATED
from benchmarks.routing.experiment import (
    HALVES,
    Finding,
    Run,
    Scenario,
    Source,
    Sweep,
    load_workload,
    measure_floor,
)
from benchmarks.routing.findings import FindingFile, perform_sweeps, select_known
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

_MIX = "short-and-long"
_EVERYWHERE = tuple(name for name in TRACE_NAMES if name != "azure-code")
_PLAN: Mapping[str, Mapping[str, Sequence[str]]] = {
    "h100": {
        "8P+8D": (*TRACE_NAMES, _MIX),
        "2P+4D": TRACE_NAMES,
        "4P+4D-one-slow": TRACE_NAMES,
        "8P+8D-two-routers": _EVERYWHERE,
        "8P+8D-four-routers": (*_EVERYWHERE, _MIX),
        "8P+8D-eight-routers": _EVERYWHERE,
        "64P+64D": ("conversation", "synthetic"),
    },
    "trainium2": {"8P+8D": TRACE_NAMES},
}
"""Which workloads are run on which cluster, where none are named."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    source = Source(options.traces, options.requests, options.half)
    targets = Targets(options.ttft, options.ttft_factor, options.inter_token)
    file = FindingFile(options.artefacts, source, targets)
    findings = file.read()
    scenarios = _list_scenarios(options)
    code = _describe_code()
    if not options.render:
        for stage in (_plan_sweeps, _plan_equal_loads):
            sweeps = list(stage(options, scenarios, findings))
            for found in perform_sweeps(sweeps, source, targets, code, options.processes):
                file.add(found)
                findings |= {finding.run: finding for finding in found}
    shown = {
        scenario: found
        for scenario, found in group_by_scenario(findings.values()).items()
        if not options.only or scenario in scenarios
    }
    for line in format_findings([finding for found in shown.values() for finding in found]):
        print(line)
    comparisons = [
        Comparison(
            scenario,
            found,
            measure_floor(HARDWARE[scenario.hardware], load_workload(scenario.workload, source, 0)),
        )
        for scenario, found in sorted(shown.items(), key=lambda item: _find_rank(item[0]))
    ]
    Report(source, targets, comparisons).write(options.output, options.artefacts)
    print(f"\n{options.output / 'routing.md'} is written; the rest is in {options.artefacts}")


def _list_scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Return what is named; the workloads that are planned where none are."""
    scenarios = []
    for hardware in options.hardware:
        shapes = options.shapes or tuple(_PLAN[hardware])
        for shape in shapes:
            planned = _PLAN[hardware].get(shape, TRACE_NAMES)
            if options.traces is None:
                planned = tuple(GENERATORS)
            scenarios += [
                Scenario(workload, hardware, shape) for workload in options.workloads or planned
            ]
    return scenarios


def _find_rank(scenario: Scenario) -> tuple[int, int, int]:
    names = (*TRACE_NAMES, *GENERATORS)
    return (
        list(HARDWARE).index(scenario.hardware),
        list(SHAPES).index(scenario.shape),
        names.index(scenario.workload),
    )


def _plan_sweeps(
    options: argparse.Namespace, scenarios: Sequence[Scenario], findings: Mapping[Run, Finding]
) -> Iterator[Sweep]:
    """Yield sweeps over all loads: with every seed of the contenders that matter most."""
    for scenario in scenarios:
        loads = options.loads or _BURSTY_LOADS.get(scenario.workload, _LOADS)
        for contender in options.contenders:
            for seed in options.seeds if contender in REPEATED else options.seeds[:1]:
                known = {} if options.again else select_known(findings, scenario, contender, seed)
                yield Sweep(scenario, contender, seed, loads, known, bool(options.loads))


def _plan_equal_loads(
    options: argparse.Namespace, scenarios: Sequence[Scenario], findings: Mapping[Run, Finding]
) -> Iterator[Sweep]:
    """Yield runs of all contenders at the load that aibrix's default holds in each scenario."""
    grouped = group_by_scenario(findings.values())
    for scenario in scenarios:
        load = Comparison(scenario, grouped[scenario], 0.0).equal_load
        if load is None:
            continue
        for contender in options.contenders:
            for seed in options.seeds if contender in REPEATED else options.seeds[:1]:
                known = {} if options.again else select_known(findings, scenario, contender, seed)
                yield Sweep(scenario, contender, seed, (load,), known, bounded=True)


def _describe_code() -> str:
    """Return the version of the code that is running; empty if it is not known."""
    command = ("git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude", "*")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    add = parser.add_argument
    add("--traces", type=Path, default=_TRACES if _TRACES.is_dir() else None, metavar="FOLDER")
    add("--workloads", nargs="+", choices=(*TRACE_NAMES, *GENERATORS))
    add("--hardware", nargs="+", choices=tuple(HARDWARE), default=list(HARDWARE))
    add("--shapes", nargs="+", choices=tuple(SHAPES))
    add("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(COMPARED))
    add("--loads", nargs="+", type=float, help="in rising order; these and no others")
    add("--half", choices=tuple(HALVES), default="second", help="part of each trace")
    add("--requests", type=int, help="how many at the most")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    defaults = Targets()
    add("--ttft", type=float, default=defaults.ttft_s, help="target in seconds")
    add("--ttft-factor", type=float, default=defaults.ttft_factor)
    add("--inter-token", type=float, default=defaults.inter_token_s, help="target in seconds")
    add("--output", type=Path, default=_REPORTS, metavar="FOLDER", help="for the report")
    add("--artefacts", type=Path, default=_RUNS, metavar="FOLDER", help="for findings and plots")
    add("--processes", type=int, default=os.cpu_count() or 1)
    add("--again", action="store_true", help="simulate what has been done before, too")
    add("--only", action="store_true", help="report nothing but the scenarios that are named")
    add("--render", action="store_true", help="simulate nothing, report what has been done")
    add("--quick", action="store_true", help="few requests, one cluster, three loads, one seed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.hardware, options.seeds = options.hardware[:1], options.seeds[:1]
        options.shapes = (options.shapes or ["8P+8D"])[:1]
        options.loads = options.loads or [0.5, 0.8, 1.0]
        options.requests = options.requests or 400
    return options


if __name__ == "__main__":
    main()
