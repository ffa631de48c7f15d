"""Strategies that send every request whole to one pod."""

from collections.abc import Collection
from random import Random

from pdrouter.cluster.load import Ledger, PodLoad
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.scorers import Scorer, requests_in_flight


class SinglePod:
    """Sends a request to the ready pod with the lowest score; prefill pods are no candidates."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self._scorer = scorer

    def decide(
        self, facts: RoutingFacts, pods: ModelPods, ledger: Ledger, random: Random
    ) -> Decision:
        """Choose one pod."""
        choice = pick_lowest(pods.whole, self._scorer, self.name, ledger, random)
        if choice is None:
            raise NoReadyPod(pods.model, Role.DECODE if pods.disaggregated else Role.BOTH)
        return Decision(None, choice, facts.whole or f"strategy-{self.name}")

    def choose_other_prefill(
        self,
        decode: Pod,
        tried: Collection[str],
        pods: ModelPods,
        ledger: Ledger,
        random: Random,
    ) -> Choice | None:
        """Return None: there is no prefill leg."""
        del decode, tried, pods, ledger, random
        return None


def _same_for_all(load: PodLoad) -> float:
    del load
    return 0.0


RANDOM = SinglePod("random", _same_for_all)
LEAST_REQUEST = SinglePod("least-request", requests_in_flight)
