"""The targets, and whether the results meet them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.speed import pods, requests, starting, streaming, waiting, workers
from benchmarks.speed.requests import ALONE, MANY, USUAL, Case
from benchmarks.speed.results import Results
from benchmarks.speed.variants import BEFORE, FLOOR, ROUTER

_LARGE = Case(16, 220)
_LARGEST = Case(16, 1000)
CPU: Mapping[Case, float] = MappingProxyType({USUAL: 0.38, MANY: 0.33, _LARGE: 0.6, _LARGEST: 0.6})
"""The router's CPU per request, as a multiple of the earlier router's."""
ADDED_P50 = 0.65
REQUESTS_PER_S = 2.7
ENVOY_CPU = 0.55
TOKEN_CPU = 0.4
TOKEN_P99_OVER_FLOOR = 1.2
TOKENS_PER_S_TOLERANCE = 0.02
WAITING_MEMORY_MB = 300.0
START_S = 0.7
IDLE_CPU_PERCENT = 2.0
STALL_MS = 5.0
LARGE_STALL_MS = 20.0
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
    for case, limit in CPU.items():
        yield from _judge_multiple(
            results, f"CPU per request ({case})", (requests.NAME, case, "server_cpu_us"), limit
        )
    envoy = (requests.NAME, MANY, "envoy_cpu_us")
    yield from _judge_multiple(results, f"Envoy's CPU per request ({MANY})", envoy, ENVOY_CPU)
    token = (streaming.NAME, streaming.SHORT, "server_cpu_us_per_token")
    yield from _judge_multiple(results, f"CPU per token ({streaming.SHORT})", token, TOKEN_CPU)


def _judge_multiple(
    results: Results, what: str, figure: tuple[str, object, str], limit: float
) -> Iterator[Verdict]:
    scenario, case, name = figure
    ratio = results.ratio(scenario, str(case), name, ROUTER, BEFORE)
    if ratio:
        yield Verdict(
            f"{what} at most {limit} x {BEFORE}",
            f"{ratio.median:.2f} x, rounds from {ratio.low:.2f} to {ratio.high:.2f}",
            ratio.median <= limit,
        )


def _judge_throughput(results: Results) -> Iterator[Verdict]:
    ratio = results.ratio(requests.NAME, str(MANY), "requests_per_s", ROUTER, BEFORE)
    if ratio:
        yield Verdict(
            f"requests/s at least {REQUESTS_PER_S} x {BEFORE} ({MANY})",
            f"{ratio.median:.2f} x",
            ratio.median >= REQUESTS_PER_S,
        )


def _judge_latency(results: Results) -> Iterator[Verdict]:
    p50 = {
        name: found.median
        for name in (FLOOR, BEFORE, ROUTER)
        if (found := results.spread(requests.NAME, str(ALONE), name, "p50_us"))
    }
    if len(p50) == 3:
        added, former = p50[ROUTER] - p50[FLOOR], p50[BEFORE] - p50[FLOOR]
        yield Verdict(
            f"p50 over the floor at most {ADDED_P50} x {BEFORE} ({ALONE})",
            f"{added / former:.2f} x: {added:.0f} us beside {former:.0f} us",
            added / former <= ADDED_P50,
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
                f"tokens/s within {TOKENS_PER_S_TOLERANCE:.0%} of the floor ({case})",
                f"{rate.median:.3f} x",
                rate.median >= 1 - TOKENS_PER_S_TOLERANCE,
            )
    usual = str(streaming.USUAL)
    p99 = results.ratio(streaming.NAME, usual, "token_p99_us", ROUTER, FLOOR)
    if p99:
        yield Verdict(
            f"p99 of a token's way at most {TOKEN_P99_OVER_FLOOR} x the floor ({usual})",
            f"{p99.median:.2f} x, rounds from {p99.low:.2f} to {p99.high:.2f}"
            + _beside_stopped(results),
            p99.median <= TOKEN_P99_OVER_FLOOR,
        )


def _beside_stopped(results: Results) -> str:
    """Tell how much of a token's way is left where the router's process does nothing."""
    p99 = results.ratio(
        streaming.NAME, str(streaming.USUAL), "token_p99_us", streaming.STOPPED, FLOOR
    )
    return f"; {p99.median:.2f} x with the router stopped" if p99 else ""


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


def _judge_workers(results: Results) -> Iterator[Verdict]:
    case, two = str(requests.MANY), workers.describe(2)
    rate = results.ratio(workers.NAME, case, "requests_per_s", two, ROUTER)
    if rate:
        yield Verdict(
            f"two workers serve more requests/s than one ({case})",
            f"{rate.median:.2f} x, rounds from {rate.low:.2f} to {rate.high:.2f}",
            rate.median > 1.0,
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
            f"CPU at most {IDLE_CPU_PERCENT:g} % of a core ({starting.SCRAPING})",
            f"{idle.median:.2f} %",
            idle.median <= IDLE_CPU_PERCENT,
        )


def _judge_stalls(results: Results) -> Iterator[Verdict]:
    for scenario in (requests.NAME, streaming.NAME, waiting.NAME, pods.NAME):
        small = {
            case: found.high
            for case in results.cases(scenario)
            if (found := results.spread(scenario, case, ROUTER, "longest_stall_ms"))
        }
        large = small.pop(str(_LARGEST), None)
        small.pop(str(_LARGE), None)
        if small:
            worst = max(small, key=lambda case: small[case])
            yield Verdict(
                f"no turn of the event loop above {STALL_MS:g} ms (scenario {scenario})",
                f"up to {small[worst]:g} ms ({worst})",
                small[worst] <= STALL_MS,
            )
        if large is not None:
            yield Verdict(
                f"no turn above {LARGE_STALL_MS:g} ms ({_LARGEST})",
                f"up to {large:g} ms",
                large <= LARGE_STALL_MS,
            )


_JUDGES: tuple[Callable[[Results], Iterator[Verdict]], ...] = (
    _judge_cpu,
    _judge_throughput,
    _judge_latency,
    _judge_streaming,
    _judge_waiting,
    _judge_workers,
    _judge_starting,
    _judge_stalls,
)
