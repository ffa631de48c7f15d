"""Which prefill and which decode pod go together, once the pods of both legs have scores."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import NamedTuple

import msgspec

from pdrouter.cluster.places import measure_distance
from pdrouter.cluster.pods import PairingKey
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import Ranking

# aibrix divides the scores of a leg by no less than this: lower ones all count as low.
_PREFILL_FLOOR = 1.0
_DECODE_FLOOR = 0.01

_MOST_COMPARED = 512
"""Pairs of places that are compared for a request: of more, some are drawn."""


class PickedPair(msgspec.Struct, frozen=True):
    """A pair of pods.

    Attributes:
        prefill: index of the prefill pod.
        decode: index of the decode pod.
        note: why it has not the lowest scores, for people; empty if it has.
    """

    prefill: int
    decode: int
    note: str = ""


def pick_pair(
    prefills: Ranking, decodes: Ranking, pods: ModelPods, random: Random, locality: float = 0.0
) -> PickedPair:
    """Return the pair with the lowest sum of scores, each as a share of the highest.

    The distance between its pods is added. Of pairs that are equal, a random one is taken; where
    there are several versions, one of which there are more pods is more likely.

    Args:
        prefills: prefill pods and their scores.
        decodes: decode pods that are partners for them, and their scores.
        pods: all that there were.
        random: source of randomness.
        locality: what the longest distance counts, where the highest score counts 1.
    """
    near = locality > 0.0 and pods.placed
    if near or pods.versions > 1:
        return _pick_fitting(prefills, decodes, random, locality if near else 0.0)
    if len(pods.decode) == 1:
        return PickedPair(pick_lowest(prefills.scores, random), pick_lowest(decodes.scores, random))
    best_prefills = _find_best(prefills, random)
    best_decodes = _find_best(decodes, random)
    highest_prefill = max(_PREFILL_FLOOR, *prefills.scores)
    highest_decode = max(_DECODE_FLOOR, *decodes.scores)
    pairs = [
        PickedPair(index, best_decodes[key])
        for key, index in best_prefills.items()
        if key in best_decodes
    ]
    sums = [
        prefills.scores[pair.prefill] / highest_prefill
        + decodes.scores[pair.decode] / highest_decode
        for pair in pairs
    ]
    return pairs[pick_lowest(sums, random)]


def _find_best(ranking: Ranking, random: Random) -> dict[PairingKey, int]:
    """Return the index of the pod with the lowest score in each roleset, ties at random."""
    lowest: dict[PairingKey, float] = {}
    best: dict[PairingKey, list[int]] = {}
    key, low = None, math.inf
    for index, (pod, score) in enumerate(zip(ranking.pods, ranking.scores, strict=True)):
        # Most neighbours are of one roleset: its key need not be looked up for each.
        if pod.pairing is not key:
            key = pod.pairing
            low = lowest.get(key, math.inf)
        if score < low:
            low = lowest[key] = score
            best[key] = [index]
        elif score == low:
            best[key].append(index)
    return {key: random.choice(indexes) for key, indexes in best.items()}


class _Best(NamedTuple):
    """The best pods of a leg in one place.

    Attributes:
        share: their score, as a share of the highest of the leg.
        indexes: which they are.
        places: where they are.
    """

    share: float
    indexes: list[int]
    places: tuple[str, ...]


class _Fit(NamedTuple):
    """Pairs that are equally good.

    Attributes:
        total: their sum of scores and distance.
        scores: their sum of scores alone.
        weight: how often they are taken, beside others that are as good.
        prefills: indexes of the prefill pods.
        decodes: indexes of the decode pods.
    """

    total: float
    scores: float
    weight: float
    prefills: Sequence[int]
    decodes: Sequence[int]


def _pick_fitting(
    prefills: Ranking, decodes: Ranking, random: Random, locality: float
) -> PickedPair:
    best_decodes = _find_best_by_place(decodes, _DECODE_FLOOR, apart=locality > 0)
    fits: list[_Fit] = []
    for key, ours in _find_best_by_place(prefills, _PREFILL_FLOOR, apart=locality > 0).items():
        theirs = best_decodes.get(key, ())
        if len(ours) * len(theirs) > _MOST_COMPARED:
            ours = random.sample(ours, max(1, _MOST_COMPARED // len(theirs)))  # noqa: PLW2901
        for prefill, decode in product(ours, theirs):
            distance = locality * measure_distance(prefill.places, decode.places) if locality else 0
            # What both legs have of it bounds what it can take.
            weight = min(
                len(prefill.indexes) / len(prefills.pods), len(decode.indexes) / len(decodes.pods)
            )
            scores = prefill.share + decode.share
            fits.append(_Fit(scores + distance, scores, weight, prefill.indexes, decode.indexes))
    lowest = min(fit.total for fit in fits)
    equal = [fit for fit in fits if fit.total == lowest]
    fit = random.choices(equal, [fit.weight for fit in equal])[0] if len(equal) > 1 else equal[0]
    moved = fit.scores > min(fit.scores for fit in fits)
    note = "locality: pods with better scores are farther from each other" if moved else ""
    return PickedPair(random.choice(fit.prefills), random.choice(fit.decodes), note)


def _find_best_by_place(
    ranking: Ranking, floor: float, *, apart: bool
) -> Mapping[PairingKey, Sequence[_Best]]:
    """Return the pods with the lowest score in each place, or anywhere, by what pairs need."""
    highest = max(floor, *ranking.scores)
    best: dict[tuple[PairingKey, tuple[str, ...]], tuple[float, list[int]]] = {}
    for index, (pod, score) in enumerate(zip(ranking.pods, ranking.scores, strict=True)):
        where = (pod.pairing, pod.places if apart else ())
        low, indexes = best.get(where, (math.inf, []))
        if score < low:
            best[where] = score, [index]
        elif score == low:
            indexes.append(index)
    found: dict[PairingKey, list[_Best]] = {}
    for (key, places), (score, indexes) in best.items():
        found.setdefault(key, []).append(_Best(score / highest, indexes, places))
    return found
