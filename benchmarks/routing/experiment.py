"""Experiments: which simulations there are, and how they are run on all cores."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Source:
    """Where workloads come from.

    Attributes:
        folder: folder of trace files; None for made-up workloads only.
        requests: size of made-up workloads, and the most that is taken of a trace; None for all of
            it.
        half: one of `HALVES`.
        seed: where chance begins.
    """

    folder: Path | None
    requests: int | None
    half: str
    seed: int


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
    """

    scenario: Scenario
    contender: str
    load: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What one simulation gave.

    Attributes:
        run: the simulation.
        rate: its requests per second.
        summary: its figures.
    """

    run: Run
    rate: float
    summary: Summary

    def describe(self) -> dict[str, Any]:
        """Return it as members of a JSON object."""
        return {
            **asdict(self.run.scenario),
            "contender": self.run.contender,
            "load": self.run.load,
            "rate": round(self.rate, 3),
            **{name: round(value, 4) for name, value in asdict(self.summary).items()},
        }


@lru_cache(maxsize=8)
def load_workload(name: str, source: Source) -> Workload:
    """Return a trace or a made-up workload, as much of it as is wanted.

    Raises:
        ValueError: a trace is wanted, and there is no folder of traces.
    """
    if name in TRACE_NAMES:
        if source.folder is None:
            raise ValueError(f"the trace {name} needs a folder of traces")
        workload = read_trace(source.folder, name, source.seed)
    else:
        workload = make_workload(name, source.requests or 6000, source.seed)
    workload = workload.cut(*HALVES[source.half])
    if source.requests is not None and source.requests < len(workload.requests):
        workload = workload.cut(0.0, source.requests / len(workload.requests))
    return workload


def perform(run: Run, source: Source, targets: Targets) -> Finding:
    """Simulate."""
    scenario = run.scenario
    hardware, shape = HARDWARE[scenario.hardware], SHAPES[scenario.shape]
    workload = load_workload(scenario.workload, source)
    rate = run.load * prefill_capacity(hardware, shape, workload)
    contender = CONTENDERS[run.contender]
    simulation = Simulation(
        workload.scale(rate / workload.rate),
        hardware,
        shape,
        create_strategy=lambda: contender.create(hardware),
        options=contender.adapt(
            RouterOptions(prefill_buckets=hardware.prefill.buckets), hardware, targets
        ),
        seed=source.seed,
    )
    return Finding(run, rate, summarize(simulation.run(), hardware, targets))


def perform_all(
    runs: Iterable[Run], source: Source, targets: Targets, processes: int
) -> Sequence[Finding]:
    """Simulate all, several at a time; findings come in the order of the runs."""
    listed = list(runs)
    count = len(listed)
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(perform, listed, [source] * count, [targets] * count))


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
