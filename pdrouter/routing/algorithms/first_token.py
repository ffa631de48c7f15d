"""When the first token of a request is to be expected from each pod that could serve it."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.algorithms.engine_numbers import count_recent
from pdrouter.routing.policy import RankingRequest, count_computed


def predict_first_tokens(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> list[float]:
    """Return the seconds until each pod has computed the prompt, as predicted.

    Of prefill pods, the ledger knows the queue. Of others, those wait that the engine says wait,
    and those that this router has sent since: each takes as long as a prompt usually does there.
    """
    ledger, uids = request.state.ledger, [pod.uid for pod in pods]
    work = _measure(uids, request, leg)
    if leg is Leg.PREFILL:
        return ledger.predict_prefills(uids, work)
    rates, samples = ledger.rates, request.state.samples
    unit_s, factors = rates.unit_s, rates.speeds.factors
    prompt_s = rates.measure(max(1, request.facts.prompt_tokens), rates.default) * unit_s
    predicted = []
    for uid, own, recent in zip(uids, work, count_recent(pods, request, leg), strict=True):
        factor = factors.get(uid, 1.0)
        seconds = own * unit_s * factor
        sample = samples.get(uid)
        ahead = recent if sample is None else recent + (sample.waiting or 0.0)
        if ahead:
            means = None if sample is None else sample.means
            usual_s = None if means is None else means.prefill_s
            seconds += ahead * (prompt_s * factor if usual_s is None else usual_s)
        predicted.append(seconds)
    return predicted


def _measure(uids: Sequence[str], request: RankingRequest, leg: Leg) -> list[float]:
    """Return the work that the prompt is on each pod, as far as it has not cached it."""
    facts, rates, matches = request.facts, request.state.ledger.rates, request.find_matches(leg)
    kinds = [(matches.get(uid, 0), rates.find_shapes(uid)) for uid in uids]
    work = {}
    # Most of many pods have cached the same part of the prompt.
    for blocks, shapes in set(kinds):
        computed = count_computed(facts, blocks)
        work[blocks, shapes] = rates.measure(computed, shapes, facts.prompt_tokens - computed)
    return [work[kind] for kind in kinds]
