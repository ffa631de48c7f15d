"""aibrix's policies for prefill pods: `prefix_cache`, `least_request` and `conductor`."""

import math
import statistics
from collections.abc import Callable, Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.policy import PolicyOptions, RankingRequest
from pdrouter.routing.score_parts import PrefillParts

Formula = Callable[[Sequence[Pod], Sequence[int], RankingRequest], list[float]]
"""Scores pods, given how many prefill legs each of them has."""

_USUAL_PROMPT_TOKENS = 512
"""A prompt's length for `conductor`, where a pod does not say how long its prefills take."""


class AibrixPrefill:
    """Scores prefill pods by a formula of aibrix's, behind aibrix's two rules against imbalance.

    If the legs that this router has on its pods differ too much, one with the fewest is taken,
    whatever the formula says. Otherwise pods with many more legs than the average are out.
    """

    def __init__(self, name: str, formula: Formula, options: PolicyOptions) -> None:
        """Set up a policy.

        Args:
            name: its name in settings.
            formula: how it scores.
            options: thresholds.
        """
        self.name = name
        self._formula = formula
        self._spread = options.prefill_imbalance_spread
        self._factor = options.standard_deviation_factor

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return one of the pods with the fewest legs if the spread is above its threshold."""
        counts = _count_legs(pods, request)
        spread = max(counts) - min(counts)
        if spread <= self._spread:
            return pods, ""
        fewest = min(counts)
        least = [pod for pod, count in zip(pods, counts, strict=True) if count == fewest]
        note = f"{self.name}: prefill pods differ by {spread} requests, one with the fewest it is"
        return [request.state.random.choice(least)], note

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many prompt tokens a pod has not cached."""
        return request.count_uncached(uid)

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> PrefillParts:
        """Return what the pods would have had to do."""
        del pods
        return PrefillParts.of(request)

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return what the formula says; infinity for pods with far more legs than the others."""
        counts = _count_legs(pods, request)
        scores = self._formula(pods, counts, request)
        if len(pods) == 1:
            return scores
        # The sample deviation, as in aibrix. The least count is never above the limit.
        limit = statistics.fmean(counts) + self._factor * statistics.stdev(counts)
        return [
            score if count <= limit else math.inf
            for score, count in zip(scores, counts, strict=True)
        ]


def score_by_prefix(
    pods: Sequence[Pod], counts: Sequence[int], request: RankingRequest
) -> list[float]:
    """Score by what is cached, ten times as heavy as the load in comparison to the busiest pod."""
    busiest = max(1, *counts)
    return [
        (100 - match_percent(pod.uid, request)) * 0.1 + count / busiest
        for pod, count in zip(pods, counts, strict=True)
    ]


def score_by_requests(
    pods: Sequence[Pod], counts: Sequence[int], request: RankingRequest
) -> list[float]:
    """Score by the legs that a pod has."""
    del pods, request
    return [float(count) for count in counts]


def score_by_time(
    pods: Sequence[Pod], counts: Sequence[int], request: RankingRequest
) -> list[float]:
    """Score by the milliseconds to the first token, from aibrix's curves for a GPU."""
    tokens = request.facts.prompt_tokens
    scores = []
    for pod, count in zip(pods, counts, strict=True):
        matched = tokens * match_percent(pod.uid, request) / 100
        wait = count * _find_prefill_ms(pod.uid, request)
        scores.append(wait + _estimate_reuse_ms(matched) + _estimate_prefill_ms(tokens - matched))
    return scores


def match_percent(uid: str, request: RankingRequest) -> int:
    """Return how many of the prompt's blocks a pod has, in whole percent; 0 without blocks."""
    blocks = len(request.facts.prefix.hashes)
    return request.matches.get(uid, 0) * 100 // blocks if blocks else 0


def _count_legs(pods: Sequence[Pod], request: RankingRequest) -> list[int]:
    load = request.state.ledger.load
    return [load(Leg.PREFILL, pod.uid).requests for pod in pods]


def _find_prefill_ms(uid: str, request: RankingRequest) -> float:
    sample = request.state.samples.get(uid)
    seconds = None if sample is None else sample.prefill_seconds
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return _estimate_prefill_ms(_USUAL_PROMPT_TOKENS)
    return seconds * 1000.0


def _estimate_reuse_ms(tokens: float) -> float:
    return 0.005 * tokens + 1.0 if tokens > 0 else 0.0


def _estimate_prefill_ms(tokens: float) -> float:
    return 0.001 * tokens**1.5 + 5.0 if tokens > 0 else 0.0
