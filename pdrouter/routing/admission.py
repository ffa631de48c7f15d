"""Which requests are refused because they would wait too long, or be served too late."""

from itertools import repeat
from math import inf

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Decision, RoutingFacts, Strategy
from pdrouter.routing.filters import keep_selected
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.state import RoutingState

_LEAST_TOLD_S = 0.1
"""Less than that would look like nothing, were it rounded."""


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


class DeadlineMissed(Exception):
    """No pair would have the first token of the request when it is due.

    Attributes:
        late_s: predicted seconds by which the best of them would be late, or by which its queue is
            longer than a request may wait.
    """

    def __init__(self, late_s: float, deadline: Deadline, reason: str = "") -> None:
        """Say when it is due, and what stands against it.

        Args:
            late_s: see there.
            deadline: when it is due.
            reason: why pods that would be in time do not get it; empty where there are none.
        """
        super().__init__(
            f"the first token is due in {deadline.target_s:g} s ({deadline.source}), "
            f"and {reason or f'predicted to come {_write(late_s)} later'}"
        )
        self.late_s = late_s


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


def meet_deadline(
    decision: Decision,
    strategy: Strategy,
    facts: RoutingFacts,
    pods: ModelPods,
    state: RoutingState,
    *,
    handover_s: float,
    limit_s: float | None = None,
) -> Decision:
    """Return a decision by which the request's first token comes when it is due.

    What cannot be is refused, in favour of what can: it would make others late, and be late itself.
    A pod of which nothing is known from late legs is not: else nothing would ever be.

    Args:
        decision: what was chosen.
        strategy: what chose it.
        facts: the request.
        pods: the pods there were to choose from.
        state: their condition.
        handover_s: seconds that the way over two pods costs beside computing.
        limit_s: predicted seconds that a request may wait in a prefill queue; None for any.

    Raises:
        DeadlineMissed: there is no such decision.
    """
    chosen, deadline = decision.prefill, facts.deadline
    if deadline is None or not deadline.binding:
        return decision
    if chosen is None:
        _check_whole(decision, deadline, pods, state)
        return decision
    request, left = RankingRequest(facts, state), deadline.due - state.clock() - handover_s
    if _predict_known(chosen.pod, request, deadline) <= left:
        return decision
    selected = keep_selected(pods, facts.selector)
    seconds = {pod.uid: _predict_known(pod, request, deadline) for pod in selected.prefill}
    late = {uid: each - left for uid, each in seconds.items() if each > left}
    too_long = set() if limit_s is None else find_too_long(selected, state, limit_s) - late.keys()
    avoided = late.keys() | too_long
    other = choose_other_pair(decision, strategy, facts, pods, state, avoided=avoided)
    if other is None and limit_s is not None and too_long:
        wait = min(map(state.ledger.predict_prefill_wait, too_long))
        queue = f"the prefill queue is {wait:.1f} s long, and may be {limit_s:g} s"
        raise DeadlineMissed(wait - limit_s, deadline, f"where it would be met, {queue}")
    if other is None:
        raise DeadlineMissed(min(late.values()), deadline)
    note = f"{chosen.pod.name} would be too late, another pod is not"
    return structs.replace(other, notes=(*other.notes, note))


def _write(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= _LEAST_TOLD_S else f"{max(seconds, 0.001):.3f} s"


def _check_whole(
    decision: Decision, deadline: Deadline, pods: ModelPods, state: RoutingState
) -> None:
    """Check that a request is in time that goes to one pod since that is faster than two.

    Raises:
        DeadlineMissed: it is not, nor would it be over two, as pods show that have worked of late.
    """
    ways = decision.ways
    if ways is None or ways.whole_s is None:
        return
    late_s = ways.whole_s - (deadline.due - state.clock())
    if late_s > 0 and any(state.ledger.knows(pod.uid) for pod in pods.prefill):
        raise DeadlineMissed(late_s, deadline)


def _predict_known(pod: Pod, request: RankingRequest, deadline: Deadline) -> float:
    """Return the seconds until a pod has done a prompt; none at all if too little is known."""
    ledger, uid = request.state.ledger, pod.uid
    if not ledger.knows(uid):
        return -inf
    rates = ledger.rates
    computed = request.count_uncached(uid)
    cached = request.facts.prompt_tokens - computed
    work = rates.measure(computed, rates.find_shapes(uid), cached)
    due = deadline.due if request.state.priorities.find(pod) else None
    return ledger.predict_prefill(uid, work, due)
