"""Where pods are: what is near to what."""

from collections.abc import Iterable
from functools import lru_cache

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
    sides = [set(map(_get_places, prefill)), set(map(_get_places, decode))]
    if len(sides[0] | sides[1]) < 2:
        return False
    for level in range(max(map(len, sides[0] | sides[1]))):
        ours, theirs = (
            {places[level] if level < len(places) else "" for places in side} for side in sides
        )
        if (ours & theirs) - {""} and len(ours | theirs) > 1:
            return True
    return False


def _get_places(pod: Pod) -> tuple[str, ...]:
    return pod.places
