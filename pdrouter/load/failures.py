"""What is remembered of pods that fail: who is left out for a while, and who is tried again.

A pod that refuses, or answers with an error at once, has an empty queue: whoever looks at the load
alone sends everything there. So failures are counted by pod and leg. After several in a row, or a
bad share of the recent ones, the pod is *ejected*: it gets no requests of this leg until a back-off
is over, then one at a time. The first that succeeds lets it in again; one that fails doubles the
back-off. Pure: time and randomness are passed in.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from pdrouter.engines.split import Leg
from pdrouter.load.failure_records import LEAST_SCRAPES, Part, Reach, Record, Trial
from pdrouter.load.silences import Silences

__all__ = ["CONNECT", "EjectionRules", "FailureMemory", "Trial", "Trouble", "Troubles"]

Clock = Callable[[], float]

_LEAST_JITTER = 0.8
CONNECT = "connect"
"""Cause of a failure: no connection was made."""
_UNREACHABLE = "unreachable"
_REFUSALS = frozenset({CONNECT, _UNREACHABLE})
_RECENT_S = 60.0
_MOST_PARTS = 4096
_MOST_SUBJECTS = 8


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """When pods are left out, and for how long.

    Attributes:
        after: failures in a row after which a pod is ejected; 0 for never.
        backoff_s: seconds until it is tried again.
        longest_s: seconds that the back-off may come to by doubling.
        share: share of a role's pods that may wait out a doubled back-off. If more have failed, the
            least bad of them are tried after the shortest one.
    """

    after: int = 3
    backoff_s: float = 30.0
    longest_s: float = 300.0
    share: float = 0.5


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


Troubles = Mapping[Leg, Mapping[str, Trouble]]
"""Who gets no requests now, by leg and UID; every leg is there."""


class FailureMemory:
    """Remembers failures by pod and leg. Nothing is kept of pods that have always succeeded."""

    def __init__(
        self,
        rules: EjectionRules | None = None,
        clock: Clock = time.monotonic,
        random: Random | None = None,
    ) -> None:
        """Start with nothing.

        Args:
            rules: when pods are left out.
            clock: gives the time in seconds.
            random: source of jitter.
        """
        self.rules = rules or EjectionRules()
        self.clock = clock
        self._random = random or Random()
        self._records: dict[Part, Record] = {}
        self._out: dict[Part, Record] = {}
        self._reach: dict[str, Reach] = {}
        self._silences = Silences()

    @property
    def calm(self) -> bool:
        """Whether nobody is left out."""
        return not self._out

    def note_success(self, uid: str, leg: Leg, began: float, model: str = "") -> bool:
        """Note a request that a pod has carried out, or refused for what it was.

        Args:
            uid: the pod.
            leg: what it has done.
            began: when it was sent.
            model: the model or adapter.

        Returns:
            Whether the pod is let in again.
        """
        now = self.clock()
        self._silences.note_answer(uid, leg, now)
        if not (self._records or self._reach):
            return False
        reach = self._reach.get(uid)
        if reach is not None and not reach.refuted:
            reach.refuted = True
            self._note_reached(uid)
        readmitted = False
        for part in {Part(uid, leg, ""), Part(uid, leg, model)} & self._records.keys():
            readmitted |= self._succeed(part, began, now)
        return readmitted

    def note_failure(
        self,
        uid: str,
        leg: Leg,
        cause: str,
        began: float,
        *,
        model: str = "",
        subject: Hashable = None,
    ) -> bool:
        """Note a request that a pod has failed.

        Args:
            uid: the pod.
            leg: what it was to do.
            cause: what went wrong, in a word.
            began: when it was sent.
            model: the model or adapter for which it cannot; empty if it may be any.
            subject: what kind of request it was, if that may be why.

        Returns:
            Whether the pod is ejected now, and was not before.
        """
        part, now = Part(uid, leg, model), self.clock()
        record = self._open(part)
        record.in_a_row += 1
        record.take(failed=True)
        record.cause, record.failed_at = cause, now
        if subject in record.subjects or len(record.subjects) < _MOST_SUBJECTS:
            record.subjects[subject] = now
        if not self.rules.after:
            return False
        if record.out:
            suspected = not record.level
            if began >= record.since or suspected:
                # A trial has failed. What was under way before tells nothing new.
                self._eject(part, record, now)
            return suspected
        if record.in_a_row >= self.rules.after or record.is_often_bad:
            self._eject(part, record, now)
            return True
        return False

    def note_worthless(self, uid: str, leg: Leg, cause: str, began: float) -> bool:
        """Note that an answer which was just noted as a success is of no use: it was a failure."""
        record = self._records.get(Part(uid, leg, ""))
        if record is not None:
            record.take_back()
        return self.note_failure(uid, leg, cause, began)

    def note_timeout(self, uid: str, leg: Leg, cause: str, began: float) -> bool:
        """Note a request without an answer, as a failure if the pod has answered nobody since.

        A pod that is busy with the requests before it is slow, not broken.
        """
        if self._silences.has_answered_since(uid, leg, began):
            return False
        return self.note_failure(uid, leg, cause, began)

    def note_silence(self, uid: str, leg: Leg, cause: str, began: float) -> bool:
        """Note a request that its client gave up before the pod had answered.

        One that is given up soon says nothing: clients are impatient, and pods may be busy. If the
        pod answers nobody else either, those that waited for it were failed.
        """
        failed = self._silences.note_given_up(uid, leg, began, self.clock())
        return any(self.note_failure(uid, leg, cause, began) for _ in range(failed))

    def hold(self, uid: str, leg: Leg, seconds: float) -> None:
        """Leave a pod out for as long as it has asked for, within the longest back-off."""
        if not self.rules.after or seconds <= 0:
            return
        part, now = Part(uid, leg, ""), self.clock()
        record = self._open(part)
        if not record.out or not record.level:
            record.since = now
            record.level = max(record.level, 1)
        record.out, self._out[part] = True, record
        record.held = max(record.held, now + min(seconds, self.rules.longest_s))

    def note_scrape(self, uid: str, *, connected: bool) -> None:
        """Note whether a pod's metrics port took a connection.

        A pod that cannot be reached twice in a row gets one request at a time: the first that
        succeeds shows that it serves, whatever scrapes say. Nobody is ejected for scrapes alone.
        When a connection is made again, a pod that refused them is tried at once.
        """
        if connected:
            if self._reach.pop(uid, None) is not None:
                self._note_reached(uid)
            return
        if len(self._reach) >= _MOST_PARTS:
            return
        reach = self._reach.setdefault(uid, Reach())
        reach.failures += 1
        if self.rules.after and reach.failures == LEAST_SCRAPES and reach.is_lost:
            for leg in Leg:
                part = Part(uid, leg, "")
                record = self._open(part)
                if not record.out:
                    record.out, self._out[part] = True, record
                    record.level, record.since, record.until = 0, -math.inf, -math.inf
                    record.cause = record.cause or _UNREACHABLE

    def forgive(self, uid: str, leg: Leg, subject: Hashable) -> None:
        """Forget a pod's failures if all of late were with this kind of request."""
        part = Part(uid, leg, "")
        if part in self._records and self.is_well_but_for(uid, leg, subject):
            self._drop(part)

    def is_well_but_for(self, uid: str, leg: Leg, subject: Hashable) -> bool:
        """Return whether a pod has failed nothing but this kind since its last success, or of late.

        Where all requests are of one kind, no success would ever end the memory of another failure.
        """
        record = self._records.get(Part(uid, leg, ""))
        since = self.clock() - _RECENT_S
        return record is None or record.has_failed_only(subject, since)

    def was_ejected_since(self, uid: str, leg: Leg, at: float) -> bool:
        """Return whether a pod is ejected that was not at a time."""
        record = self._out.get(Part(uid, leg, ""))
        return record is not None and bool(record.level) and record.since > at

    def start_trial(self, uid: str, leg: Leg) -> Trial:
        """Begin a request; if the pod is out, nobody else tries it until this is released."""
        if not self._out:
            return Trial()
        record = self._out.get(Part(uid, leg, ""))
        return Trial(record if record is not None and record.trial is None else None)

    def look(self, model: str) -> Troubles:
        """Return who gets no requests for a model now. What is due for a trial does."""
        now = self.clock()
        troubles: dict[Leg, dict[str, Trouble]] = {leg: {} for leg in Leg}
        for part, record in self._out.items():
            if part.model not in ("", model):
                continue
            if record.trial is None and now >= self._due(part, record):
                continue
            found = troubles[part.leg]
            soonest = max(record.since + self.rules.backoff_s, record.held)
            patient = record.trial is not None or now < soonest
            trouble = Trouble(record.in_a_row, record.level, patient, record.cause)
            other = found.get(part.uid)
            found[part.uid] = trouble if other is None else max(trouble, other)
        return troubles

    def list_ejected(self) -> set[str]:
        """Return the UIDs of the pods that have failed, and are left out of a leg or on trial."""
        return {part.uid for part, record in self._out.copy().items() if record.level}

    def is_left_out(self, uid: str) -> bool:
        """Return whether a pod is ejected, or suspected because scrapes cannot connect."""
        return any(Part(uid, leg, "") in self._out for leg in Leg)

    def describe(self, uid: str) -> list[dict[str, object]]:
        """Return what is remembered of a pod, for people; nothing if it has not failed."""
        now = self.clock()
        return [
            {
                "leg": part.leg,
                "model": part.model,
                "ejected": record.out and bool(record.level),
                "suspected": record.out and not record.level,
                "seconds_until_trial": round(max(0.0, self._due(part, record) - now), 3)
                if record.out
                else None,
                "on_trial": record.trial is not None,
                "failures_in_a_row": record.in_a_row,
                "recent_failures": f"{record.recent.bit_count()}/{record.seen}",
                "last_cause": record.cause,
                "seconds_since_failure": None
                if record.failed_at == -math.inf
                else round(now - record.failed_at, 3),
            }
            for part, record in self._records.copy().items()
            if part.uid == uid
        ]

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone, or whose engine has begun anew."""
        self._reach.pop(uid, None)
        self._silences.forget(uid)
        for part in [part for part in self._records if part.uid == uid]:
            self._drop(part)

    def _due(self, part: Part, record: Record) -> float:
        """Return when a part may be tried: while it cannot be reached, as late as possible."""
        reach, due = self._reach.get(part.uid), max(record.until, record.held)
        if record.level and reach is not None and reach.is_lost:
            return max(due, record.since + self.rules.longest_s)
        return due

    def _open(self, part: Part) -> Record:
        record = self._records.get(part)
        if record is None:
            if len(self._records) >= _MOST_PARTS:
                self._drop(next(iter(self._records)))
            record = self._records[part] = Record()
        return record

    def _drop(self, part: Part) -> None:
        del self._records[part]
        self._out.pop(part, None)

    def _succeed(self, part: Part, began: float, now: float) -> bool:
        record = self._records[part]
        if record.out and began < record.since:
            return False
        readmitted = record.out and bool(record.level)
        record.before, record.in_a_row = record.in_a_row, 0
        record.subjects.clear()
        record.take(failed=False)
        if record.out:
            del self._out[part]
            record.out, record.trial, record.held = False, None, -math.inf
            record.recent = record.seen = 0
            record.closed_at = now
        elif not record.recent and now - record.closed_at > self.rules.longest_s:
            self._drop(part)
        return readmitted

    def _eject(self, part: Part, record: Record, now: float) -> None:
        rules = self.rules
        if not record.out and now - record.closed_at > rules.longest_s:
            record.level = 0
        record.level += 1
        wait = min(rules.longest_s, rules.backoff_s * 2.0 ** min(record.level - 1, 30))
        record.out, self._out[part] = True, record
        record.since, record.trial = now, None
        record.until = now + wait * self._random.uniform(_LEAST_JITTER, 1.0)

    def _note_reached(self, uid: str) -> None:
        """Let a pod that can be reached be tried now, if that was what it lacked."""
        for part in (Part(uid, leg, "") for leg in Leg):
            record = self._out.get(part)
            if record is None:
                continue
            if not record.level:
                record.out = False
                del self._out[part]
            elif record.cause in _REFUSALS:
                record.until = -math.inf  # What it has asked for still holds.
