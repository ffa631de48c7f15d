"""The prefill policy `ttft`: the pod whose first token is predicted to come first."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.routing.policy import DEFAULT_OPTIONS, PolicyOptions, RankingRequest, count_computed
from pdrouter.routing.score_parts import PrefillParts


class TimeToFirstToken:
    """Scores a pod by the seconds until it has computed the prompt.

    That is the work that waits there, and the part of this prompt that it has not cached, at the
    pod's own measured speed. The second counts several times: what is computed anew although
    another pod has it delays all who come after, waiting does not.

    What others have sent shows in the engine's metrics, late, and to all routers at once: counted
    in full, it draws all of them to the same pod until the next look. So a part of it counts.

    It needs no rule of its own for hot prefixes: when the queue of the pod that has one is longer
    than computing it anew, another pod gets it, and has it from then on.
    """

    name = "ttft"

    def __init__(self, options: PolicyOptions = DEFAULT_OPTIONS) -> None:
        """Set up the policy.

        Args:
            options: the weights.
        """
        self._compute_weight = options.compute_weight
        self._others_weight = options.others_weight

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return all pods."""
        del request
        return pods, ""

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many tokens a pod computes for the request."""
        return request.count_uncached(uid)

    def explain(self, request: RankingRequest) -> PrefillParts:
        """Return what the scores of now are made of."""
        return PrefillParts.of(request, self._compute_weight)

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the predicted seconds for each pod, those of computing weighted."""
        ledger, uids = request.state.ledger, [pod.uid for pod in pods]
        if ledger.rates.shapes:
            added = self._measure_by_shapes(uids, request)
        else:
            added = self._measure(uids, request)
        return ledger.predict_prefills(uids, added, self._others_weight)

    def _measure(self, uids: Sequence[str], request: RankingRequest) -> list[float]:
        """Return the work that the prompt is on each pod, weighted: all compute alike."""
        rates, matches = request.state.ledger.rates, request.matches
        # Most of many pods have cached the same part of the prompt.
        work = {
            blocks: self._compute_weight
            * rates.measure(count_computed(request.facts, blocks), rates.default)
            for blocks in {0, *matches.values()}
        }
        return [work[matches.get(uid, 0)] for uid in uids]

    def _measure_by_shapes(self, uids: Sequence[str], request: RankingRequest) -> list[float]:
        """Return the work that the prompt is on each pod, weighted, by what it is compiled for."""
        rates, matches = request.state.ledger.rates, request.matches
        kinds = [(matches.get(uid, 0), rates.find_shapes(uid)) for uid in uids]
        work = {
            (blocks, shapes): self._compute_weight
            * rates.measure(count_computed(request.facts, blocks), shapes)
            for blocks, shapes in set(kinds)
        }
        return [work[kind] for kind in kinds]
