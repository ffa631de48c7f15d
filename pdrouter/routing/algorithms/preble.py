"""The algorithm `prefix-cache-preble`: where most of a prompt is cached, or it costs least."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.algorithms.requests import count_requests
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.policy import PolicyOptions, Ranking, RankingRequest
from pdrouter.routing.scoring import Alone, Measures
from pdrouter.routing.state import RoutingState

_NAME = "prefix-cache-preble"
_COST = "preble_cost"
_ENOUGH = 0.5
"""The part of a prompt that must be cached somewhere for it to go there."""
_TOKEN_TIME = 0.15
"""What a token of the answer counts, as aibrix has it."""


class PrebleCost:
    """Measures pods by Preble's rule: what `prefix-cache-preble` is in a list.

    Where a pod has more than half of the prompt cached, those that have most of it are compared by
    their requests of late, and nothing is said of others. Otherwise, all by what these have cost.
    """

    name = _NAME
    unit = _COST
    most = False

    def __init__(self, options: PolicyOptions) -> None:
        """Set up the scorer.

        Args:
            options: thresholds.
        """
        self._answer = options.preble_output_tokens * _TOKEN_TIME

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the requests of the pods that have most of it cached, or what all cost."""
        recent = request.state.recent
        # Looked up first: it drops what is too old.
        miss_rate = recent.find_miss_rate(leg)
        longest = _find_longest(pods, request, leg)
        if longest is not None:
            matches = request.find_matches(leg)
            return Measures(
                [
                    recent.measure(pod.uid).requests if matches.get(pod.uid) == longest else None
                    for pod in pods
                ],
                "most of the prompt is cached, by requests of late",
            )
        works = [recent.measure(pod.uid) for pod in pods]
        return Measures([miss_rate * work.work + work.prompts * self._answer for work in works])


class Preble:
    """`prefix-cache-preble` by itself: as in a list, behind aibrix's rule against imbalance.

    Where the requests on the pods differ too much, only those with the fewest are looked at.
    """

    name = _NAME

    def __init__(self, options: PolicyOptions) -> None:
        """Set up the algorithm.

        Args:
            options: thresholds.
        """
        self._spread = options.request_imbalance_spread
        self._alone = Alone(PrebleCost(options))

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return the pods that may have the request, by what they cost."""
        counts = count_requests(pods, request, leg)
        fewest, most = min(counts), max(counts)
        if most - fewest <= self._spread:
            return self._alone.rank(pods, request, leg)
        least = [pod for pod, count in zip(pods, counts, strict=True) if count == fewest]
        ranking = self._alone.rank(least, request, leg)
        note = f"{_NAME}: pods differ by {most - fewest:g} requests, one with the fewest it is"
        notes = (note, ranking.note) if ranking.note else (note,)
        return Ranking(ranking.pods, ranking.scores, "; ".join(notes), ranking.parts)


def note_prompt(facts: RoutingFacts, decision: Decision, state: RoutingState) -> None:
    """Take note of a prompt that goes to these pods, before they count as having it."""
    prefix = facts.prefix
    for choice in decision.legs:
        known = state.prefixes if choice.leg is Leg.PREFILL else state.decoded
        most = max(known.match(prefix.hashes).values(), default=0)
        cached = facts.prompt_tokens * prefix.ends[most - 1] // prefix.size if most else 0
        state.recent.add(
            choice.leg, prefix.hashes[-1:], choice.pod.uid, facts.prompt_tokens, cached
        )


def _find_longest(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> int | None:
    """Return how many blocks those pods have that have most; None if that is not enough.

    Enough is what any pod has, be it among these or not.
    """
    prefix = request.facts.prefix
    matches = request.find_matches(leg) if prefix.hashes else {}
    most = max(matches.values(), default=0)
    if not most or prefix.ends[most - 1] <= _ENOUGH * prefix.size:
        return None
    return max((matches.get(pod.uid, 0) for pod in pods), default=0) or None
