"""Which pods serve a request: the one place that decides, for the router and for simulators.

Pure: the pods, their condition, the clock and randomness are passed in, and what is decided is a
value. A strategy ranks pods; what holds for every strategy stands here: whether a request that
could be split is served whole, how long it may wait, who replaces a pod that has gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.admission import (
    DeadlineMissed,
    QueueTooLong,
    find_too_long,
    limit_wait,
    meet_deadline,
)
from pdrouter.routing.aggregation import DEFAULT_WHOLE_RULES, WholeRules, choose_way
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.encoding import choose_encoders
from pdrouter.routing.filters import keep_partners_of, keep_selected
from pdrouter.routing.kv_source import DEFAULT_LEAST_TOKENS, find_kv_source
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.session_affinity import SPREAD_SESSIONS, AffinityRules, SessionOutcome
from pdrouter.routing.sessions import POLICY, judge_session, place_request
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategy_book import StrategyBook
from pdrouter.settings.choices import Aggregation, SessionAffinity

_FAILED_IN_A_ROLESET = 2
# Looked up once, as in `ledger.py`.
_AFFINITY_OFF, _WHEN_FASTER = SessionAffinity.OFF, Aggregation.WHEN_FASTER

_Decide: TypeAlias = Callable[[Strategy, RoutingFacts, ModelPods], Decision]


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """What an operator decides for all strategies.

    Attributes:
        aggregation: when a decode pod serves a request whole that could be split.
        whole: what must hold of one that is, since it is predicted to be faster.
        max_wait_s: predicted seconds in a prefill pod's queue above which requests are refused;
            None for no limit.
        refuses_late: whether requests are refused whose first token cannot come when it is due.
        source_tokens: tokens of a prompt that another pod must have cached beyond what the chosen
            one has, to be its source.
        affinity: how far the requests of a session stay together.
    """

    aggregation: Aggregation = Aggregation.FALLBACK
    whole: WholeRules = DEFAULT_WHOLE_RULES
    max_wait_s: float | None = None
    refuses_late: bool = True
    source_tokens: int = DEFAULT_LEAST_TOKENS
    affinity: AffinityRules = SPREAD_SESSIONS


@dataclass(frozen=True, slots=True)
class Router:
    """Decides.

    Attributes:
        strategies: the strategies by what users write.
        state: the pods' condition.
        rules: what holds for all strategies.
    """

    strategies: StrategyBook
    state: RoutingState
    rules: RoutingRules = RoutingRules()

    def decide(self, strategy: Strategy, facts: RoutingFacts, pods: ModelPods) -> Decision:
        """Choose the pods for a request.

        Raises:
            NoReadyPod: a pod that the request needs is not there.
            QueueTooLong: it would wait longer than it may.
            DeadlineMissed: its first token would come too late.
        """
        decision = self._keep_session(self._decide, strategy, facts, pods)
        return self.choose_encoders(decision, facts, pods) if facts.items else decision

    def choose_encoders(self, decision: Decision, facts: RoutingFacts, pods: ModelPods) -> Decision:
        """Return the decision with the pods that encode for the one that computes the prompt now.

        Args:
            decision: the other pods.
            facts: the request.
            pods: the newest view of the model's pods.
        """
        encode = choose_encoders(facts.items, decision.taker, pods, self.state)
        return structs.replace(decision, encode=encode)

    def _keep_session(
        self, decide: _Decide, strategy: Strategy, facts: RoutingFacts, pods: ModelPods
    ) -> Decision:
        """Decide among the pods to which the request's session keeps it, or among all."""
        affinity = self.rules.affinity
        wanted = affinity.mode is not _AFFINITY_OFF or strategy.name == POLICY
        placed = None
        if facts.session is not None or facts.holder:
            placed = place_request(facts, pods, self.state, affinity, wanted=wanted)
        if placed is None:
            return judge_session(decide(strategy, facts, pods), facts, wanted=wanted)
        try:
            return placed.mark(decide(strategy, placed.facts, placed.pods))
        except NoReadyPod:
            if placed.only:
                raise
            outcome = SessionOutcome.AWAY
        except (QueueTooLong, DeadlineMissed):
            if placed.bound:
                raise
            outcome = SessionOutcome.OVERLOADED
        return placed.mark_moved(decide(strategy, facts, pods), outcome)

    def _decide(self, strategy: Strategy, facts: RoutingFacts, pods: ModelPods) -> Decision:
        decision = self._fall_back(strategy, facts, pods)
        rules, state = self.rules, self.state
        if rules.aggregation is _WHEN_FASTER:
            decision = choose_way(decision, facts, pods, state, rules.whole)
        limit_s = rules.max_wait_s
        if limit_s is not None:
            decision = limit_wait(decision, strategy, facts, pods, state, limit_s=limit_s)
        if facts.deadline is None:
            return decision
        try:
            return meet_deadline(
                decision,
                strategy,
                facts,
                pods,
                state,
                handover_s=state.whole.expect_handover(pods.model),
                limit_s=limit_s,
            )
        except DeadlineMissed as missed:
            if rules.refuses_late:
                raise
            return structs.replace(decision, notes=(*decision.notes, str(missed)))

    def choose_other(
        self,
        strategy: Strategy,
        facts: RoutingFacts,
        decision: Decision,
        pods: ModelPods,
        *,
        tried: Sequence[Pod],
        failed: Sequence[Pod],
    ) -> Decision | None:
        """Choose the pair that the prefill leg is tried on next.

        It stays within the roleset while that has a sound prefill pod that was not tried, but for
        one in which two pods have failed the request: there, more than a pod is broken.

        Args:
            strategy: what chose the pods.
            facts: the request.
            decision: what was chosen last.
            pods: the newest view of the model's pods.
            tried: the prefill pods that have not carried the leg out.
            failed: those of them that have failed, and did not say that it is not for them.

        Returns:
            The new decision; None if there is no other pair, or its queue would be too long.
        """
        state, limit_s, pairing = self.state, self.rules.max_wait_s, decision.last.pod.pairing
        avoided = {uid for pod in tried for uid in pod.same_address}
        too_long = find_too_long(pods, state, limit_s) if limit_s is not None else set()
        leave = sum(pod.pairing == pairing for pod in failed) >= _FAILED_IN_A_ROLESET
        other = None
        # Another rank behind the same address is better than none.
        for these in (avoided, {pod.uid for pod in tried}):
            other = other or choose_other_pair(
                decision, strategy, facts, pods, state, avoided=these | too_long, leave=leave
            )
        if other is None:
            return None
        chosen, last = other.legs[0].pod, other.last.pod
        where = " of the same roleset" if last.pairing == pairing else f", with {last.name}"
        note = f"not carried out by {tried[-1].name}: tried again on {chosen.name}{where}"
        return structs.replace(other, notes=(*other.notes, note))

    def find_kv_source(
        self, chosen: Pod, facts: RoutingFacts, pods: ModelPods, failed: Sequence[Pod]
    ) -> Pod | None:
        """Return from which pod the one that computes a prompt has its beginning; None for no pod.

        Args:
            chosen: the pod that computes it.
            facts: the request.
            pods: the model's pods.
            failed: pods that have failed this request.
        """
        return find_kv_source(
            chosen,
            facts,
            pods,
            self.state,
            least_tokens=self.rules.source_tokens,
            avoided={uid for pod in failed for uid in pod.same_address},
        )

    def replace_last(
        self,
        strategy: Strategy,
        last: Choice,
        facts: RoutingFacts,
        pods: ModelPods,
        holder: Pod | None,
        *,
        chosen_at: float,
    ) -> Decision | None:
        """Choose another last pod if the chosen one is not ready any more, or has failed others.

        Args:
            strategy: what chose it.
            last: what was chosen.
            facts: the request; one that must be served whole by now says why.
            pods: the newest view of the model's pods.
            holder: the pod that holds the prompt's KV; None where no pod does.
            chosen_at: when it was chosen, on the clock of the memory of failures.

        Returns:
            The new decision; None if the pod is still there, as it was, or no other is better.

        Raises:
            NoReadyPod: there is no ready pod for it.
        """
        chosen = last.pod
        here = any(_is_as_chosen(pod, chosen) for pod in pods.pods)
        if here and not self.state.failures.was_ejected_since(chosen.uid, last.leg, chosen_at):
            return None
        # Partners are looked for among what the client wants; to sort that anew would undo it.
        pods = keep_selected(pods, facts.selector)
        facts = structs.replace(facts, selector=None)
        if holder is not None:
            pods = keep_partners_of(pods, holder)
        decision = self._keep_session(self._fall_back, strategy, facts, pods)
        if here and decision.last.pod.uid == chosen.uid:
            return None
        what = "failed" if here else "gone"
        notes = (*decision.notes, f"{last.leg} pod {chosen.name} has {what} during the prefill leg")
        return structs.replace(decision, notes=notes)

    def _fall_back(self, strategy: Strategy, facts: RoutingFacts, pods: ModelPods) -> Decision:
        try:
            return strategy.decide(facts, pods, self.state)
        except NoReadyPod:
            if facts.whole or self.rules.aggregation is Aggregation.NEVER:
                raise
        facts = structs.replace(facts, whole="no-ready-pair")
        return strategy.decide(facts, pods, self.state)


def _is_as_chosen(pod: Pod, chosen: Pod) -> bool:
    """Return whether a pod of the newest view is one that was chosen from an older one."""
    return (
        pod.ready
        and pod.uid == chosen.uid
        and pod.address == chosen.address
        and pod.role is chosen.role
        and pod.pairing == chosen.pairing
    )
