"""Strategies that send every request whole to one pod."""

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.filters import keep_selected
from pdrouter.routing.kv_capacity import count_requests
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState


class SinglePod:
    """Sends a request to one ready pod; prefill pods are no candidates."""

    def __init__(self, name: str, *, by_load: bool) -> None:
        """Set up the strategy.

        Args:
            name: its name.
            by_load: whether the pod with the fewest requests is taken, or any.
        """
        self.name = name
        self._by_load = by_load

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose one pod."""
        pods = keep_selected(pods, facts.selector)
        if not pods.whole:
            raise NoReadyPod(pods.model, Role.DECODE if pods.disaggregated else Role.BOTH)
        pods, notes = keep_sound(pods, state.failures)
        candidates = pods.whole
        request = RankingRequest(facts, state)
        scores = [count_requests(pod.uid, request) if self._by_load else 0.0 for pod in candidates]
        index = pick_lowest(scores, state.random)
        tokens = facts.prompt_tokens + facts.output_tokens
        pod, score = candidates[index], scores[index]
        choice = Choice(Leg.DECODE, pod, self.name, score, candidates, scores, tokens)
        return Decision((choice,), facts.whole or f"strategy-{self.name}", notes)
