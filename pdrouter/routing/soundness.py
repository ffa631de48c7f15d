"""Which pods are left out because they have failed: what is left for the policies to rank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pdrouter.cluster.pods import PairingKey, Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory, Trouble

_NAMED = 3
_SOUND = (0, 0)


def keep_sound(pods: ModelPods, failures: FailureMemory) -> tuple[ModelPods, tuple[str, ...]]:
    """Return the pods that may get a request now, and notes on who may not, for people.

    A roleset stays if both of its legs have a sound pod. If there is none, the least bad pairs are
    tried, and the least bad of the pods that serve requests whole.
    """
    if failures.calm:
        return pods, ()
    troubles = failures.look(pods.model)
    if not any(troubles.values()):
        return pods, ()
    # A pair is a prefill pod and a decode pod; what serves requests whole is a decode pod to it.
    prefill_troubles, last_troubles = troubles[Leg.PREFILL], troubles[Leg.DECODE]
    share = failures.rules.share
    prefill = _keep(pods.prefill, prefill_troubles, share)
    sound = {pod.uid for pod in _keep(pods.partners, last_troubles, share)}
    decode = {
        key: kept
        for key in dict.fromkeys(pod.pairing for pod in prefill)
        if (kept := tuple(pod for pod in pods.decode[key] if pod.uid in sound))
    }
    pairs: Sequence[Pod] = [pod for pod in prefill if pod.pairing in decode]
    if not pairs:
        pairs, decode = _find_least_bad_pairs(pods, prefill_troubles, last_troubles)
    whole = _keep_or_find(pods.whole, last_troubles, share)
    left = replace(pods.keep_pairs(pairs, decode), whole=tuple(whole))
    notes = (
        *_describe(Leg.PREFILL, pods.prefill, pairs, prefill_troubles),
        *_describe(Leg.DECODE, pods.whole, whole, last_troubles),
    )
    return left, notes


def keep_sound_of(
    pods: Sequence[Pod], leg: Leg, model: str, failures: FailureMemory
) -> Sequence[Pod]:
    """Return those of some pods that may get a request of this leg now, or the least bad."""
    if failures.calm:
        return pods
    return _keep_or_find(pods, failures.look(model)[leg], failures.rules.share)


def _keep(pods: Sequence[Pod], troubles: Mapping[str, Trouble], share: float) -> list[Pod]:
    """Return the pods without trouble, and those that are tried early, as too many have some."""
    sound = [pod for pod in pods if pod.uid not in troubles]
    surplus = len(pods) - len(sound) - int(len(pods) * share)
    if surplus > 0:
        bad = [(trouble, pod) for pod in pods if (trouble := troubles.get(pod.uid)) is not None]
        if not all(trouble.patient for trouble, _ in bad):
            bad.sort(key=lambda each: each[0].badness)
            sound += [pod for trouble, pod in bad[:surplus] if not trouble.patient]
    return sound


def _keep_or_find(
    pods: Sequence[Pod], troubles: Mapping[str, Trouble], share: float
) -> Sequence[Pod]:
    return _keep(pods, troubles, share) or _find_least_bad(pods, troubles)


def _find_least_bad(pods: Sequence[Pod], troubles: Mapping[str, Trouble]) -> list[Pod]:
    measured = [_measure(pod, troubles) for pod in pods]
    least = min(measured, default=_SOUND)
    return [pod for pod, badness in zip(pods, measured, strict=True) if badness == least]


def _measure(pod: Pod, troubles: Mapping[str, Trouble]) -> tuple[int, int]:
    trouble = troubles.get(pod.uid)
    return _SOUND if trouble is None else trouble.badness


def _find_least_bad_pairs(
    pods: ModelPods, prefill: Mapping[str, Trouble], decode: Mapping[str, Trouble]
) -> tuple[list[Pod], dict[PairingKey, tuple[Pod, ...]]]:
    """Return the least bad pods of the rolesets whose best pair is the least bad."""
    rolesets: dict[PairingKey, list[Pod]] = {}
    for pod in pods.prefill:
        rolesets.setdefault(pod.pairing, []).append(pod)
    found = {
        key: (_find_least_bad(members, prefill), _find_least_bad(pods.decode[key], decode))
        for key, members in rolesets.items()
    }
    badness = {
        key: tuple(
            map(sum, zip(_measure(ours[0], prefill), _measure(theirs[0], decode), strict=True))
        )
        for key, (ours, theirs) in found.items()
    }
    least = min(badness.values(), default=_SOUND)
    kept = {key: pair for key, pair in found.items() if badness[key] == least}
    return (
        [pod for ours, _ in kept.values() for pod in ours],
        {key: tuple(theirs) for key, (_, theirs) in kept.items()},
    )


def _describe(
    leg: Leg, before: Sequence[Pod], after: Sequence[Pod], troubles: Mapping[str, Trouble]
) -> list[str]:
    kept = {pod.uid for pod in after}
    out = [pod for pod in before if pod.uid in troubles and pod.uid not in kept]
    if not out:
        return []
    named = ", ".join(f"{pod.name} ({troubles[pod.uid].reason})" for pod in out[:_NAMED])
    more = f" and {len(out) - _NAMED} more" if len(out) > _NAMED else ""
    return [f"failures: {leg} pods left out: {named}{more}"]
