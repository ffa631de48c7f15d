"""Which pod encodes an item: for the same content always the same, by rendezvous hashing.

Each pod has a score for each content; the pod with the lowest gets it. So a content stays with its
pod, which has it cached, while pods come and go, but for the contents of a pod that has gone; and
all routers agree without a word. The load does not count: what makes a content frequent makes it
cheap. Pods that have failed of late are left out.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b

from pdrouter.cluster.pods import Pod
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import Choice
from pdrouter.routing.soundness import keep_sound_of
from pdrouter.routing.state import RoutingState

POLICY = "rendezvous"
_BITS = 64
_MASK = (1 << _BITS) - 1
# The constants of MurmurHash3's last step: each bit of the input moves half of the output's.
_MIXERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)


def choose_encoders(
    items: Sequence[str],
    taker: Pod,
    pods: ModelPods,
    state: RoutingState,
    *,
    avoided: Collection[str] = (),
) -> tuple[Choice, ...]:
    """Return the pod for each item; nothing if no pod encodes for this one.

    Args:
        items: the items' digests.
        taker: the pod that takes what they are encoded to.
        pods: the newest view of the model's pods.
        state: their condition.
        avoided: UIDs of pods that it must not be.
    """
    able = [pod for pod in pods.find_encoders(taker) if pod.uid not in avoided]
    sound = keep_sound_of(able, Leg.ENCODE, pods.model, state.failures)
    seeds = [_hash(pod.uid) for pod in sound]
    return tuple(_choose(_hash(item), sound, seeds) for item in items) if sound else ()


def _choose(item: int, pods: Sequence[Pod], seeds: Sequence[int]) -> Choice:
    scores = [_mix(item ^ seed) for seed in seeds]
    lowest = min(scores)
    pod = pods[scores.index(lowest)]
    shares = [score / _MASK for score in scores]
    return Choice(Leg.ENCODE, pod, POLICY, lowest / _MASK, pods, shares, 0)


def _mix(value: int) -> int:
    for mixer in _MIXERS:
        value = ((value ^ (value >> 33)) * mixer) & _MASK
    return value ^ (value >> 33)


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=_BITS // 8).digest())
