"""Compares findings: the load that each contender holds, and how ours stands beside the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.routing.contenders import AIBRIX, OURS
from benchmarks.routing.experiment import Finding, Scenario

SHARE = 0.9
"""Share of requests within the target for the first token that a load is held at."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a contender does in a scenario.

    Attributes:
        contender: its name.
        held: the load at which `SHARE` of the requests are within the target, from the two loads
            around it; None if that is not between the loads tried.
        finding: what it gave at the load that aibrix's default holds; None if that is not known.
    """

    contender: str
    held: float | None
    finding: Finding | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders in one scenario.

    Attributes:
        scenario: the scenario.
        floor_p99_s: the least p99 of the time to first token that any choice could reach.
        standings: one for each contender.
        worst_ratio: our share of requests within both targets compared to the best of the others,
            at the load where that is lowest, among those at which the best has at least half of
            its requests within them; None if there is no such load.
        worst_load: that load.
        worst_rival: that best of the others.
    """

    scenario: Scenario
    floor_p99_s: float
    standings: tuple[Standing, ...]
    worst_ratio: float | None
    worst_load: float
    worst_rival: str

    def find(self, contender: str) -> Standing:
        """Return the standing of a contender."""
        return next(known for known in self.standings if known.contender == contender)

    @property
    def held_ratio(self) -> float | None:
        """The load that ours holds compared to aibrix's default; None if one is not known."""
        ours, aibrix = self.find(OURS).held, self.find(AIBRIX).held
        return None if ours is None or aibrix is None else ours / aibrix

    @property
    def p99_ratio(self) -> float | None:
        """Our p99 of the time to first token compared to aibrix's default, at the load it holds."""
        ours, aibrix = self.find(OURS).finding, self.find(AIBRIX).finding
        if ours is None or aibrix is None:
            return None
        return ours.summary.ttft_p99_s / aibrix.summary.ttft_p99_s


def find_held_load(findings: Sequence[Finding]) -> float | None:
    """Return the load at which `SHARE` of the requests are within the target for the first token.

    Between two loads the share is taken to change evenly.

    Args:
        findings: one contender's, at rising load.
    """
    shares = [(finding.run.load, finding.summary.within_ttft) for finding in findings]
    for (low, above), (high, below) in pairwise(shares):
        if above >= SHARE > below:
            return low + (high - low) * (above - SHARE) / (above - below)
    return None


def compare(
    scenario: Scenario, findings: Sequence[Finding], equal: Sequence[Finding], floor_p99_s: float
) -> Comparison:
    """Compare the contenders in a scenario.

    Args:
        scenario: the scenario.
        findings: all of the scenario's, at rising load.
        equal: those at the load that aibrix's default holds; empty if that is not known.
        floor_p99_s: what no choice could beat.
    """
    contenders = list(dict.fromkeys(finding.run.contender for finding in findings))
    standings = tuple(
        Standing(
            name,
            find_held_load([finding for finding in findings if finding.run.contender == name]),
            next((finding for finding in equal if finding.run.contender == name), None),
        )
        for name in contenders
    )
    worst: tuple[float | None, float, str] = (None, 0.0, "")
    for load in dict.fromkeys(finding.run.load for finding in findings):
        goodput = {
            finding.run.contender: finding.summary.goodput
            for finding in findings
            if finding.run.load == load
        }
        ours = goodput.pop(OURS, None)
        if ours is None or not goodput:
            continue
        rival = max(goodput, key=lambda name: goodput[name])
        if goodput[rival] < 0.5:
            continue
        ratio = ours / goodput[rival]
        if worst[0] is None or ratio < worst[0]:
            worst = (ratio, load, rival)
    return Comparison(scenario, floor_p99_s, standings, *worst)
