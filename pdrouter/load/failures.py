"""What is remembered of pods that fail: who is left out for a while, and who is tried again.

A pod that refuses, or answers with an error at once, has an empty queue: whoever looks at the load
alone sends everything there. So failures are counted by pod and leg. After several in a row, or a
bad share of the recent ones, the pod is *ejected*: it gets no requests of this leg until a back-off
is over, then one at a time. The first that succeeds lets it in again; one that fails doubles the
back-off. Pure: time and randomness are passed in.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from random import Random

from pdrouter.engines.split import Leg
from pdrouter.load.failure_records import NO_TRIAL, EjectionRules, Part, Record, Trial, Trouble
from pdrouter.load.reach import Reaches
from pdrouter.load.silences import Silences

__all__ = ["CONNECT", "EjectionRules", "FailureMemory", "Part", "Trial", "Trouble", "Troubles"]

Clock = Callable[[], float]

_LEAST_JITTER = 0.8
CONNECT = "connect"
"""Cause of a failure: no connection was made."""
_UNREACHABLE = "unreachable"
_REFUSALS = frozenset({CONNECT, _UNREACHABLE})
_RECENT_S = 60.0
_MOST_PARTS = 4096
_MOST_SUBJECTS = 8


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
        self._reaches = Reaches()
        self._silences = Silences()
        self.asked: Counter[str] = Counter()
        """What has become of the router's own requests: `answered` or `failed`."""
        self.on_doubt: Callable[[], object] = lambda: None
        """Is called when somebody is to be asked at once."""

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
        if self._reaches.pods and self._reaches.refute(uid):
            self._note_reached(uid)
        if not self._records:
            return False
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
        path: str = "",
    ) -> bool:
        """Note a request that a pod has failed.

        If the pod is to be asked before a client's request tries it, the first failure raises a
        doubt: a pod that has answered nobody since the request began gets no other until then.

        Args:
            uid: the pod.
            leg: what it was to do.
            cause: what went wrong, in a word.
            began: when it was sent.
            model: the model or adapter for which it cannot; empty if it may be any.
            subject: what kind of request it was, if that may be why.
            path: what it was asked for, if that is to be asked again.

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
        record.path = path or record.path
        if record.ejected:
            if began >= record.since:
                # A trial has failed. What was under way before tells nothing new.
                self._eject(part, record, now)
            return False
        if (
            record.in_a_row >= self.rules.after
            or record.is_often_bad
            or (record.out and self._reaches.is_lost(uid))
        ):
            self._eject(part, record, now)
            return True
        asks = self.rules.asks_for(leg) and path and not (record.out or model)
        if asks and not self._silences.has_answered_since(uid, leg, began):
            self._suspect(part, record)
            self.on_doubt()
        return False

    def note_worthless(self, uid: str, leg: Leg, cause: str, began: float) -> bool:
        """Note that an answer which was just noted as a success is of no use: it was a failure."""
        record = self._records.get(Part(uid, leg, ""))
        if record is not None:
            if record.ejected:
                return False  # As a success it would have ended that: it began before, and is late.
            record.take_back()
        return self.note_failure(uid, leg, cause, began)

    def note_timeout(self, uid: str, leg: Leg, cause: str, began: float, *, path: str = "") -> bool:
        """Note a request without an answer, as a failure if the pod has answered nobody since.

        A pod that is busy with the requests before it is slow, not broken.
        """
        if self._silences.has_answered_since(uid, leg, began):
            return False
        return self.note_failure(uid, leg, cause, began, path=path)

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
        if not record.ejected:
            record.since = now
            record.level = max(record.level, 1)
        record.out, record.suspected, self._out[part] = True, False, record
        record.held = max(record.held, now + min(seconds, self.rules.longest_s))
        record.vouched, record.ask_at = False, record.held

    def note_scrape(self, uid: str, *, connected: bool) -> None:
        """Note whether a pod's metrics port took a connection.

        A pod that cannot be reached twice in a row gets one request at a time: the first that
        succeeds shows that it serves, whatever scrapes say. Nobody is ejected for scrapes alone.
        When a connection is made again, a pod that refused them is tried at once.
        """
        if connected:
            if self._reaches.forget(uid):
                self._note_reached(uid)
        elif self._reaches.note_failure(uid) and self.rules.after:
            for leg in Leg:
                part = Part(uid, leg, "")
                record = self._open(part)
                if not record.out:
                    self._suspect(part, record)
                    record.cause = record.cause or _UNREACHABLE

    def take_due(self) -> list[tuple[Part, str]]:
        """Return who is to be asked now, and for which path; empty for any.

        Each of them is to be reported with `note_asked`.
        """
        now = self.clock()
        due = [
            (part, record)
            for part, record in self._out.items()
            if record.trial is None and now >= record.ask_at and self.rules.asks_for(part.leg)
        ]
        for _, record in due:
            record.ask_at = math.inf
        return [(part, record.path) for part, record in due]

    def note_asked(self, part: Part, cause: str | None) -> bool:
        """Note what has become of a request of the router's own.

        A pod that answers may be tried by a client's request when its back-off is over; a doubt
        ends with it. One that does not is ejected, or asked again later.

        Args:
            part: who was asked.
            cause: what went wrong, in a word; empty if nothing did, None if nothing was asked.

        Returns:
            Whether the pod is ejected now, and was not before.
        """
        if cause is not None:
            self.asked["failed" if cause else "answered"] += 1
        record, now = self._out.get(part), self.clock()
        if record is None:
            return False
        if cause:
            record.cause, record.failed_at = cause, now
        if record.ejected:
            self._ask_later(record, now)
            record.vouched = cause == ""
            return False
        if cause:
            record.in_a_row += 1
            self._eject(part, record, now)
            return True
        if cause is not None:
            self._reaches.refute(part.uid)
        record.out = False
        del self._out[part]
        return False

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
        if not self._out:
            return False
        record = self._out.get(Part(uid, leg, ""))
        return record is not None and record.ejected and record.since > at

    def start_trial(self, uid: str, leg: Leg) -> Trial:
        """Begin a request; if the pod is out, nobody else tries it until this is released."""
        if not self._out:
            return NO_TRIAL
        record = self._out.get(Part(uid, leg, ""))
        return NO_TRIAL if record is None or record.trial is not None else Trial(record)

    def look(self, model: str) -> Troubles:
        """Return who gets no requests for a model now. What is due for a trial does."""
        now = self.clock()
        troubles: dict[Leg, dict[str, Trouble]] = {leg: {} for leg in Leg}
        for part, record in self._out.items():
            if part.model not in ("", model):
                continue
            waits = self.rules.asks_for(part.leg) and not record.vouched
            if not waits and record.trial is None and now >= self._due(part, record):
                continue
            found = troubles[part.leg]
            soonest = max(record.since + self.rules.backoff_s, record.held)
            patient = waits or record.trial is not None or now < soonest
            trouble = Trouble(record.in_a_row, record.level, patient, record.cause)
            other = found.get(part.uid)
            found[part.uid] = trouble if other is None else max(trouble, other)
        return troubles

    def list_ejected(self) -> set[str]:
        """Return the UIDs of the pods that have failed, and are left out of a leg or on trial."""
        return {part.uid for part, record in self._out.copy().items() if record.ejected}

    def is_left_out(self, uid: str) -> bool:
        """Return whether a pod is ejected, or suspected because scrapes cannot connect."""
        return any(Part(uid, leg, "") in self._out for leg in Leg)

    def describe(self, uid: str) -> list[dict[str, object]]:
        """Return what is remembered of a pod, for people; nothing if it has not failed."""
        now = self.clock()
        return [
            {"leg": part.leg, "model": part.model, **record.describe(now, self._due(part, record))}
            for part, record in self._records.copy().items()
            if part.uid == uid
        ]

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone, or whose engine has begun anew."""
        self._reaches.forget(uid)
        self._silences.forget(uid)
        for part in [part for part in self._records if part.uid == uid]:
            self._drop(part)

    def _due(self, part: Part, record: Record) -> float:
        """Return when a part may be tried: while it cannot be reached, as late as possible."""
        due = max(record.until, record.held)
        if record.ejected and not self.rules.asks_for(part.leg) and self._reaches.is_lost(part.uid):
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
        readmitted = record.ejected
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
        if not record.ejected and now - record.closed_at > rules.longest_s:
            record.level = 0
        record.level += 1
        wait = min(rules.longest_s, rules.backoff_s * 2.0 ** min(record.level - 1, 30))
        record.out, record.suspected, self._out[part] = True, False, record
        record.since, record.trial = now, None
        self._ask_later(record, now)
        record.until = now + wait * self._random.uniform(_LEAST_JITTER, 1.0)

    def _ask_later(self, record: Record, now: float) -> None:
        wait = self.rules.backoff_s * self._random.uniform(_LEAST_JITTER, 1.0)
        record.vouched, record.ask_at = False, now + wait

    def _suspect(self, part: Part, record: Record) -> None:
        """Take a pod out that has not failed so much as to be ejected, until more is known."""
        record.out = record.suspected = True
        self._out[part] = record
        record.since = record.until = -math.inf
        record.vouched, record.ask_at = False, -math.inf

    def _note_reached(self, uid: str) -> None:
        """Let a pod that can be reached be tried now, if that was what it lacked."""
        for part in (Part(uid, leg, "") for leg in Leg):
            record = self._out.get(part)
            if record is None:
                continue
            if record.suspected:
                record.out = False
                del self._out[part]
            elif record.cause in _REFUSALS:
                # What it has asked for still holds.
                record.until, record.ask_at = -math.inf, record.held
