"""Whether one pod serves a request that could be split."""

from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.state import RoutingState


def is_faster_whole(
    decision: Decision, facts: RoutingFacts, state: RoutingState, handover_s: float
) -> bool:
    """Return whether the decode pod would have the first token before the two legs have it.

    The requests that it decodes slow a prefill down, and are slowed down by it: each counts as if
    it shared the pod equally.

    Args:
        decision: the pair that was chosen.
        facts: the request.
        state: the pods' condition.
        handover_s: seconds that the way over two pods costs beside computing.
    """
    prefill, decode = decision.prefill, decision.last.pod
    if prefill is None:
        return True
    ledger = state.ledger
    two_legs = (
        ledger.predict_prefill_wait(prefill.pod.uid)
        + ledger.rates.predict(
            prefill.pod.uid, prefill.tokens, max(0, facts.prompt_tokens - prefill.tokens)
        )
        + handover_s
    )
    sharers = 1 + ledger.load(Leg.DECODE, decode.uid).requests
    return ledger.rates.predict(decode.uid, facts.prompt_tokens) * sharers < two_legs
