"""Pods for prompts of certain lengths, and combined pods that take what the others cannot.

The rules are aibrix's, for `AIBRIX_PROMPT_LENGTH_BUCKETING`. In its configuration, a pod says which
prompt lengths it is for, and one that is neither for prefill nor for decode may say that it serves
requests whole (`combined`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from pdrouter.cluster.pods import PairingKey, Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.soundness import keep_sound_of
from pdrouter.routing.state import RoutingState

POLICY = "combined"
NO_BUCKET = "no-bucket"
"""Reason: no pair is for prompts of this length, but a combined pod is."""
OVERLOADED = "pair-overloaded"
"""Reason: a pair would do, but its queues are long and a combined pod has none."""

_HIGH_PRESSURE = 1.0
_LOW_PRESSURE = 0.25


def apply_buckets(
    pods: ModelPods, facts: RoutingFacts, state: RoutingState
) -> ModelPods | Decision:
    """Return the pods that are for prompts of this length, or the combined pod to take instead.

    Raises:
        NoReadyPod: nothing is for prompts of this length.
    """
    combined: Sequence[Pod] = find_combined(pods, facts)
    matching = _keep_pairs(pods, facts)
    if matching.prefill:
        return _relieve(matching, combined, facts, state) or matching
    if combined:
        combined = keep_sound_of(combined, Leg.DECODE, pods.model, state.failures)
        scores = [0.0] * len(combined)
        return _decide(combined, scores, facts, state, NO_BUCKET)
    if not pods.prefill:
        raise NoReadyPod(pods.model, Role.PREFILL if pods.decode else Role.DECODE)
    raise NoReadyPod(pods.model, Role.PREFILL, facts.prompt_tokens)


def apply_buckets_whole(pods: ModelPods, facts: RoutingFacts) -> ModelPods:
    """Return the pods that may serve a request of this length whole, combined ones among them.

    Raises:
        NoReadyPod: there are such pods, but none for prompts of this length.
    """
    others = [pod for pod in pods.whole if is_for(pod, facts)]
    known = {pod.uid for pod in others}
    others += [pod for pod in find_combined(pods, facts) if pod.uid not in known]
    if pods.whole and not others:
        raise NoReadyPod(pods.model, Role.DECODE, facts.prompt_tokens)
    return replace(pods, whole=tuple(others))


def is_for(pod: Pod, facts: RoutingFacts) -> bool:
    """Return whether a pod is for prompts of this length; one without a configuration is."""
    profile = None if pod.config is None else pod.config.find_profile(facts.profile)
    return profile is None or profile.holds(facts.prompt_tokens)


def find_combined(pods: ModelPods, facts: RoutingFacts) -> list[Pod]:
    """Return the ready combined pods for prompts of this length."""
    return [
        pod
        for pod in pods.pods
        if pod.ready
        and pod.role in (Role.BOTH, Role.OTHER)
        and pod.roleset
        and pod.config is not None
        and (profile := pod.config.find_profile(facts.profile)) is not None
        and profile.combined
        and profile.holds(facts.prompt_tokens)
    ]


def measure_pressure(uid: str, state: RoutingState) -> float | None:
    """Return the seconds until a pod has begun all requests that wait, at its rate of late.

    Returns:
        None if the pod does not say how many wait, or its rate is not known yet; infinity if some
        wait and none are completed.
    """
    sample = state.samples.get(uid)
    waiting = None if sample is None else sample.waiting
    if waiting is None or not math.isfinite(waiting):
        return None
    if waiting <= 0:
        return 0.0
    rate = state.ledger.drain_rate(uid)
    if rate is None:
        return None
    return waiting / rate if rate else math.inf


def _keep_pairs(pods: ModelPods, facts: RoutingFacts) -> ModelPods:
    """Keep the pods for this length, in rolesets that have some for both legs."""
    prefill = [pod for pod in pods.prefill if is_for(pod, facts)]
    decode: dict[PairingKey, tuple[Pod, ...]] = {}
    for key in dict.fromkeys(pod.pairing for pod in prefill):
        matching = tuple(pod for pod in pods.decode[key] if is_for(pod, facts))
        if matching:
            decode[key] = matching
    return pods.keep_pairs((pod for pod in prefill if pod.pairing in decode), decode)


def _relieve(
    pods: ModelPods, combined: Sequence[Pod], facts: RoutingFacts, state: RoutingState
) -> Decision | None:
    """Return the least busy combined pod where it has no queue, but a pod of the pairs a long one.

    A pod that does not tell its queue neither needs relief nor gives it.
    """
    troubles = state.failures.look(pods.model)[Leg.DECODE]
    pressures = [
        (pod, measure_pressure(pod.uid, state)) for pod in combined if pod.uid not in troubles
    ]
    idle = [(pod, low) for pod, low in pressures if low is not None and low < _LOW_PRESSURE]
    if not idle:
        return None
    paired = (*pods.prefill, *(pod for group in pods.decode.values() for pod in group))
    if not any((measure_pressure(pod.uid, state) or 0.0) > _HIGH_PRESSURE for pod in paired):
        return None
    return _decide([pod for pod, _ in idle], [low for _, low in idle], facts, state, OVERLOADED)


def _decide(
    pods: Sequence[Pod],
    scores: Sequence[float],
    facts: RoutingFacts,
    state: RoutingState,
    reason: str,
) -> Decision:
    index = pick_lowest(scores, state.random)
    tokens = facts.prompt_tokens + facts.output_tokens
    choice = Choice(Leg.DECODE, pods[index], POLICY, scores[index], pods, scores, tokens)
    return Decision((), choice, reason)
