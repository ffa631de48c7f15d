"""Which pods leave those without an answer who wait for one."""

import math
from dataclasses import dataclass

from pdrouter.engines.split import Leg

_LONG_SILENCE_S = 10.0
"""A pod that was waited for so long in all, and has answered nobody, has failed who waited."""
_MOST = 4096


@dataclass(slots=True)
class _Silence:
    """Requests that were given up before their pod had answered anybody.

    Attributes:
        requests: how many that are, of those that have not been counted as failures.
        waited_s: how long the pod was waited for; what was waited for at once counts once.
        until: when the last of them was given up.
    """

    requests: int = 0
    waited_s: float = 0.0
    until: float = -math.inf

    def add(self, began: float, now: float) -> None:
        """Take one more."""
        self.requests += 1
        self.waited_s = max(self.waited_s + now - max(began, self.until), now - began)
        self.until = now


class Silences:
    """When each pod has answered last, by leg, and who has waited for it in vain since."""

    def __init__(self) -> None:
        self._answered: dict[tuple[str, Leg], float] = {}
        self._silences: dict[tuple[str, Leg], _Silence] = {}

    def note_answer(self, uid: str, leg: Leg, now: float) -> None:
        """Note that a pod has answered somebody."""
        self._answered[uid, leg] = now
        if self._silences:
            self._silences.pop((uid, leg), None)
        if len(self._answered) > _MOST:
            self._answered.pop(next(iter(self._answered)))

    def has_answered_since(self, uid: str, leg: Leg, began: float) -> bool:
        """Return whether a pod has answered anybody since a time."""
        return self._answered.get((uid, leg), -math.inf) >= began

    def note_given_up(self, uid: str, leg: Leg, began: float, now: float) -> int:
        """Note a request that was given up before its pod had answered.

        Returns:
            How many of them the pod has failed, as seen now.
        """
        if self.has_answered_since(uid, leg, began):
            return 0
        silence = self._silences.setdefault((uid, leg), _Silence())
        silence.add(began, now)
        if len(self._silences) > _MOST:
            self._silences.pop(next(iter(self._silences)))
        if silence.waited_s < _LONG_SILENCE_S:
            return 0
        failed, silence.requests = silence.requests, 0
        return failed

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        for leg in Leg:
            self._answered.pop((uid, leg), None)
            self._silences.pop((uid, leg), None)
