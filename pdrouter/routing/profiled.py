"""The `pd` strategy with the policies that a model's profile asks for."""

from collections.abc import Collection, Mapping

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Choice, Decision, RoutingFacts
from pdrouter.routing.pd import PrefillDecode
from pdrouter.routing.policy import DecodePolicy, PrefillPolicy
from pdrouter.routing.state import RoutingState


class ProfiledPrefillDecode:
    """Lets each request have the policies of its profile, or else the operator's.

    A policy that does not exist is noted in the decision, and nothing else: a typing error in an
    annotation should not take a model out of service.
    """

    name = "pd"

    def __init__(
        self,
        prefill: Mapping[str, PrefillPolicy],
        decode: Mapping[str, DecodePolicy],
        defaults: tuple[str, str],
        *,
        bucketing: bool,
    ) -> None:
        """Set up the strategy.

        Args:
            prefill: policies for prefill pods, by name.
            decode: policies for decode pods, by name.
            defaults: names of the policies for requests whose profile names none.
            bucketing: whether pods say in their configuration which prompt lengths they are for.
        """
        self._prefill, self._decode = prefill, decode
        self._default_prefill, self._default_decode = defaults
        self._strategies = {
            (first, second): PrefillDecode(prefill[first], decode[second], bucketing=bucketing)
            for first in prefill
            for second in decode
        }

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose a pair, or one pod for a request that is served whole."""
        notes = []
        for name, policies in (
            (facts.prefill_policy, self._prefill),
            (facts.decode_policy, self._decode),
        ):
            if name and name not in policies:
                notes.append(f"policy {name[:50]!r} is none of {', '.join(policies)}")
        decision = self._find(facts).decide(facts, pods, state)
        return structs.replace(decision, notes=(*notes, *decision.notes)) if notes else decision

    def choose_other_prefill(
        self,
        facts: RoutingFacts,
        decode: Pod,
        tried: Collection[str],
        pods: ModelPods,
        state: RoutingState,
    ) -> Choice | None:
        """Choose another prefill pod of the decode pod's roleset."""
        return self._find(facts).choose_other_prefill(facts, decode, tried, pods, state)

    def _find(self, facts: RoutingFacts) -> PrefillDecode:
        prefill, decode = facts.prefill_policy, facts.decode_policy
        return self._strategies[
            prefill if prefill in self._prefill else self._default_prefill,
            decode if decode in self._decode else self._default_decode,
        ]
