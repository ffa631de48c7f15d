"""Keeps the requests of a session on its pod, whatever strategy chooses the others."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.filters import keep_selected
from pdrouter.routing.kv_capacity import count_requests
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.session_affinity import (
    AffinityRules,
    SessionOutcome,
    SessionPlace,
    place_session,
    rank_pods,
)
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState

POLICY = "session-affinity"


class Placed(msgspec.Struct, frozen=True):
    """The one last pod that a request may go to, and why.

    Attributes:
        facts: the request, of which the labels that pods must have are settled.
        pods: that pod, and the prefill pods that are partners for it.
        place: the session's pods.
        bound: whether it waits for that pod, however much that has to do.
        only: whether no other pod will do.
        notes: why it is that pod, for people.
    """

    facts: RoutingFacts
    pods: ModelPods
    place: SessionPlace
    bound: bool
    only: bool
    notes: tuple[str, ...]

    def mark(self, decision: Decision) -> Decision:
        """Return the decision with the session's reasons for its last pod."""
        order = self.place.pods[:1] if self.bound else self.place.pods
        last = structs.replace(
            decision.last,
            policy=POLICY,
            score=0.0,
            candidates=order,
            scores=tuple(map(float, range(len(order)))),
            parts=None,
        )
        return structs.replace(
            decision,
            last=last,
            notes=(*self.notes, *decision.notes),
            session=self.place.outcome,
        )

    def mark_moved(self, decision: Decision, outcome: SessionOutcome) -> Decision:
        """Return the decision for other pods, as this one could not take the request, or in time.

        Args:
            decision: the decision.
            outcome: why not.
        """
        own = self.place.pods[0].name
        why = "has no partner" if outcome is SessionOutcome.AWAY else "could not serve it in time"
        notes = (f"session: {outcome}, {own} {why}", *decision.notes)
        return structs.replace(decision, notes=notes, session=outcome)


def place_request(
    facts: RoutingFacts, pods: ModelPods, state: RoutingState, rules: AffinityRules, *, wanted: bool
) -> Placed | None:
    """Return where a request must go, or is to go, for the sake of its session; None for anywhere.

    Args:
        facts: the request.
        pods: the pods of its model.
        state: their condition.
        rules: what the operator decided.
        wanted: whether sessions without state in an engine are kept together at all.

    Raises:
        NoReadyPod: the pod that holds its state is not ready.
    """
    if facts.holder:
        return _place_at_holder(facts, pods)
    session = facts.session
    if session is None or not (wanted or session.bound):
        return None
    selected = keep_selected(pods, facts.selector)
    sound, left_out = keep_sound(selected, state.failures)
    candidates = _list_candidates(facts, sound)
    if not candidates:
        return None
    request = RankingRequest(facts, state)
    roles = {pod.role for pod in candidates}
    place = place_session(
        session,
        candidates,
        [pod for pod in pods.pods if pod.role in roles],
        rules,
        lambda uid: count_requests(uid, request),
    )
    bound = session.bound or rules.strict
    note = f"session ({session.source}): {place.outcome}, {_describe(place.outcome, place.pods)}"
    kept = _keep_last(sound, place.pods[0])
    settled = structs.replace(facts, selector=None)
    return Placed(settled, kept, place, bound=bound, only=session.bound, notes=(note, *left_out))


def _place_at_holder(facts: RoutingFacts, pods: ModelPods) -> Placed:
    holder = next((pod for pod in pods.whole if pod.uid == facts.holder), None)
    if holder is None:
        raise NoReadyPod(pods.model, Role.DECODE)
    place = SessionPlace((holder,), SessionOutcome.KEPT)
    note = f"response: {holder.name} holds what it goes on with"
    settled = structs.replace(facts, selector=None)
    kept = _keep_last(pods, holder)
    return Placed(settled, kept, place, bound=True, only=True, notes=(note,))


def _list_candidates(facts: RoutingFacts, pods: ModelPods) -> Sequence[Pod]:
    """Return the pods that may be the last for a request."""
    return pods.partners if facts.whole is None and pods.partners else pods.whole


def _keep_last(pods: ModelPods, last: Pod) -> ModelPods:
    """Keep one last pod, and its partners."""
    if last.role is Role.DECODE:
        prefill = [pod for pod in pods.prefill if pod.pairing == last.pairing]
        kept = pods.keep_pairs(prefill, {last.pairing: (last,)})
    else:
        kept = pods.keep_pairs((), {})
    return replace(kept, whole=(last,) if last.serves_whole else ())


def _describe(outcome: SessionOutcome, pods: Sequence[Pod]) -> str:
    match outcome:
        case SessionOutcome.KEPT:
            return f"{pods[0].name} is its pod"
        case SessionOutcome.OVERLOADED:
            return f"{pods[-1].name} has more to do than the others, {pods[0].name} is next"
        case _:
            return f"its pod cannot serve it, {pods[0].name} is next"


def judge_session(decision: Decision, facts: RoutingFacts, *, wanted: bool) -> Decision:
    """Return a decision with what it means for the session, where that was only asked for its part.

    Args:
        decision: the decision.
        facts: the request.
        wanted: whether sessions are kept together, if there are any.
    """
    last, session = decision.last, facts.session
    if not (wanted or POLICY in last.policy):
        return decision
    if session is None:
        return structs.replace(decision, session=SessionOutcome.NONE)
    own, *_ = rank_pods(session, last.candidates)
    if session.address and own.address != session.address:
        outcome = SessionOutcome.AWAY
    else:
        kept = own.uid == last.pod.uid
        outcome = SessionOutcome.KEPT if kept else SessionOutcome.OVERLOADED
    return structs.replace(decision, session=outcome)
