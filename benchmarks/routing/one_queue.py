"""What a single queue for all prefill pods would give: `python -m benchmarks.routing.one_queue`.

A router sends a request to a pod at once, and it waits there though another pod may be done first.
Here no request waits while a pod is idle, and each finds what any pod has cached: all pods take
from one queue, and share one cache as large as all of theirs together. No choice of pods by a
router can do that; what is missing to it is what better choices could still gain.
"""

import argparse
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing.cluster.block_cache import Allocation, BlockCache
from benchmarks.routing.cluster.model import Hardware, prefill_capacity
from benchmarks.routing.cluster.presets import HARDWARE, SHAPES
from benchmarks.routing.cluster.results import Targets, find_quantile
from benchmarks.routing.cluster.workload import BLOCK_TOKENS, Workload
from benchmarks.routing.experiment import HALVES, Source, load_workload
from benchmarks.routing.traces import TRACE_NAMES

LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Ideal:
    """What one queue gives.

    Attributes:
        within_ttft: share of requests within the target for the first token.
        ttft_p99_s: 99 in a hundred requests had their first token within so many seconds.
        hit_rate: share of prompt tokens that were cached.
    """

    within_ttft: float
    ttft_p99_s: float
    hit_rate: float


def simulate_one_queue(
    workload: Workload, hardware: Hardware, pods: int, targets: Targets
) -> Ideal:
    """Serve a workload by pods that take from one queue and share one cache.

    Each pod computes one prompt at a time. The first token comes when its blocks have been
    transferred and the decode pod has made a step; decode pods are never short of anything.
    """
    cache = BlockCache(pods * hardware.prefill_kv_tokens)
    idle_at = [0.0] * pods
    computing: list[tuple[float, int, Allocation]] = []
    ttfts, in_time, cached_tokens = [], 0, 0
    for number, request in enumerate(workload.requests):
        start = max(request.arrival_s, heapq.heappop(idle_at))
        while computing and computing[0][0] <= start:
            _, _, computed = heapq.heappop(computing)
            cache.store(computed)
            cache.release(computed)
        allocation = cache.allocate(request.prompt)
        if allocation is None:
            raise ValueError("the prompts that are computed at once do not fit into the memory")
        cached = allocation.cached * BLOCK_TOKENS
        end = start + hardware.prefill.run(cached, request.prompt_tokens - cached)
        heapq.heappush(idle_at, end)
        heapq.heappush(computing, (end, number, allocation))
        delivery = hardware.link.transfer(request.prompt_tokens) + hardware.decode.seconds_per_step
        ttft = end + delivery - request.arrival_s
        ttfts.append(ttft)
        in_time += ttft <= targets.allowed_ttft(hardware, request.prompt_tokens)
        cached_tokens += cached
    prompt_tokens = sum(request.prompt_tokens for request in workload.requests)
    return Ideal(
        in_time / len(ttfts), find_quantile(sorted(ttfts), 0.99), cached_tokens / prompt_tokens
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what one queue gives at rising load."""
    options = _parse(arguments)
    hardware, shape = HARDWARE[options.hardware], SHAPES[options.shape]
    source = Source(options.traces, options.requests, options.half)
    workload = load_workload(options.workload, source, options.seed)
    print(f"{options.workload}, {shape.name}, {hardware.name}: one queue for all prefill pods")
    for load in options.loads:
        rate = load * prefill_capacity(hardware, shape, workload)
        scaled = workload.scale(rate / workload.rate)
        ideal = simulate_one_queue(scaled, hardware, len(shape.prefill), Targets())
        print(
            f"load {load:.2f}: {ideal.within_ttft:6.1%} within the target, "
            f"TTFT p99 {ideal.ttft_p99_s:6.2f} s, hit {ideal.hit_rate:.1%}"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing.one_queue", description=__doc__
    )
    even = [name for name, shape in SHAPES.items() if set(shape.prefill) == {1.0}]
    parser.add_argument("workload", help="a trace, or a made-up workload")
    parser.add_argument("--traces", type=Path, metavar="FOLDER")
    parser.add_argument("--hardware", choices=tuple(HARDWARE), default="h100")
    parser.add_argument("--shape", choices=even, default=even[0])
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--half", choices=tuple(HALVES), default="second", help="part of a trace")
    parser.add_argument("--requests", type=int, help="how many at the most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.workload in TRACE_NAMES and options.traces is None:
        parser.error("a trace needs --traces")
    return options


if __name__ == "__main__":
    main()
