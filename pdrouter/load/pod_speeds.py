"""Which pods are slower or faster than others of their kind: told from chance by evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from operator import attrgetter
from typing import NamedTuple

_FORGET = 0.98
"""What a leg counts once there is another one."""
_LEAST_LEGS = 4.0
"""Legs of equal size that a pod must have carried out before it is compared at all."""
_TOGETHER = 0.1
"""Of what those before it took for their work: a leg that took less has ended with them."""
_MOST_TOGETHER = 16
_BAND = 1.3
"""How many times slower or faster a pod may look and still count as others of its kind."""
_ERRORS = 4.0
"""Standard errors that it must be away from them: chance alone does not give these."""
_PODS_PER_LEG = 4
_LEGS_PER_LOOK = 4
"""All pods are looked at once in so many legs, or in more: that many for each leg, then."""
_REMEMBERED = 200
"""Legs for each pod after which one that has had none meanwhile is looked at anew."""
_LEAST_RATIO = 1e-3


class PodKind(NamedTuple):
    """What pods have in common whose speeds are compared.

    Attributes:
        model: what they serve.
        hardware: what they run on, as far as they say it.
    """

    model: str = ""
    hardware: str = ""


_UNKNOWN = PodKind()
_get_ratio = attrgetter("ratio")


@dataclass(slots=True)
class _Record:
    """What the legs of one pod took beside what the curve says of them, in sums that fade.

    Legs that end together are seen with all of the time at the first of them, and none at the
    others: they are taken for one. What of that is missed makes the error of the ratio larger,
    never smaller.

    Attributes:
        last: number of its last leg, among those of all pods.
        group: the legs that have ended together of late, not in the sums yet: how many they are,
            and what they took and should have taken.
        legs: how many legs of equal size would say as much as the sums: one long prompt outweighs
            many.
        ratio: how many times longer than the curve says the pod takes, by the sums.
    """

    last: int = 0
    group: tuple[int, float, float] = (0, 0.0, 0.0)
    observed: float = 0.0
    predicted: float = 0.0
    observed_squares: float = 0.0
    predicted_squares: float = 0.0
    products: float = 0.0
    legs: float = 0.0
    ratio: float = 1.0

    def add(self, number: int, observed: float, predicted: float) -> None:
        self.last = number
        legs, group_observed, group_predicted = self.group
        together = observed * group_predicted < _TOGETHER * predicted * group_observed
        if together and legs < _MOST_TOGETHER:
            self.group = legs + 1, group_observed + observed, group_predicted + predicted
            return
        self.group = 1, observed, predicted
        if not legs:
            return
        observed, predicted = group_observed, group_predicted
        self.observed = all_observed = self.observed * _FORGET + observed
        self.predicted = all_predicted = self.predicted * _FORGET + predicted
        self.observed_squares = self.observed_squares * _FORGET + observed * observed
        self.predicted_squares = squares = self.predicted_squares * _FORGET + predicted * predicted
        self.products = self.products * _FORGET + observed * predicted
        self.legs = all_predicted * all_predicted / squares
        self.ratio = max(all_observed / all_predicted, _LEAST_RATIO)

    def stand_out(self, usual: float) -> float:
        """Return how many times longer than is usual the pod takes: 1 unless that is sure.

        Args:
            usual: the ratio of others.
        """
        ratio = self.ratio
        if usual / _BAND <= ratio <= usual * _BAND:
            return 1.0
        residuals = self.observed_squares - ratio * (
            2.0 * self.products - ratio * self.predicted_squares
        )
        error = sqrt(max(residuals, 0.0)) / self.predicted
        return ratio / usual if abs(ratio - usual) > _ERRORS * error else 1.0


class PodSpeeds:
    """Learns how many times longer than usual pods take.

    Measured times scatter: engines compute several prompts in one step, and those of other routers
    among them. A factor that followed each of them would part pods that are equal, and the one that
    looks fastest would get all that comes while pods are idle. So a pod is as fast as the median of
    its kind unless the evidence is beyond chance.

    Pods of one model are compared, and among them those of the same hardware: a kind of hardware
    has a speed of its own on the same evidence. Models differ as they do.
    """

    __slots__ = ("_factors", "_is_stale", "_kinds", "_next_look", "_number", "_records")

    def __init__(self) -> None:
        self._kinds: dict[str, PodKind] = {}
        self._number = 0
        self._next_look = 0
        self._records: dict[str, _Record] = {}
        self._factors: Mapping[str, float] = {}
        self._is_stale = False

    @property
    def factors(self) -> Mapping[str, float]:
        """How many times longer than the usual pods of the fastest model pods take, by UID.

        It is 1 where absent. What is learnt makes a new mapping.
        """
        if self._is_stale:
            self._compare()
        return self._factors

    def note_kind(self, uid: str, kind: PodKind) -> None:
        """Take which pods a pod is compared with."""
        if self._kinds.get(uid) != kind:
            self._kinds[uid] = kind
            # Many come at once, and a look goes through all.
            self._is_stale = True

    def observe(self, uid: str, observed: float, predicted: float) -> None:
        """Learn from a leg.

        Args:
            uid: the pod.
            observed: seconds that it took.
            predicted: seconds that the curve gives for it, more than 0.
        """
        record = self._records.get(uid)
        if record is None:
            record = self._records[uid] = _Record()
        self._number += 1
        record.add(self._number, observed, predicted)
        if self._number >= self._next_look:
            pods = len(self._records)
            self._next_look = self._number + max(_LEGS_PER_LOOK, 1 + pods // _PODS_PER_LEG)
            oldest = self._number - _REMEMBERED * pods
            for each in [each for each, known in self._records.items() if known.last < oldest]:
                del self._records[each]
            self._is_stale = True

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self._kinds.pop(uid, None)
        if self._records.pop(uid, None) is not None or uid in self._factors:
            self._is_stale = True

    def _compare(self) -> None:
        self._is_stale = False
        known = {uid: record for uid, record in self._records.items() if record.legs >= _LEAST_LEGS}
        factors = {} if self._are_alike(known) else self._find_factors(known)
        if factors != self._factors:
            self._factors = factors

    def _are_alike(self, known: Mapping[str, _Record]) -> bool:
        """Return whether these pods are of one kind, and so alike that none can stand out."""
        ratios = sorted(map(_get_ratio, known.values()))
        if ratios and ratios[-1] > ratios[0] * _BAND:
            return False
        return len({*map(self._kinds.get, known)}) <= 1

    def _find_factors(self, known: Mapping[str, _Record]) -> Mapping[str, float]:
        models: dict[str, list[_Record]] = {}
        kinds: dict[PodKind, list[_Record]] = {}
        for uid, record in known.items():
            kind = self._kinds.get(uid, _UNKNOWN)
            models.setdefault(kind.model, []).append(record)
            kinds.setdefault(kind, []).append(record)
        usual = {model: _find_median(records).ratio for model, records in models.items()}
        fastest = min(usual.values(), default=1.0)
        of_kind = {
            kind: _find_median(records).stand_out(usual[kind.model])
            for kind, records in kinds.items()
        }
        factors = {}
        for uid in self._kinds.keys() | known.keys():
            kind = self._kinds.get(uid, _UNKNOWN)
            expected, hardware = usual.get(kind.model, fastest), of_kind.get(kind, 1.0)
            own = known[uid].stand_out(expected * hardware) if uid in known else 1.0
            factor = expected / fastest * hardware * own
            if factor != 1.0:
                factors[uid] = factor
        return factors


def _find_median(records: Sequence[_Record]) -> _Record:
    """Return the record in the middle; of two, the faster: the other may be the odd one."""
    return sorted(records, key=_get_ratio)[(len(records) - 1) // 2]
