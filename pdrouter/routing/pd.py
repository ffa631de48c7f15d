"""The `pd` strategy: one pod for prefill, one for decode, from the same roleset."""

from collections.abc import Collection
from random import Random

from pdrouter.cluster.load import Ledger
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.filters import keep_partners, keep_untried
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.scorers import outstanding_prefill_tokens, requests_in_flight


class PrefillDecode:
    """Disaggregates what can be split; a decode pod serves the rest whole.

    The prefill pod is chosen first, from all rolesets that have a ready decode pod: its queue
    decides the time to the first token. The decode pod follows from the same roleset.
    """

    name = "pd"

    def decide(
        self, facts: RoutingFacts, pods: ModelPods, ledger: Ledger, random: Random
    ) -> Decision:
        """Choose a pair, or one pod for a request that is served whole."""
        whole = facts.whole
        if whole is None and not pods.disaggregated:
            whole = "not-disaggregated"
        if whole is not None:
            return Decision(None, self._choose_decode(pods.whole, pods, ledger, random), whole)
        prefill = self._choose_prefill(pods.prefill, ledger, random)
        if prefill is None:
            raise NoReadyPod(pods.model, Role.PREFILL if pods.decode else Role.DECODE)
        partners = pods.decode[prefill.pod.pairing]
        return Decision(prefill, self._choose_decode(partners, pods, ledger, random))

    def choose_other_prefill(
        self,
        decode: Pod,
        tried: Collection[str],
        pods: ModelPods,
        ledger: Ledger,
        random: Random,
    ) -> Choice | None:
        """Choose another prefill pod of the decode pod's roleset."""
        partners = keep_partners(keep_untried(pods.prefill, tried), decode.pairing)
        return self._choose_prefill(partners, ledger, random)

    def _choose_prefill(
        self, candidates: Collection[Pod], ledger: Ledger, random: Random
    ) -> Choice | None:
        return pick_lowest(
            tuple(candidates), outstanding_prefill_tokens, "least_tokens", ledger, random
        )

    def _choose_decode(
        self, candidates: tuple[Pod, ...], pods: ModelPods, ledger: Ledger, random: Random
    ) -> Choice:
        choice = pick_lowest(candidates, requests_in_flight, "least_request", ledger, random)
        if choice is None:
            raise NoReadyPod(pods.model, Role.DECODE)
        return choice
