"""Where pods are: what is near to what."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import zip_longest

from pdrouter.cluster.pods import Pod


@lru_cache(maxsize=16384)
def measure_distance(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    """Return how far apart two pods are: from 0, in the same nearest place, to 1, in none.

    Args:
        one: the places that a pod is in, the nearest around it first.
        other: those of the other, for the same kinds of places.
    """
    for level, (place, another) in enumerate(zip(one, other, strict=False)):
        if place and place == another:
            return level / len(one)
    return 1.0


def are_placed(prefill: Iterable[Pod], decode: Iterable[Pod]) -> bool:
    """Return whether some of these pods are nearer to each other than others.

    That takes a kind of place in which a prefill and a decode pod are the same, and others not.
    """
    ours, theirs = (
        zip_longest(*{pod.places for pod in pods}, fillvalue="") for pods in (prefill, decode)
    )
    for our_places, their_places in zip(ours, theirs, strict=False):
        some, others = set(our_places), set(their_places)
        if (some & others) - {""} and len(some | others) > 1:
            return True
    return False
