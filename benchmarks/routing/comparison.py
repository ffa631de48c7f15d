"""Compares findings: the load that each contender holds, and how ours stands beside the others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.routing.cluster.results import Summary
from benchmarks.routing.contenders import AIBRIX, OURS, OURS_APART, SIMPLE
from benchmarks.routing.experiment import SHARE, Finding, Scenario

_LEAST_GOOD = 0.5
"""Share in time that the best contender must have for a load to be compared at."""

_NEAR = 0.02
"""Share of a load by which another one is as good as the same."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure, with several seeds.

    Attributes:
        mean: the mean.
        low: the lowest.
        high: the highest.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of values; None if there are none."""
        listed = list(values)
        if not listed:
            return None
        return cls(sum(listed) / len(listed), min(listed), max(listed))

    def describe(self, unit: str = "") -> str:
        """Return the mean, and the lowest and the highest where they differ."""
        if self.low == self.high:
            return f"{self.mean:.2f}{unit}"
        return f"{self.mean:.2f}{unit} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Distance:
    """How far ours is from the best of some others, where it is farthest.

    Attributes:
        points: by how many points its share in time is lower; negative where it is higher.
        load: at this load.
        rival: the best of the others there.
    """

    points: float
    load: float
    rival: str


class Comparison:
    """All contenders in one scenario.

    Attributes:
        scenario: the scenario.
        floor_p99_s: the least p99 of the time to first token that any choice could reach.
        findings: all of the scenario's, at rising load.
        first_seed: the seed that all contenders were run with.
        loads: the loads that all of them may have been tried at, rising.
    """

    def __init__(self, scenario: Scenario, findings: Sequence[Finding], floor_p99_s: float) -> None:
        """Sort findings.

        Args:
            scenario: the scenario.
            findings: all of the scenario's.
            floor_p99_s: what no choice could beat.
        """
        self.scenario = scenario
        self.floor_p99_s = floor_p99_s
        self.findings = sorted(findings, key=lambda finding: finding.run.load)
        self.first_seed = min(finding.run.seed for finding in findings)
        self.loads = sorted({finding.run.load for finding in findings})
        self._by_seed: dict[str, dict[int, list[Finding]]] = {}
        for finding in self.findings:
            seeds = self._by_seed.setdefault(finding.run.contender, {})
            seeds.setdefault(finding.run.seed, []).append(finding)

    def find_held(self, contender: str) -> Spread | None:
        """Return the load that a contender holds; None if it is not between those tried."""
        held = map(find_held_load, self._by_seed.get(contender, {}).values())
        return Spread.of(load for load in held if load is not None)

    def find_at(self, contender: str, load: float) -> Sequence[Finding]:
        """Return what a contender gave at a load, with each seed."""
        return [
            finding
            for findings in self._by_seed.get(contender, {}).values()
            for finding in findings
            if finding.run.load == load
        ]

    def _list_tried(self, contender: str) -> Sequence[float]:
        findings = self._by_seed.get(contender, {}).get(self.first_seed, ())
        return [finding.run.load for finding in findings]

    def measure(
        self, contender: str, load: float, figure: Callable[[Summary], float]
    ) -> Spread | None:
        """Return a figure of a contender at a load; None if it was not tried there."""
        return Spread.of(figure(finding.summary) for finding in self.find_at(contender, load))

    @property
    def equal_load(self) -> float | None:
        """The load at which all are shown side by side: about what aibrix's default holds.

        It is one that was tried, if that is near enough: one that is tried changes what is held.
        """
        held = self.find_held(AIBRIX)
        if held is None:
            return None
        nearest = min(self._list_tried(AIBRIX), key=lambda load: abs(load - held.mean))
        near = abs(nearest - held.mean) <= _NEAR * held.mean
        return nearest if near else round(held.mean, 3)

    @property
    def held_ratio(self) -> float | None:
        """The load that ours holds compared to aibrix's default; None if one is not known."""
        ours, aibrix = self.find_held(OURS), self.find_held(AIBRIX)
        return None if ours is None or aibrix is None else ours.mean / aibrix.mean

    def find_worst(
        self, rivals: Iterable[str] = SIMPLE, least_load: float = 0.3
    ) -> Distance | None:
        """Return where ours is farthest below the best of some others."""
        worst: Distance | None = None
        for load in self.loads:
            ours = self.measure(OURS, load, _within)
            best = max(
                (
                    (shares.mean, rival)
                    for rival in rivals
                    if (shares := self.measure(rival, load, _within)) is not None
                ),
                default=None,
            )
            if ours is None or best is None or best[0] < _LEAST_GOOD or load < least_load:
                continue
            points = 100.0 * (best[0] - ours.mean)
            if worst is None or points > worst.points:
                worst = Distance(points, load, best[1])
        return worst

    def find_greatest_gap_ratio(self) -> tuple[float, float] | None:
        """Return how much longer our p99 between tokens is than that of never serving whole.

        Returns:
            The greatest ratio at the loads that ours holds, and the load that has it; None if there
            is nothing to compare.
        """
        ratios = [
            (ours.mean / apart.mean, load)
            for load in self.loads
            if (shares := self.measure(OURS, load, _within)) is not None
            and shares.mean >= SHARE
            and (ours := self.measure(OURS, load, _between)) is not None
            and (apart := self.measure(OURS_APART, load, _between)) is not None
        ]
        return max(ratios, default=None)

    def describe_held(self, contender: str) -> str:
        """Return the load that a contender holds, or between which tried ones it is not."""
        held = self.find_held(contender)
        if held is not None:
            return held.describe()
        findings = self._by_seed.get(contender, {}).get(self.first_seed, ())
        if not findings:
            return "-"
        low, high = findings[0], findings[-1]
        if low.summary.within_ttft < SHARE:
            return f"< {low.run.load:.2f}"
        return f"> {high.run.load:.2f}"


def _within(summary: Summary) -> float:
    return summary.within_ttft


def _between(summary: Summary) -> float:
    return summary.inter_token_p99_s


def find_held_load(findings: Sequence[Finding]) -> float | None:
    """Return the load at which `SHARE` of the requests are within the target for the first token.

    Between two loads the share is taken to change evenly. Where chance lets the share cross more
    than once, the last time counts.

    Args:
        findings: one contender's with one seed, at rising load.
    """
    shares = [(finding.run.load, finding.summary.within_ttft) for finding in findings]
    held = None
    for (low, above), (high, below) in pairwise(shares):
        if above >= SHARE > below:
            held = low + (high - low) * (above - SHARE) / (above - below)
    return held


def group_by_scenario(findings: Iterable[Finding]) -> Mapping[Scenario, list[Finding]]:
    """Return findings by their scenario."""
    grouped: dict[Scenario, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.run.scenario, []).append(finding)
    return grouped
