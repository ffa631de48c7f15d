"""Which share of its time, of late, a pod has had something to do."""

from dataclasses import dataclass
from math import exp

_HORIZON_S = 10.0
"""About how far back counts what a pod has done."""


@dataclass(slots=True)
class BusyShare:
    """Follows when a pod has requests, and when it has none.

    Attributes:
        own: whether it has requests of this router's.
        others: whether it has others' requests, as last seen.
        since: since when it has any; None if it has none.
        share: the share, as it was when it last had none any more.
        at: when that was.
    """

    own: bool = False
    others: bool = False
    since: float | None = None
    share: float = 0.0
    at: float = 0.0

    def begin(self, now: float) -> None:
        """Note that the pod has requests of this router's from now on."""
        if self.since is None:
            self.since = now
        self.own = True

    def end(self, now: float) -> None:
        """Note that it has none of them any more."""
        self.own = False
        if not self.others:
            self._rest(now)

    def note_others(self, now: float, *, busy: bool) -> None:
        """Note whether it has requests that this router has not sent."""
        self.others = busy
        if busy and self.since is None:
            self.since = now
        elif not (busy or self.own) and self.since is not None:
            self._rest(now)

    def measure(self, now: float) -> float:
        """Return the share of its time, of late, in which the pod has had requests."""
        share = self.share * exp((self.at - now) / _HORIZON_S)
        if self.since is None:
            return share
        return share + (1.0 - exp((self.since - now) / _HORIZON_S))

    def _rest(self, now: float) -> None:
        self.share, self.at, self.since = self.measure(now), now, None
