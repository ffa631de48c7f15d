"""The targets, and whether the results meet them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.speed import pods, requests, starting, streaming, waiting
from benchmarks.speed.requests import ALONE, USUAL, Case
from benchmarks.speed.results import Results
from benchmarks.speed.variants import BARE, BARE_POST, FLOOR, ROUTER

CPU_OVER_BARE_POST = 1.35
ADDED_P50_OVER_BARE = 1.3
LARGE_CPU_OVER_BARE = 1.5
STREAMING_TOLERANCE = 0.02
WAITING_MEMORY_MB = 400.0
START_S = 0.7
IDLE_CPU_PERCENT = 0.5
STALL_MS = 5.0
_LARGE = (Case(16, 220), Case(16, 1000))
_MESSAGES_PER_REQUEST = 3.0
"""Request headers, request body, response headers: none for tokens."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a target is met.

    Attributes:
        target: what is wanted.
        found: what was measured.
        met: whether it is that.
    """

    target: str
    found: str
    met: bool


def judge(results: Results) -> list[Verdict]:
    """Return a verdict for each target whose figures were measured."""
    return [verdict for judge_one in _JUDGES for verdict in judge_one(results)]


def _judge_cpu(results: Results) -> Iterator[Verdict]:
    ratio = results.ratio(requests.NAME, str(USUAL), "server_cpu_us", ROUTER, BARE_POST)
    if ratio:
        yield Verdict(
            f"CPU per request at most {CPU_OVER_BARE_POST} x bare + POST ({USUAL})",
            f"{ratio.median:.2f} x",
            ratio.median <= CPU_OVER_BARE_POST,
        )


def _judge_latency(results: Results) -> Iterator[Verdict]:
    p50 = {
        name: found.median
        for name in (FLOOR, BARE, BARE_POST, ROUTER)
        if (found := results.spread(requests.NAME, str(ALONE), name, "p50_us"))
    }
    if len(p50) == 4:
        added = {name: value - p50[FLOOR] for name, value in p50.items()}
        ratio = added[ROUTER] / added[BARE]
        yield Verdict(
            f"p50 added at most {ADDED_P50_OVER_BARE} x bare's ({ALONE})",
            f"{ratio:.2f} x: {added[ROUTER]:.0f} us beside {added[BARE]:.0f} us;"
            f" {added[ROUTER] / added[BARE_POST]:.2f} x bare + POST's",
            ratio <= ADDED_P50_OVER_BARE,
        )


def _judge_large_bodies(results: Results) -> Iterator[Verdict]:
    for case in _LARGE:
        bare = results.ratio(requests.NAME, str(case), "server_cpu_us", ROUTER, BARE)
        post = results.ratio(requests.NAME, str(case), "server_cpu_us", ROUTER, BARE_POST)
        if bare and post:
            yield Verdict(
                f"CPU per request at most {LARGE_CPU_OVER_BARE} x bare ({case})",
                f"{bare.median:.2f} x; {post.median:.2f} x bare + POST",
                bare.median <= LARGE_CPU_OVER_BARE,
            )


def _judge_streaming(results: Results) -> Iterator[Verdict]:
    for case in results.cases(streaming.NAME):
        messages = results.spread(streaming.NAME, case, ROUTER, "messages")
        if messages:
            yield Verdict(
                f"no ext_proc message per token ({case})",
                f"{messages.high:g} messages per request",
                messages.high == _MESSAGES_PER_REQUEST,
            )
        rate = results.ratio(streaming.NAME, case, "tokens_per_s", ROUTER, FLOOR)
        if rate:
            yield Verdict(
                f"tokens/s within {STREAMING_TOLERANCE:.0%} of the floor ({case})",
                f"{rate.median:.3f} x",
                rate.median >= 1 - STREAMING_TOLERANCE,
            )
        p99 = results.ratio(streaming.NAME, case, "token_p99_us", ROUTER, FLOOR)
        if p99:
            yield Verdict(
                f"p99 of a token's way within {STREAMING_TOLERANCE:.0%} of the floor ({case})",
                f"{p99.median:.2f} x, rounds from {p99.low:.2f} to {p99.high:.2f}",
                p99.median <= 1 + STREAMING_TOLERANCE,
            )


def _judge_waiting(results: Results) -> Iterator[Verdict]:
    for case in results.cases(waiting.NAME):
        failed = results.spread(waiting.NAME, case, ROUTER, "failed")
        memory = results.spread(waiting.NAME, case, ROUTER, "peak_memory_mb")
        if failed and memory:
            yield Verdict(
                f"{case} wait at once: all complete", f"{failed.high:g} failed", not failed.high
            )
            yield Verdict(
                f"{case} wait at once: memory below {WAITING_MEMORY_MB:g} MB",
                f"{memory.high:.0f} MB",
                memory.high < WAITING_MEMORY_MB,
            )


def _judge_starting(results: Results) -> Iterator[Verdict]:
    start = results.spread(starting.NAME, starting.START, ROUTER, "start_s")
    if start:
        yield Verdict(
            f"start to serving below {START_S} s", f"{start.median:.2f} s", start.median < START_S
        )
    idle = results.spread(starting.NAME, starting.SCRAPING, ROUTER, "cpu_percent")
    if idle:
        yield Verdict(
            f"CPU below {IDLE_CPU_PERCENT} % of a core ({starting.SCRAPING})",
            f"{idle.median:.2f} %",
            idle.median < IDLE_CPU_PERCENT,
        )


def _judge_stalls(results: Results) -> Iterator[Verdict]:
    for scenario in (requests.NAME, streaming.NAME, waiting.NAME, pods.NAME):
        longest = {
            case: found.high
            for case in results.cases(scenario)
            if (found := results.spread(scenario, case, ROUTER, "longest_stall_ms"))
        }
        if longest:
            worst = max(longest, key=lambda case: longest[case])
            yield Verdict(
                f"no event-loop stall above {STALL_MS:g} ms (scenario {scenario})",
                f"up to {longest[worst]:g} ms ({worst})",
                longest[worst] <= STALL_MS,
            )


_JUDGES: tuple[Callable[[Results], Iterator[Verdict]], ...] = (
    _judge_cpu,
    _judge_latency,
    _judge_large_bodies,
    _judge_streaming,
    _judge_waiting,
    _judge_starting,
    _judge_stalls,
)
