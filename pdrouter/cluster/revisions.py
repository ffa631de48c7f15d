"""Which version of the engine pods are: a prefill and a decode pod of different ones are no pair.

A pod may say its revision. For those that do not, the image is it, but only where both roles have
one in common: where they never had, the two are different on purpose.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pdrouter.cluster.pods import TERMINATING, Claim, PairingKey, Pod, Role

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace, and name of a model or an adapter."""

DEFAULT_PATIENCE_S = 3600.0

# To look up a member of an enumeration takes as long as all else that is asked of a pod.
_PAIRED = (Role.PREFILL, Role.DECODE)
_NO_CLAIM = Claim.NONE


@dataclass(frozen=True, slots=True)
class ImageMemory:
    """What is remembered of the images of pods that could form pairs.

    Attributes:
        decisive: whether images tell versions apart; None until both roles have shown theirs.
        settled_since: since when all of the pods are ready, and none has a partner of its image;
            None where that is not so.
    """

    decisive: bool | None = None
    settled_since: float | None = None


NOTHING_SEEN = ImageMemory()


def judge_images(
    before: ImageMemory, pods: Iterable[Pod], now: float, patience_s: float
) -> ImageMemory:
    """Return what is to be remembered, once these pods have been seen.

    Images that both roles have, ready, are versions from then on: where one role is updated before
    the other, there is no pair until the other follows. They are no versions any more when nothing
    is under way: all pods have been ready for a long time, and the roles have no image in common.
    What is not ready decides only at first, when it is all that tells of an update under way: a pod
    that never becomes ready must not part pairs that have worked.

    Args:
        before: what was remembered so far.
        pods: those that could form pairs, if their versions allow it, and do not say their own.
        now: the time, in seconds.
        patience_s: seconds after which nothing more is expected to happen.
    """
    known = [pod for pod in pods if pod.claim is not _NO_CLAIM]
    ready = [pod for pod in known if pod.ready]
    if _list_images(ready, Role.PREFILL) & _list_images(ready, Role.DECODE):
        return ImageMemory(decisive=True)
    prefill, decode = _list_images(known, Role.PREFILL), _list_images(known, Role.DECODE)
    decisive = before.decisive
    if decisive is None and prefill and decode:
        decisive = bool(prefill & decode)
    staying = [pod for pod in known if pod.obstacle != TERMINATING]
    if not (decisive and prefill and decode and staying and all(pod.ready for pod in staying)):
        return ImageMemory(decisive)
    since = now if before.settled_since is None else before.settled_since
    return ImageMemory(decisive=False) if now - since >= patience_s else ImageMemory(True, since)


def _list_images(pods: Iterable[Pod], role: Role) -> set[str]:
    return {pod.image for pod in pods if pod.role is role} - {""}


class RevisionMatcher:
    """Finds the revisions of a cluster's pods, and remembers their images."""

    def __init__(self, patience_s: float = DEFAULT_PATIENCE_S) -> None:
        """Start without memories.

        Args:
            patience_s: seconds for which all pods must have been ready before images that the roles
                do not have in common any more are taken to be different on purpose.
        """
        self._patience_s = patience_s
        self._seen: dict[Key, _Seen] = {}

    def match(self, key: Key, pods: Iterable[Pod], now: float) -> list[Pod]:
        """Return the pods of a model, with their revisions in what their partners must have.

        Args:
            key: the model.
            pods: all of its pods.
            now: the time, in seconds.
        """
        known = list(pods)
        before = self._seen.get(key, _Seen({}, {}))
        groups: defaultdict[PairingKey, list[Pod]] = defaultdict(list)
        for pod in known:
            if not pod.revision and pod.role in _PAIRED:
                groups[pod.pairing].append(pod)
        memories = {
            pairing: judge_images(
                before.memories.get(pairing, NOTHING_SEEN), group, now, self._patience_s
            )
            for pairing, group in groups.items()
        }
        matched: dict[str, tuple[Pod, Pod]] = {}
        for pairing, group in groups.items():
            if memories[pairing].decisive:
                for pod in group:
                    same = before.matched.get(pod.uid)
                    # Most pods are as they were: a copy of each would take long.
                    if same is None or same[0] is not pod:
                        same = pod, pod.take_for(pod.image)
                    matched[pod.uid] = same
        self._seen[key] = _Seen(memories, matched)
        return [same[1] if (same := matched.get(pod.uid)) else pod for pod in known]

    def forget_others(self, keys: Collection[Key]) -> None:
        """Forget all models but these."""
        for key in [key for key in self._seen if key not in keys]:
            del self._seen[key]

    def find_ends(self) -> Mapping[Key, float]:
        """Return when another match of a model finds something else, though no pod has changed."""
        return {
            key: min(since) + self._patience_s
            for key, seen in self._seen.items()
            if (
                since := [
                    memory.settled_since
                    for memory in seen.memories.values()
                    if memory.settled_since is not None
                ]
            )
        }


class _Seen(NamedTuple):
    """What was seen of a model.

    Attributes:
        memories: what is remembered of its images, by what pairs must have in common without them.
        matched: pods as they were and as they were taken, by UID.
    """

    memories: Mapping[PairingKey, ImageMemory]
    matched: Mapping[str, tuple[Pod, Pod]]


def find_unmatched(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Return the ready pods that have no ready partner because of their revision alone."""
    sides: dict[Role, set[PairingKey]] = {Role.PREFILL: set(), Role.DECODE: set()}
    ready = [pod for pod in pods if pod.ready and pod.role in sides]
    for pod in ready:
        sides[pod.role].add(pod.pairing)
    if sides[Role.PREFILL] == sides[Role.DECODE]:
        return ()
    whatever = {role: {key._replace(revision="") for key in keys} for role, keys in sides.items()}
    partner = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}
    # Of keys there are few, of pods many.
    alone = {
        role: {
            key
            for key in keys - sides[partner[role]]
            if key._replace(revision="") in whatever[partner[role]]
        }
        for role, keys in sides.items()
    }
    return tuple(pod for pod in ready if pod.pairing in alone[pod.role])


def count_versions(pods: Iterable[Pod]) -> int:
    """Return how many revisions these pods of one roleset have, of that which has most."""
    keys = {pod.pairing for pod in pods}
    return max(Counter(key._replace(revision="") for key in keys).values(), default=0)


def report_unmatched(before: Collection[Pod], now: Collection[Pod]) -> None:
    """Log which pods have begun to wait for a partner of their revision, or do not any more."""
    if before == now:
        return
    was, waits = (Counter(map(_describe_version, pods)) for pods in (before, now))
    for version, count in waits.items():
        if version not in was:
            fields = {**version._asdict(), "pods": count}
            log.info("pods wait for a partner of their revision", extra={"fields": fields})
    for version in was.keys() - waits.keys():
        message = "no pods wait for a partner of this revision any more"
        log.info(message, extra={"fields": version._asdict()})


class _Version(NamedTuple):
    """Pods that are alike for those that could be their partners."""

    namespace: str
    model: str
    roleset: str
    role: str
    revision: str


def _describe_version(pod: Pod) -> _Version:
    return _Version(pod.namespace, pod.model, pod.roleset, pod.role, pod.pairing.revision)
