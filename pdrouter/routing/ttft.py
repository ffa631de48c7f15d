"""The prefill policy `ttft`: the pod whose first token is predicted to come first."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.load.static_shapes import StaticShapes
from pdrouter.routing.decision import ScoreParts
from pdrouter.routing.policy import (
    DEFAULT_OPTIONS,
    PolicyOptions,
    Ranking,
    RankingRequest,
    count_computed,
)
from pdrouter.routing.score_parts import PrefillParts


class TimeToFirstToken:
    """Scores a pod by the seconds until it has computed the prompt.

    That is the work that waits there, and the part of this prompt that it has not cached, at the
    pod's own measured speed. The second counts several times when pods are busy: what is computed
    anew although another pod has it delays all who come before the pod is idle again. They are the
    more, the fewer pods are idle: in a queue that is busy for that share of time, a second of work
    delays 1 / (1 - share) seconds of it, itself among them.

    What others have sent shows in the engine's metrics, late, and to all routers at once: counted
    in full, it draws all of them to the same pod until the next look. So a part of it counts.

    Where there are several routers, the pods that are others' homes cost more: so each finds in its
    own the prefixes that it has sent there, and the routers seldom meet at the same pod.

    It needs no rule of its own for hot prefixes: when the queue of the pod that has one is longer
    than computing it anew, another pod gets it, and has it from then on.
    """

    name = "ttft"

    def __init__(self, options: PolicyOptions = DEFAULT_OPTIONS) -> None:
        """Set up the policy.

        Args:
            options: the weights.
        """
        self._greatest_weight = options.compute_weight
        self._others_weight = options.others_weight
        self._away_factor = 1.0 + options.away_cost

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return all pods."""
        del request
        return pods, ""

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many tokens a pod computes for the request."""
        return count_computed(request.facts, request.matches.get(uid, 0))

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> ScoreParts | None:
        """Return what the scores that the pods have got are made of."""
        del pods
        return request.ranked[self.name].parts

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the predicted seconds for each pod, those of computing weighted."""
        ledger, uids = request.state.ledger, [pod.uid for pod in pods]
        # How many times a second of computing counts as much as one of waiting.
        weight, idle = self._greatest_weight, 1.0 - ledger.measure_use(uids)
        if idle * weight > 1.0:
            weight = 1.0 / idle
        if ledger.rates.shapes:
            added = self._measure_by_shapes(uids, request, weight)
        else:
            added = self._measure(uids, request, weight)
        scores = ledger.predict_prefills(uids, added, self._others_weight)
        homes, away = request.find_homes(uids), self._away_factor
        if homes:
            scores = [
                score if uid in homes else score * away
                for uid, score in zip(uids, scores, strict=True)
            ]
        parts = PrefillParts.of(request, weight, homes, away)
        request.ranked[self.name] = Ranking(pods, scores, parts=parts)
        return scores

    def _measure(self, uids: Sequence[str], request: RankingRequest, weight: float) -> list[float]:
        """Return the work that the prompt is on each pod, weighted: all compute alike."""
        shapes = request.state.ledger.rates.default
        # Most of many pods have cached the same part of the prompt.
        cached = list(map(request.matches.get, uids))
        work: dict[int | None, float] = {}
        for blocks in set(cached):
            work[blocks] = weight * _measure(blocks or 0, shapes, request)
        return [*map(work.__getitem__, cached)]

    def _measure_by_shapes(
        self, uids: Sequence[str], request: RankingRequest, weight: float
    ) -> list[float]:
        """Return the work that the prompt is on each pod, weighted, by what it is compiled for."""
        matches, find_shapes = request.matches, request.state.ledger.rates.find_shapes
        kinds = [(matches.get(uid, 0), find_shapes(uid)) for uid in uids]
        work = {kind: weight * _measure(*kind, request) for kind in set(kinds)}
        return [work[kind] for kind in kinds]


def _measure(blocks: int, shapes: StaticShapes, request: RankingRequest) -> float:
    """Return the work that the prompt is if so many blocks of it are cached."""
    facts = request.facts
    computed = count_computed(facts, blocks)
    cached = facts.prompt_tokens - computed
    return request.state.ledger.rates.measure(computed, shapes, cached)
