"""What is counted of a pod that fails."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from pdrouter.engines.split import Leg

_WINDOW = 20
"""Requests that count as recent."""
_LEAST_SAMPLES = 10
_BAD_SHARE = 0.5
LEAST_SCRAPES = 2
"""Scrapes in a row that cannot connect before a pod is suspected."""


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
        since: since when it is ejected: what began before proves nothing.
        until: when it may be tried, by what it has failed.
        held: when it may be tried, by what it has asked for.
        trial: the trial that is under way.
        closed_at: when it was let in again.
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
    since: float = -math.inf
    until: float = -math.inf
    held: float = -math.inf
    trial: "Trial | None" = None
    closed_at: float = -math.inf
    before: int = 0

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


@dataclass(slots=True)
class Reach:
    """What scrapes say of whether a pod can be reached.

    Attributes:
        failures: scrapes in a row that could not connect.
        refuted: whether a leg has succeeded meanwhile: the metrics are somewhere else.
    """

    failures: int = 0
    refuted: bool = False

    @property
    def is_lost(self) -> bool:
        """Whether the pod seems to be out of reach."""
        return self.failures >= LEAST_SCRAPES and not self.refuted


class Trial:
    """A request on a pod that has failed; while there is one, the pod gets no other."""

    __slots__ = ("_record",)

    def __init__(self, record: Record | None = None) -> None:
        self._record = record
        if record is not None:
            record.trial = self

    def release(self) -> None:
        """End it, however it went. Further calls change nothing."""
        record, self._record = self._record, None
        if record is not None and record.trial is self:
            record.trial = None

    def __enter__(self) -> "Trial":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
