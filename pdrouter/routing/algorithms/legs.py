"""Algorithms as policies of `pd`: each of them ranks the pods of one leg."""

from collections.abc import Sequence
from math import inf

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import ScoreParts
from pdrouter.routing.policy import Ranking, RankingRequest
from pdrouter.routing.score_parts import PrefillParts
from pdrouter.routing.scoring import Algorithm, JoinedParts


class AlgorithmPrefill:
    """An algorithm that ranks prefill pods."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.name = algorithm.name
        self._algorithm = algorithm

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return the pods that the algorithm finds worth scoring."""
        ranking = self._algorithm.rank(pods, request, Leg.PREFILL)
        # Some of them may be left out before they are scored: they stand as they were found.
        request.ranked[self.name] = ranking
        return ranking.pods, ranking.note

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the scores; infinity for what the algorithm leaves out."""
        ranking = self._find(pods, request)
        if len(ranking.pods) == len(pods):
            return ranking.scores
        scores = {pod.uid: score for pod, score in zip(ranking.pods, ranking.scores, strict=True)}
        return [scores.get(pod.uid, inf) for pod in pods]

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many prompt tokens a pod has not cached."""
        return request.count_uncached(uid)

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> ScoreParts:
        """Return what the pods would have had to do, and what they were ranked by."""
        return JoinedParts((self._find(pods, request),), PrefillParts.of(request))

    def _find(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        known = request.ranked.get(self.name)
        return known or self._algorithm.rank(pods, request, Leg.PREFILL)


class AlgorithmDecode:
    """An algorithm that ranks decode pods."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.name = algorithm.name
        self._algorithm = algorithm

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return the pods that the algorithm finds worth scoring, and their scores."""
        return self._algorithm.rank(pods, request, Leg.DECODE)
