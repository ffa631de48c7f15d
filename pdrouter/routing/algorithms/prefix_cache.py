"""The algorithm `prefix-cache`: the pod that has most of the prompt, if it is not too busy."""

from collections.abc import Mapping, Sequence
from math import sqrt

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.algorithms.requests import count_requests
from pdrouter.routing.policy import PolicyOptions, Ranking, RankingRequest
from pdrouter.routing.scoring import MeasureParts, Measures

_NAME = "prefix-cache"
_PERCENT = "match_percent"
_ROUNDING = 1e-9


class PrefixMatch:
    """Measures how much of the prompt pods have cached: what `prefix-cache` is in a list."""

    name = _NAME
    unit = _PERCENT
    most = True

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the whole percent of the prompt's blocks that each pod has."""
        return Measures(_match(pods, request, leg))


class PrefixCache:
    """`prefix-cache` by itself, with aibrix's two rules against imbalance.

    Where the requests on the pods differ too much, only those with the fewest are looked at for
    what they have cached. Of those that have something, the first by percent and then by requests
    is taken that has not many more requests than the average. If there is none, it is one with the
    fewest requests of all.
    """

    name = _NAME

    def __init__(self, options: PolicyOptions) -> None:
        """Set up the algorithm.

        Args:
            options: thresholds.
        """
        self._spread = options.request_imbalance_spread
        self._factor = options.standard_deviation_factor

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return the pods that have something cached, or all by their requests."""
        counts = count_requests(pods, request, leg)
        percents = _match(pods, request, leg)
        fewest, most = min(counts), max(counts)
        imbalanced = most - fewest > self._spread
        limit = fewest if imbalanced else _limit(counts, self._factor)
        kept = [
            index
            for index, (count, percent) in enumerate(zip(counts, percents, strict=True))
            if percent and count <= limit
        ]
        if not kept:
            columns = ((_PERCENT, percents), ("requests", counts))
            note = f"{_NAME}: no pod that is not too busy has any of it, fewest requests"
            return Ranking(pods, counts, note if any(percents) else "", MeasureParts(columns))
        note = ""
        if imbalanced:
            note = f"{_NAME}: pods differ by {most - fewest:g} requests, one with the fewest it is"
        columns = (
            (_PERCENT, [percents[index] for index in kept]),
            ("requests", [counts[index] for index in kept]),
        )
        # Percents are whole: the share of requests only orders those that have the same.
        scores = [100 - percents[index] + counts[index] / (most + 1.0) for index in kept]
        return Ranking([pods[index] for index in kept], scores, note, MeasureParts(columns))


def _limit(counts: Sequence[float], factor: float) -> float:
    """Return how many requests are not many more than the average: by the sample deviation."""
    number = len(counts)
    mean = sum(counts) / number
    squares = sum((count - mean) * (count - mean) for count in counts)
    return mean + factor * sqrt(squares / max(1, number - 1)) + _ROUNDING


def _match(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> list[int]:
    blocks = len(request.facts.prefix.hashes)
    matches: Mapping[str, int] = request.find_matches(leg) if blocks else {}
    if not matches:
        return [0] * len(pods)
    return [matches.get(pod.uid, 0) * 100 // blocks for pod in pods]
