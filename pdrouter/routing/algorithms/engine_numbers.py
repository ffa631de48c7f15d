"""The algorithms that go by one number that engines say of themselves."""

from collections.abc import Callable, Sequence
from math import isfinite

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.load.samples import EngineSample
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.scoring import Measures

Read = Callable[[EngineSample], float | None]


class EngineNumber:
    """Measures pods by a number of their engines: the pod with the least is the best.

    Engines are asked once a second, and in the meantime all requests would go to the same pod: so
    what this router has sent there since counts, as much as a request counts on average.
    """

    most = False

    def __init__(
        self, name: str, unit: str, read: Read, instead: tuple[str, Read] | None = None
    ) -> None:
        """Set up the algorithm.

        Args:
            name: its name.
            unit: what the number is, as a name that ends in its unit.
            read: gives the number; None where the engine does not say it.
            instead: what counts where no engine says it, in words, and how it is read.
        """
        self.name = name
        self.unit = unit
        self._read = read
        self._instead = instead

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the number of each pod, as it probably is by now."""
        values = _read_samples(pods, request, self._read)
        said, notes = self.unit, []
        if self._instead is not None and all(value is None for value in values):
            said, read = self._instead
            values = _read_samples(pods, request, read)
            notes.append(f"no engine says its {self.unit}: {said}")
        unsaid = values.count(None)
        if unsaid:
            notes.append(f"{unsaid} of {len(pods)} engines do not say their {said}")
        return Measures(add_recent(values, pods, request, leg), "; ".join(notes))


def _read_samples(
    pods: Sequence[Pod], request: RankingRequest, read: Read
) -> Sequence[float | None]:
    """Return what is read of the sample of each pod; None where there is none."""
    samples = request.state.samples
    return [
        None if sample is None else read(sample)
        for sample in (samples.get(pod.uid) for pod in pods)
    ]


def add_recent(
    values: Sequence[float | None], pods: Sequence[Pod], request: RankingRequest, leg: Leg
) -> Sequence[float | None]:
    """Return numbers of engines with what was sent there since they were said.

    Each request counts as much as one does on average: what all pods say together, by the requests
    that they had when they said it.
    """
    recent = count_recent(pods, request, leg)
    if not any(recent):
        return values
    samples, total, there = request.state.samples, 0.0, 0.0
    for pod, value in zip(pods, values, strict=True):
        if value is not None and isfinite(value):
            sample = samples[pod.uid]
            total += value
            there += sample.own_requests + sample.others
    each = total / max(1.0, there)
    return [
        None if value is None else value + each * requests
        for value, requests in zip(values, recent, strict=True)
    ]


def count_recent(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> list[float]:
    """Return how many requests this router has sent to each pod since its sample, at the least."""
    loads, samples = request.state.ledger.loads[leg], request.state.samples
    counts: list[float] = []
    for pod in pods:
        load, sample = loads.get(pod.uid), samples.get(pod.uid)
        ours = 0.0 if load is None else load.requests
        counts.append(ours if sample is None else max(0.0, ours - sample.own_requests))
    return counts


def _read_memory(sample: EngineSample) -> float | None:
    return sample.kv_usage


def _read_all_memory(sample: EngineSample) -> float | None:
    return None if sample.kv_usage is None else sample.kv_usage + (sample.cpu_usage or 0.0)


def _read_utilization(sample: EngineSample) -> float | None:
    return sample.utilization


def _read_throughput(sample: EngineSample) -> float | None:
    prompts, outputs = sample.prompt_tokens_per_s, sample.generated_tokens_per_s
    return outputs if prompts is None else 2.0 * prompts + (outputs or 0.0)


LEAST_GPU_CACHE = EngineNumber("least-gpu-cache", "kv_usage", _read_memory)
"""The pod that uses the least of its KV memory."""

LEAST_KV_CACHE = EngineNumber("least-kv-cache", "kv_and_cpu_usage", _read_all_memory)
"""That, with the memory for blocks on the host, where an engine has such."""

LEAST_UTILIZATION = EngineNumber(
    "least-utilization", "utilization", _read_utilization, ("kv_usage", _read_memory)
)
"""The pod that does the least of what it can do."""

THROUGHPUT = EngineNumber("throughput", "tokens_per_s", _read_throughput)
"""The pod that works on the fewest tokens per second, those of prompts counted twice."""
