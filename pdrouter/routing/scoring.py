"""Algorithms that choose one pod, for a whole request or for a leg of it, and scores that add up.

A scorer measures pods: requests, shares, seconds, in units of its own. Alone, its best pod is
taken. In a list, its measures become costs from 0, its best pod, to 1, its worst, that are weighted
and added to those of others. This is aibrix's sum of scores, seen from below.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import inf, isfinite
from typing import Protocol

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import ScoreParts
from pdrouter.routing.policy import Ranking, RankingRequest

PROMPT_READERS = frozenset({"prefix-cache", "prefix-cache-preble"})
"""Algorithms for which it counts what pods have cached of prompts, those of the last leg too."""

WINDOW_READERS = frozenset({"prefix-cache-preble"})
"""Algorithms for which it counts which prompts have come of late."""

_SAME = 1e-9
"""Sums of costs that differ less, as those of aibrix, differ by rounding only."""


class Measures(msgspec.Struct, frozen=True):
    """What a scorer says of some pods.

    Attributes:
        values: one for each pod, in the unit of the scorer; None, or no finite number, where it has
            nothing to say of a pod.
        note: what people should know of how they came about; empty for nothing.
    """

    values: Sequence[float | None]
    note: str = ""


class Scorer(Protocol):
    """Measures pods, so that they can be compared by it, and by it and others together."""

    @property
    def name(self) -> str:
        """Its name among the algorithms."""

    @property
    def unit(self) -> str:
        """What its measures are, as a name for people that ends in their unit."""

    @property
    def most(self) -> bool:
        """Whether the pod with the most is the best; that with the least is, otherwise."""

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the measures of one pod or more, for a leg; whole requests have a decode leg."""


class Algorithm(Protocol):
    """Ranks pods by itself, or as a list of scorers."""

    @property
    def name(self) -> str:
        """Its name; of a list, each name with its weight, as in `a:2,b:1`."""

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return the pods, of one or more, that are worth scoring, and their scores.

        Lower is better.
        """


class MeasureParts(msgspec.Struct, frozen=True):
    """The measures that pods were ranked by.

    Attributes:
        columns: for each scorer the unit of its measures, and these in the order of the candidates.
    """

    columns: Sequence[tuple[str, Sequence[float | None]]]

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return what was measured of a pod; what nothing is known of is left out."""
        del uid, score
        known = ((unit, values[index]) for unit, values in self.columns)
        return {unit: round(value, 6) for unit, value in known if value is not None}


class JoinedParts(msgspec.Struct, frozen=True):
    """What scores are made of that follow from several rankings of the same pods.

    Attributes:
        rankings: the rankings; the pods of each may be fewer, and in an order of their own.
        first: what is told beside; None for nothing.
    """

    rankings: Sequence[Ranking]
    first: ScoreParts | None = None

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return the parts of all of them."""
        described = {} if self.first is None else self.first.describe(index, uid, score)
        for ranking in self.rankings:
            uids = [pod.uid for pod in ranking.pods]
            if ranking.parts is not None and uid in uids:
                own = uids.index(uid)
                described |= ranking.parts.describe(own, uid, ranking.scores[own])
        return described


class Alone:
    """The algorithm that a scorer is by itself: the best pod of those that it knows something of.

    Any pod, if it knows nothing of all of them.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.name = scorer.name
        self._scorer = scorer

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return all pods; those of which nothing is known are the worst."""
        scorer = self._scorer
        measures = scorer.measure(pods, request, leg)
        costs = to_costs(measures.values, most=scorer.most)
        parts = MeasureParts(((scorer.unit, measures.values),))
        return Ranking(pods, costs, _describe(scorer, measures), parts)


class Listed:
    """The algorithm that several scorers are together, each with its weight."""

    def __init__(self, name: str, scorers: Sequence[tuple[Scorer, int]]) -> None:
        """Set up the list.

        Args:
            name: the list, as it is shown.
            scorers: the scorers, each with its weight.
        """
        self.name = name
        self._scorers = scorers

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return all pods, with the weighted sums of their costs."""
        scored, columns, notes = [], [], []
        for scorer, weight in self._scorers:
            measures = scorer.measure(pods, request, leg)
            scored.append((to_costs(measures.values, most=scorer.most), weight))
            columns.append((scorer.unit, measures.values))
            notes.append(_describe(scorer, measures))
        sums = add_up(scored)
        lowest = min(sums)
        sums = [lowest if cost <= lowest + _SAME else cost for cost in sums]
        return Ranking(pods, sums, "; ".join(filter(None, notes)), MeasureParts(columns))


def to_costs(values: Sequence[float | None], *, most: bool) -> list[float]:
    """Return measures as costs: lower is better, and each is a number, from 0 on for the best.

    A pod of which nothing is known costs as much as the worst, and more if that is the best, too.
    If nothing is known of any, all cost the same.

    Args:
        values: the measures.
        most: whether the pod with the most is the best; otherwise the measures are the costs.
    """
    # What is not finite makes no finite sum.
    known = [value for value in values if value is not None]
    if not isfinite(sum(known)):
        known = [value for value in known if isfinite(value)]
    if not known:
        return [0.0] * len(values)
    low, high = min(known), max(known)
    if len(known) == len(values):
        return [high - value for value in known] if most else known
    worst = high - low if most else high
    unknown = worst if high > low else worst + 1.0
    return [
        unknown if value is None or not isfinite(value) else high - value if most else value
        for value in values
    ]


@lru_cache(256)
def list_names(combination: str) -> frozenset[str]:
    """Return the names in a name that may be a list, each with its weight."""
    return frozenset(item.partition(":")[0] for item in combination.split(","))


def add_up(scored: Sequence[tuple[Sequence[float], int]]) -> list[float]:
    """Return the weighted sums of scores, each brought to one range before; infinity stays."""
    total = sum(weight for _, weight in scored)
    sums = [0.0] * len(scored[0][0])
    for scores, weight in scored:
        share = weight / total
        sums = [added + score * share for added, score in zip(sums, to_range(scores), strict=True)]
    return sums


def to_range(scores: Sequence[float]) -> list[float]:
    """Bring scores to the range from 0 to 1; infinity stays."""
    if inf not in scores:
        low, high = min(scores), max(scores)
        spread = high - low
        if not spread:
            return [0.0] * len(scores)
        return [(score - low) / spread for score in scores]
    finite = [score for score in scores if score < inf]
    low, high = min(finite), max(finite)
    spread = (high - low) or 1.0
    return [(score - low) / spread if score < inf else score for score in scores]


def _describe(scorer: Scorer, measures: Measures) -> str:
    return f"{scorer.name}: {measures.note}" if measures.note else ""
