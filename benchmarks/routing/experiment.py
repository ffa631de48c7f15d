"""Experiments: which simulations there are, and what they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from benchmarks.routing.cluster.model import Hardware, prefill_capacity
from benchmarks.routing.cluster.presets import HARDWARE, SHAPES
from benchmarks.routing.cluster.results import Summary, Targets, find_quantile, summarize
from benchmarks.routing.cluster.router_replica import RouterOptions
from benchmarks.routing.cluster.simulation import Simulation
from benchmarks.routing.cluster.workload import BLOCK_TOKENS, Workload
from benchmarks.routing.contenders import CONTENDERS
from benchmarks.routing.traces import TRACE_NAMES, read_trace
from benchmarks.routing.workloads import make_workload

HALVES = {"first": (0.0, 0.5), "second": (0.5, 1.0), "both": (0.0, 1.0)}

SHARE = 0.9
"""Share of requests within the target for the first token that a load is held at."""

_HOPELESS = 0.5
"""Share below which higher loads are not tried."""
_HIGHEST = 1.8
_LOWEST = 0.05
_STEP = 0.1
"""By which load is raised beyond those that are asked for, as long as it is held."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where workloads come from.

    Attributes:
        folder: folder of trace files; None for made-up workloads only.
        requests: size of made-up workloads, and the most that is taken of a trace; None for all of
            it.
        half: one of `HALVES`.
    """

    folder: Path | None
    requests: int | None
    half: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload on a cluster.

    Attributes:
        workload: name of a trace or a made-up workload.
        hardware: name of the hardware.
        shape: name of the cluster's shape.
    """

    workload: str
    hardware: str
    shape: str


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation.

    Attributes:
        scenario: the workload and the cluster.
        contender: who chooses the pods.
        load: request rate, compared to what the prefill pods could serve with nothing cached.
        seed: where chance begins.
    """

    scenario: Scenario
    contender: str
    load: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one simulation gave.

    Attributes:
        run: the simulation.
        rate: its requests per second.
        summary: its figures.
        code: the version of the router that it was made with; empty if that is not known.
    """

    run: Run
    rate: float
    summary: Summary
    code: str = ""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Simulations at rising load.

    Attributes:
        scenario: the workload and the cluster.
        contender: who chooses the pods.
        seed: where chance begins.
        loads: the loads that are asked for, rising.
        known: the shares in time of simulations that have been done before.
        bounded: whether these loads are all: else the sweep ends early where it is hopeless, and
            goes on beyond them until one load is held and one is not.
    """

    scenario: Scenario
    contender: str
    seed: int
    loads: Sequence[float]
    known: Mapping[Run, float] = field(default_factory=dict)
    bounded: bool = False


@lru_cache(maxsize=8)
def load_workload(name: str, source: Source, seed: int) -> Workload:
    """Return a trace or a made-up workload, as much of it as is wanted.

    Raises:
        ValueError: a trace is wanted, and there is no folder of traces.
    """
    if name in TRACE_NAMES:
        if source.folder is None:
            raise ValueError(f"the trace {name} needs a folder of traces")
        workload = read_trace(source.folder, name, seed)
    else:
        workload = make_workload(name, source.requests or 6000, seed)
    workload = workload.cut(*HALVES[source.half])
    if source.requests is not None and source.requests < len(workload.requests):
        workload = workload.cut(0.0, source.requests / len(workload.requests))
    return workload


def perform(run: Run, source: Source, targets: Targets, code: str = "") -> Finding:
    """Simulate."""
    scenario = run.scenario
    hardware, shape = HARDWARE[scenario.hardware], SHAPES[scenario.shape]
    workload = load_workload(scenario.workload, source, run.seed)
    rate = run.load * prefill_capacity(hardware, shape, workload)
    contender = CONTENDERS[run.contender]
    simulation = Simulation(
        workload.scale(rate / workload.rate),
        hardware,
        shape,
        create_strategy=lambda: contender.create(hardware),
        options=contender.adapt(RouterOptions(prefill_buckets=hardware.prefill.buckets)),
        seed=run.seed,
    )
    return Finding(run, rate, summarize(simulation.run(), hardware, targets), code)


def perform_sweep(
    sweep: Sweep, source: Source, targets: Targets, code: str = ""
) -> Sequence[Finding]:
    """Simulate at rising load; return what was not known yet."""
    findings: list[Finding] = []

    def find_share(load: float) -> float:
        run = Run(sweep.scenario, sweep.contender, round(load, 3), sweep.seed)
        known = sweep.known.get(run)
        if known is None:
            findings.append(perform(run, source, targets, code))
            known = findings[-1].summary.within_ttft
        return known

    share = 1.0
    for load in sweep.loads:
        share = find_share(load)
        if share < _HOPELESS and not sweep.bounded:
            break
    if not sweep.bounded:
        lowest, highest = sweep.loads[0], sweep.loads[-1]
        while share >= SHARE and highest < _HIGHEST:
            highest += _STEP
            share = find_share(highest)
        share = find_share(lowest)
        while share < SHARE and lowest > _LOWEST:
            lowest /= 1.5
            share = find_share(lowest)
    return findings


def measure_floor(hardware: Hardware, workload: Workload) -> float:
    """Return the least p99 of the time to first token that any choice of pods could reach.

    That is with an idle pod for every request, and with all that was ever computed cached in it.
    """
    seen: set[int] = set()
    ttfts = []
    for request in workload.requests:
        hashes = request.prompt.hashes
        matched = next((i for i, block in enumerate(hashes) if block not in seen), len(hashes))
        seen.update(hashes)
        cached = min(matched * BLOCK_TOKENS, request.prompt_tokens - 1)
        seconds = hardware.prefill.run(cached, request.prompt_tokens - cached)
        ttfts.append(seconds + hardware.link.transfer(request.prompt_tokens))
    return find_quantile(sorted(ttfts), 0.99) + hardware.decode.seconds_per_step
