"""What is counted of a pod that fails."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from pdrouter.engines.split import Leg

_WINDOW = 20
"""Requests that count as recent."""
_LEAST_SAMPLES = 10
_BAD_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """When pods are left out, and for how long.

    Attributes:
        after: failures in a row after which a pod is ejected; 0 for never.
        backoff_s: seconds until it is tried again.
        longest_s: seconds that the back-off may come to by doubling.
        share: share of a role's pods that may wait out a doubled back-off. If more have failed, the
            least bad of them are tried after the shortest one.
        asks: whether a pod that is out for what Envoy sends is asked by the router itself before a
            client's request tries it. A side leg that fails is tried elsewhere.
    """

    after: int = 3
    backoff_s: float = 30.0
    longest_s: float = 300.0
    share: float = 0.5
    asks: bool = True

    def asks_for(self, leg: Leg) -> bool:
        """Return whether pods that are out for a leg are asked."""
        return self.asks and leg is Leg.DECODE


class Trouble(NamedTuple):
    """Why a pod gets no requests of a leg now; the least one is the least bad.

    Attributes:
        in_a_row: failures since the last success.
        level: how often the back-off has grown.
        patient: whether the shortest back-off is not over either.
        reason: what has happened, for people.
    """

    in_a_row: int
    level: int
    patient: bool
    reason: str

    @property
    def badness(self) -> tuple[int, int]:
        """What is compared."""
        return self.in_a_row, self.level


class Part(NamedTuple):
    """What is counted by itself.

    Attributes:
        uid: the pod.
        leg: what it was to do.
        model: the model or adapter for which it cannot; empty for all.
    """

    uid: str
    leg: Leg
    model: str


@dataclass(slots=True)
class Record:
    """What is remembered of a part that has failed, or is suspected.

    Attributes:
        in_a_row: failures since the last success.
        recent: the recent requests, a bit each, set for a failure.
        seen: how many bits that are.
        subjects: what the requests were that have failed since the last success, and when each of
            them did last.
        cause: the last failure, for people.
        failed_at: when that was.
        level: how often the back-off has grown.
        out: whether it is ejected or suspected.
        suspected: which of both: whether it has not failed so much as to be ejected.
        since: since when it is ejected: what began before proves nothing.
        until: when it may be tried, by what it has failed.
        held: when it may be tried, by what it has asked for.
        trial: the trial that is under way.
        closed_at: when it was let in again.
        vouched: whether it has answered when it was asked last.
        ask_at: when it is to be asked.
        path: for what it was asked when it failed.
        before: failures in a row before the last success.
    """

    in_a_row: int = 0
    recent: int = 0
    seen: int = 0
    subjects: dict[Hashable, float] = field(default_factory=dict)
    cause: str = ""
    failed_at: float = -math.inf
    level: int = 0
    out: bool = False
    suspected: bool = False
    since: float = -math.inf
    until: float = -math.inf
    held: float = -math.inf
    trial: "Trial | None" = None
    closed_at: float = -math.inf
    vouched: bool = False
    ask_at: float = math.inf
    path: str = ""
    before: int = 0

    @property
    def ejected(self) -> bool:
        """Whether it is out for its failures, or for what it has asked for."""
        return self.out and not self.suspected

    def has_failed_only(self, subject: Hashable, since: float) -> bool:
        """Return whether all that has failed since a time, and since the last success, is this."""
        return all(other == subject or at < since for other, at in self.subjects.items())

    def take(self, *, failed: bool) -> None:
        """Count a request as recent."""
        self.recent = (self.recent << 1 | failed) & ((1 << _WINDOW) - 1)
        self.seen = min(self.seen + 1, _WINDOW)

    def take_back(self) -> None:
        """Forget the last success: it was none."""
        self.in_a_row = self.before
        self.recent >>= 1
        self.seen = max(0, self.seen - 1)

    @property
    def is_often_bad(self) -> bool:
        """Whether too many of the recent requests have failed."""
        return self.seen >= _LEAST_SAMPLES and self.recent.bit_count() >= _BAD_SHARE * self.seen

    def describe(self, now: float, due: float) -> dict[str, object]:
        """Return it for people.

        Args:
            now: the time.
            due: when it may be tried.
        """
        return {
            "ejected": self.ejected,
            "suspected": self.out and self.suspected,
            "seconds_until_trial": round(max(0.0, due - now), 3) if self.out else None,
            "on_trial": self.trial is not None,
            "failures_in_a_row": self.in_a_row,
            "recent_failures": f"{self.recent.bit_count()}/{self.seen}",
            "last_cause": self.cause,
            "seconds_since_failure": None
            if self.failed_at == -math.inf
            else round(now - self.failed_at, 3),
        }


class Trial:
    """A request on a pod that has failed; while there is one, the pod gets no other."""

    __slots__ = ("_record",)

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        if record is not None:
            record.trial = self

    @property
    def holds(self) -> bool:
        """Whether it keeps others from its pod."""
        return self._record is not None

    def release(self) -> None:
        """End it, however it went. Further calls change nothing."""
        record, self._record = self._record, None
        if record is not None and record.trial is self:
            record.trial = None


NO_TRIAL = Trial()
"""A request that keeps nobody from its pod."""
