"""What becomes of requests teaches which of them are faster whole."""

from pdrouter.routing.aggregation import REASON, WholeParts
from pdrouter.routing.decision import Choice, Decision, RoutingFacts
from pdrouter.routing.state import RoutingState


def note_sent(decision: Decision, state: RoutingState) -> None:
    """Take note of a request that is sent to its last pod."""
    if decision.reason == REASON and decision.last.seconds is not None:
        state.whole.begin(decision.last.pod.uid, decision.last.seconds)


def wants_first_token(decision: Decision, reason: str, model: str, state: RoutingState) -> bool:
    """Return whether the first token of a streamed answer would teach anything now.

    Args:
        decision: the pods that serve the request.
        reason: why it is served whole after all; empty where it is not.
        model: its model, by the name that the view has.
        state: the pods' condition.
    """
    if reason == REASON:
        return state.whole.wants_whole(decision.last.pod.uid)
    return decision.ways is not None and not reason and state.whole.wants_handover(model)


def learn_first_token(
    decision: Decision, reason: str, model: str, state: RoutingState, seconds: float
) -> None:
    """Learn from the first token of an answer.

    Args:
        decision: the pods that have served the request.
        reason: why it was served whole; empty where it was not.
        model: its model, by the name that the view has.
        state: the pods' condition.
        seconds: how long it took from when the request was sent to its last pod.
    """
    if not reason:
        state.whole.observe_handover(model, seconds)
    elif reason == REASON:
        _learn_speed(decision.last, state, seconds)


def learn_status(decision: Decision, reason: str, state: RoutingState, status: int) -> None:
    """Learn from the status with which the engine of the last leg has answered."""
    if reason == REASON:
        state.whole.note_answer(decision.last.pod.uid, status)


def learn_prompt(
    decision: Decision,
    facts: RoutingFacts,
    state: RoutingState,
    answer_tokens: int | None,
    model: str,
) -> None:
    """Take note of what the last pod of a request has in its KV memory by now.

    It is for the choice between one pod and two: until there is one, nobody asks.

    Args:
        decision: the pods that have served it.
        facts: the request.
        state: the pods' condition.
        answer_tokens: length of the answer; None if nobody has counted it.
        model: its model, by the name that the view has.
    """
    if state.whole.find_handover(model) is None:
        return
    prefix, uid = facts.prefix, decision.last.pod.uid
    answer = facts.output_tokens if answer_tokens is None else answer_tokens
    behind = prefix.size - prefix.ends[-1] if prefix.ends else prefix.size
    sample = state.samples.get(uid)
    # Others write, too, about as much for each of their requests.
    crowd = 1.0 if sample is None else 1.0 + sample.others / max(1, sample.own_requests)
    state.decoded.add(
        prefix.hashes,
        uid,
        rest_tokens=facts.prompt_tokens * behind // prefix.size + answer,
        written_tokens=crowd * (facts.prompt_tokens + answer),
    )


def _learn_speed(last: Choice, state: RoutingState, seconds: float) -> None:
    uid, parts = last.pod.uid, last.parts
    if last.seconds is None or not isinstance(parts, WholeParts) or uid not in parts.computed:
        return
    computed = parts.computed[uid]
    cached = max(0, parts.prompt_tokens - computed)
    predicted = state.ledger.rates.predict(uid, computed, cached)
    state.whole.observe(uid, predicted, max(0.0, seconds - (last.score - last.seconds)))
