"""Strategies that send every request whole to one pod."""

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.filters import keep_selected
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.scoring import Algorithm, list_names
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState

_LIST = "list"
"""Stands for lists of algorithms in reasons: clients may write more of them than can be counted."""


class SinglePod:
    """Sends a request to the pod that an algorithm takes; prefill pods are no candidates."""

    def __init__(self, algorithm: Algorithm) -> None:
        """Set up the strategy.

        Args:
            algorithm: ranks the pods.
        """
        self.name = algorithm.name
        self._algorithm = algorithm
        self._reason = f"strategy-{_LIST if ',' in self.name else self.name}"

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        """Return the names of the algorithms in its own."""
        del prefill_policy, decode_policy
        return list_names(self.name)

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose one pod."""
        pods = keep_selected(pods, facts.selector)
        if not pods.whole:
            raise NoReadyPod(pods.model, Role.DECODE if pods.disaggregated else Role.BOTH)
        pods, notes = keep_sound(pods, state.failures)
        ranking = self._algorithm.rank(pods.whole, RankingRequest(facts, state), Leg.DECODE)
        index = pick_lowest(ranking.scores, state.random)
        choice = Choice(
            Leg.DECODE,
            ranking.pods[index],
            self.name,
            ranking.scores[index],
            ranking.pods,
            ranking.scores,
            facts.prompt_tokens + facts.output_tokens,
            parts=ranking.parts,
        )
        notes = (*notes, ranking.note) if ranking.note else notes
        return Decision((), choice, facts.whole or self._reason, notes)
