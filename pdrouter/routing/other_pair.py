"""Another prefill pod for a request: of the same roleset, or with a decode pod of another one."""

from collections.abc import Collection

from msgspec import structs

from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.filters import keep_other_rolesets, keep_others, keep_roleset, keep_selected
from pdrouter.routing.session_affinity import SessionOutcome
from pdrouter.routing.soundness import keep_sound
from pdrouter.routing.state import RoutingState


def choose_other_pair(
    decision: Decision,
    strategy: Strategy,
    facts: RoutingFacts,
    pods: ModelPods,
    state: RoutingState,
    *,
    avoided: Collection[str],
    leave: bool = False,
) -> Decision | None:
    """Return the decision with another prefill pod, and with another decode pod if need be.

    The roleset is left only if it has no other pod that has not failed of late: the decode pod
    stays what it is, and blocks of the prompt may be near.

    Args:
        decision: what was chosen.
        strategy: what chose it.
        facts: the request.
        pods: the newest view of the model's pods.
        state: their condition.
        avoided: UIDs of prefill pods that it must not be.
        leave: whether other rolesets are preferred.

    Returns:
        The new decision; None if there is no other pair.
    """
    left = keep_others(keep_selected(pods, facts.selector), avoided)
    facts = structs.replace(facts, selector=None)
    sound, _ = keep_sound(left, state.failures)
    last = decision.last.pod
    preferred = keep_other_rolesets(sound, last) if leave else keep_roleset(sound, last)
    for candidates in (preferred, left):
        found = _decide(strategy, facts, candidates, state)
        if found is not None:
            return _join(decision, found)
    return None


def _decide(
    strategy: Strategy, facts: RoutingFacts, pods: ModelPods, state: RoutingState
) -> Decision | None:
    """Return a pair, if the strategy finds one."""
    try:
        found = strategy.decide(facts, pods, state)
    except NoReadyPod:
        return None
    return None if found.whole else found


def _join(decision: Decision, found: Decision) -> Decision:
    """Return the new pair with all notes; if the decode pod stays, so does why it was chosen."""
    last, session = found.last, decision.session
    if last.pod.uid == decision.last.pod.uid:
        last = decision.last
    elif session is not None and session is not SessionOutcome.NONE:
        session = SessionOutcome.AWAY
    notes = tuple(dict.fromkeys((*decision.notes, *found.notes)))
    return structs.replace(
        decision, side=found.side, last=last, reason="", notes=notes, session=session
    )
