"""Which share of their time, of late, pods have had something to do."""

from dataclasses import dataclass
from math import exp

_HORIZON_S = 10.0
"""About how far back counts what a pod has done."""


@dataclass(slots=True)
class _Known:
    """What is known of one pod.

    Attributes:
        requests: how many of this router's requests it has.
        others: whether it has others' requests, as last seen.
        share: the share, as it was when it was looked at last.
        at: when that was.
    """

    requests: int = 0
    others: bool = False
    share: float = 0.0
    at: float = 0.0


class BusyShares:
    """Follows, by UID, when pods have requests, and when they have none."""

    __slots__ = ("_pods",)

    def __init__(self) -> None:
        self._pods: dict[str, _Known] = {}

    def begin(self, uid: str, now: float) -> None:
        """Note that a pod gets a request."""
        known = self._pods.get(uid)
        if known is None:
            known = self._pods[uid] = _Known(at=now)
        elif not known.requests:
            known.share, known.at = _find_share(known, now), now
        known.requests += 1

    def end(self, uid: str, now: float) -> None:
        """Note that a pod has done one."""
        known = self._pods.get(uid)
        if known is None:
            return  # Forgotten meanwhile.
        if known.requests == 1:
            known.share, known.at = _find_share(known, now), now
        if known.requests:
            known.requests -= 1

    def note_others(self, uid: str, now: float, *, busy: bool) -> None:
        """Note whether a pod has requests that this router has not sent."""
        known = self._pods.get(uid)
        if known is None:
            if not busy:
                return
            known = self._pods[uid] = _Known(at=now)
        if known.others is not busy:
            known.share, known.at = _find_share(known, now), now
            known.others = busy

    def measure(self, uid: str, now: float) -> float:
        """Return the share of a pod's time, of late, in which it has had requests."""
        known = self._pods.get(uid)
        return 0.0 if known is None else _find_share(known, now)

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self._pods.pop(uid, None)


def _find_share(known: _Known, now: float) -> float:
    kept = exp((known.at - now) / _HORIZON_S)
    return known.share * kept + (1.0 - kept if known.requests or known.others else 0.0)
