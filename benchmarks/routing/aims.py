"""What the choice of pods is to reach, and what it does."""

from collections.abc import Iterator, Sequence

from benchmarks.routing.cluster.presets import SHAPES
from benchmarks.routing.cluster.results import Summary
from benchmarks.routing.comparison import Comparison
from benchmarks.routing.contenders import LEAST_REQUEST, OURS
from benchmarks.routing.experiment import Scenario

_HARDWARE = "h100"
_SHAPE = "8P+8D"
_LARGE = "64P+64D"
_HELD = {"conversation": 1.30, "synthetic": 1.35}
"""By workload: the load held by one router, compared to aibrix's default."""
_BELOW = 0.5
"""Points by which the share in time may be lower than that of the best simple rule."""
_LOSS = {2: 0.05, 4: 0.10, 8: 0.15}
"""By the number of routers: share of the load held by one that they may lose."""
_GAP = 1.25
"""Times the p99 between tokens of never serving whole."""


def list_aims(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the lines of a table of aims, and of what is reached of them."""
    by_scenario = {comparison.scenario: comparison for comparison in comparisons}
    rows = [
        row
        for rows in (
            _judge_held(by_scenario),
            _judge_below(by_scenario),
            _judge_routers(by_scenario),
            _judge_gaps(by_scenario),
            _judge_large(by_scenario),
        )
        for row in rows
    ]
    if not rows:
        return
    yield "## Aims\n"
    yield "| aim | workload | reached | |"
    yield "|---|---|---|---|"
    for aim, workload, reached, met in rows:
        yield f"| {aim} | {workload} | {reached} | {'met' if met else '**missed**'} |"
    yield ""


_Row = tuple[str, str, str, bool]


def _judge_held(by_scenario: dict[Scenario, Comparison]) -> Iterator[_Row]:
    for workload, aim in _HELD.items():
        comparison = by_scenario.get(Scenario(workload, _HARDWARE, _SHAPE))
        ratio = None if comparison is None else comparison.held_ratio
        if ratio is not None:
            yield (
                f"one router holds {aim:.2f} times the load of aibrix",
                workload,
                f"{ratio:.3f}",
                ratio >= aim,
            )


def _judge_below(by_scenario: dict[Scenario, Comparison]) -> Iterator[_Row]:
    for scenario, comparison in by_scenario.items():
        if (scenario.hardware, scenario.shape) != (_HARDWARE, _SHAPE):
            continue
        worst = comparison.find_worst()
        if worst is not None:
            yield (
                f"one router, never more than {_BELOW} points below the best simple rule from 0.3",
                scenario.workload,
                f"{worst.points:+.1f} points below {worst.rival}, load {worst.load:g}",
                worst.points <= _BELOW,
            )


def _judge_routers(by_scenario: dict[Scenario, Comparison]) -> Iterator[_Row]:
    for scenario, comparison in by_scenario.items():
        shape = SHAPES[scenario.shape]
        allowed = _LOSS.get(shape.replicas)
        alone = by_scenario.get(Scenario(scenario.workload, scenario.hardware, _SHAPE))
        if allowed is None or alone is None:
            continue
        held, one = comparison.find_held(OURS), alone.find_held(OURS)
        if held is not None and one is not None:
            loss = 1.0 - held.mean / one.mean
            yield (
                f"{shape.replicas} routers hold at most {allowed:.0%} less than one",
                scenario.workload,
                f"{-loss:+.0%}",
                loss <= allowed,
            )


def _judge_gaps(by_scenario: dict[Scenario, Comparison]) -> Iterator[_Row]:
    for scenario, comparison in by_scenario.items():
        found = comparison.find_greatest_gap_ratio()
        if scenario.shape in {_SHAPE, _LARGE} and scenario.hardware == _HARDWARE and found:
            ratio, load = found
            yield (
                f"{scenario.shape}: p99 between tokens {_GAP} times never's, where held",
                scenario.workload,
                f"{ratio:.2f} at most, load {load:g}",
                ratio <= _GAP,
            )


def _judge_large(by_scenario: dict[Scenario, Comparison]) -> Iterator[_Row]:
    for scenario, comparison in by_scenario.items():
        if scenario.shape != _LARGE:
            continue
        for load in comparison.loads:
            ours = comparison.measure(OURS, load, _get_tail)
            simple = comparison.measure(LEAST_REQUEST, load, _get_tail)
            if ours is not None and simple is not None:
                yield (
                    f"{_LARGE}: TTFT p99 no worse than that of {LEAST_REQUEST}",
                    scenario.workload,
                    f"{ours.mean:.1f} s beside {simple.mean:.1f} s, load {load:g}",
                    ours.mean <= simple.mean,
                )


def _get_tail(summary: Summary) -> float:
    return summary.ttft_p99_s
