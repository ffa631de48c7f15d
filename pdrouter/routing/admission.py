"""Which requests are refused because they would wait too long."""

from itertools import repeat

from msgspec import structs

from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Decision, RoutingFacts, Strategy
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.state import RoutingState


class QueueTooLong(Exception):
    """No prefill pod would come to the request in time.

    Attributes:
        wait_s: predicted seconds in the queue of the one that was chosen.
        limit_s: how many there may be.
    """

    def __init__(self, wait_s: float, limit_s: float) -> None:
        super().__init__(f"the prefill queue is {wait_s:.1f} s long")
        self.wait_s = wait_s
        self.limit_s = limit_s


def limit_wait(
    decision: Decision,
    strategy: Strategy,
    facts: RoutingFacts,
    pods: ModelPods,
    state: RoutingState,
    *,
    limit_s: float,
) -> Decision:
    """Return a decision by which the request waits no longer than it may.

    A policy may prefer a pod with a long queue, for what it has cached. Then the best of those
    whose queues are short enough takes its place: of the same roleset, or else of another pair.

    Args:
        decision: what was chosen.
        strategy: what chose it.
        facts: the request.
        pods: the pods there were to choose from.
        state: their condition.
        limit_s: predicted seconds that a request may wait in a prefill queue.

    Raises:
        QueueTooLong: there is no such pod.
    """
    chosen = decision.prefill
    if chosen is None:
        return decision
    wait = state.ledger.predict_prefill_wait(chosen.pod.uid)
    if wait <= limit_s:
        return decision
    too_long = find_too_long(pods, state, limit_s)
    other = choose_other_pair(decision, strategy, facts, pods, state, avoided=too_long)
    if other is None:
        raise QueueTooLong(wait, limit_s)
    note = f"the queue of {chosen.pod.name} is {wait:.1f} s long, another pod's is shorter"
    return structs.replace(other, notes=(*other.notes, note))


def find_too_long(pods: ModelPods, state: RoutingState, limit_s: float) -> set[str]:
    """Return the UIDs of the prefill pods whose queues are longer than a request may wait."""
    uids = [pod.uid for pod in pods.prefill]
    waits = state.ledger.predict_prefills(uids, repeat(0.0, len(uids)))
    return {uid for uid, wait in zip(uids, waits, strict=True) if wait > limit_s}
