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
        ledger, matches = request.state.ledger, request.matches
        # Most of many pods have cached the same part of the prompt.
        rates, weight = ledger.rates, self._compute_weight
        added = {
            blocks: weight * rates.measure(count_computed(request.facts, blocks))
            for blocks in {0, *matches.values()}
        }
        uids = [pod.uid for pod in pods]
        return ledger.predict_prefills(
            uids, [added[matches.get(uid, 0)] for uid in uids], self._others_weight
        )
