"""Memories of what workers hold for a while: it is all of theirs, and ends with its worker."""

from collections.abc import Iterable
from random import Random
from typing import ClassVar

from pdrouter.engines.split import Leg
from pdrouter.journal.journal import Journal
from pdrouter.journal.language import (
    LegHeld,
    LegLetGo,
    PlaceHeld,
    PlaceLetGo,
    TrialHeld,
    TrialLetGo,
)
from pdrouter.load.failures import EjectionRules, FailureMemory, Part, Trial
from pdrouter.load.ledger import Clock, Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.users.places import Places


class SharedLedger(Ledger):
    """A ledger that counts what all workers have in flight."""

    journal: ClassVar[Journal]
    held, let_go = LegHeld, LegLetGo
    __slots__ = ("_own", "_theirs")

    def __init__(self, rates: PrefillRates, clock: Clock) -> None:
        super().__init__(rates, clock)
        self._own: dict[Scope, LegHeld] = {}
        self._theirs: dict[int, dict[int, Scope]] = {}

    def start(
        self, leg: Leg, uid: str, tokens: int = 0, due: float | None = None, cached: int = 0
    ) -> Scope:
        """Count a leg; others know of a prefill leg at once, for they choose by it."""
        journal = self.journal
        at = journal.begin()
        try:
            scope = super().start(leg, uid, tokens, due, cached)
        finally:
            journal.at = None
        held = LegHeld(
            at=at,
            number=journal.number(),
            uid=uid,
            leg=leg,
            tokens=tokens,
            due=due,
            cached=cached,
        )
        self._own[scope] = held
        # What comes before it in the same turn goes with it.
        journal.note(held, at_once=leg is Leg.PREFILL)
        return scope

    def end(self, scope: Scope) -> None:
        """Take back what a scope has counted, whosever it is."""
        held = self._own.pop(scope, None)
        if held is None:
            super().end(scope)
            return
        journal = self.journal
        at = journal.begin()
        try:
            super().end(scope)
        finally:
            journal.at = None
        journal.note(
            LegLetGo(at=at, number=held.number, completed=scope.completed, cached=scope.cached)
        )

    def count_requests(self, uid: str) -> int:
        """Return the legs of any kind that all workers have in flight on a pod now.

        A look at an engine's metrics is compared with it: what is not counted yet would count as
        another router's.
        """
        self.journal.catch_up()
        return super().count_requests(uid)

    def take(self, worker: int, change: LegHeld, /) -> None:
        """Count a leg of another worker, unless it is counted."""
        theirs = self._theirs.setdefault(worker, {})
        if change.number not in theirs:
            theirs[change.number] = super().start(
                change.leg, change.uid, change.tokens, change.due, change.cached
            )

    def drop_one(self, worker: int, change: LegLetGo, /) -> None:
        """Count a leg of another worker no more, and learn from it."""
        scope = self._theirs.get(worker, {}).pop(change.number, None)
        if scope is not None:
            scope.completed, scope.cached = change.completed, change.cached
            scope.release()

    def drop(self, worker: int) -> None:
        """Count no leg of another worker any more."""
        for scope in self._theirs.pop(worker, {}).values():
            scope.release()

    def list_own(self) -> Iterable[LegHeld]:
        """Return the legs of this worker."""
        return self._own.values()


class _SharedTrial(Trial):
    """A trial of this worker, of which the others know."""

    __slots__ = ("_memory", "_trial")

    def __init__(self, trial: Trial, memory: "SharedFailures") -> None:
        super().__init__()
        self._trial = trial
        self._memory: SharedFailures | None = memory

    def release(self) -> None:
        """End it, however it went. Further calls change nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self._trial.release()
            memory.end_trial(self)


class SharedFailures(FailureMemory):
    """A memory of failures that knows the trials of all workers."""

    journal: ClassVar[Journal]
    held, let_go = TrialHeld, TrialLetGo

    def __init__(self, rules: EjectionRules, clock: Clock, random: Random) -> None:
        super().__init__(rules, clock, random)
        self._own: dict[Trial, TrialHeld] = {}
        self._theirs: dict[int, dict[int, Trial]] = {}

    def note_asked(self, part: Part, cause: str | None) -> bool:
        """Note what has become of a request of the router's own; who has sent it counts it."""
        counted = self.asked.copy()
        ejected = super().note_asked(part, cause)
        if self.journal.follows:
            self.asked = counted
        return ejected

    def start_trial(self, uid: str, leg: Leg) -> Trial:
        """Begin a request; if the pod is out, no worker tries it until this is released."""
        journal = self.journal
        journal.catch_up()
        trial = super().start_trial(uid, leg)
        if not trial.holds:
            return trial
        own = _SharedTrial(trial, self)
        held = TrialHeld(at=journal.clock(), number=journal.number(), uid=uid, leg=leg)
        self._own[own] = held
        journal.note(held, at_once=True)
        return own

    def end_trial(self, trial: Trial) -> None:
        """Tell that a trial of this worker has ended."""
        held = self._own.pop(trial)
        self.journal.note(TrialLetGo(at=self.journal.clock(), number=held.number), at_once=True)

    def take(self, worker: int, change: TrialHeld, /) -> None:
        """Take a trial of another worker, unless it is known."""
        theirs = self._theirs.setdefault(worker, {})
        if change.number not in theirs:
            theirs[change.number] = super().start_trial(change.uid, change.leg)

    def drop_one(self, worker: int, change: TrialLetGo, /) -> None:
        """End a trial of another worker."""
        trial = self._theirs.get(worker, {}).pop(change.number, None)
        if trial is not None:
            trial.release()

    def drop(self, worker: int) -> None:
        """End all trials of another worker."""
        for trial in self._theirs.pop(worker, {}).values():
            trial.release()

    def list_own(self) -> Iterable[TrialHeld]:
        """Return the trials of this worker."""
        return self._own.values()


class SharedPlaces(Places):
    """The places of the requests of all workers."""

    journal: ClassVar[Journal]
    held, let_go = PlaceHeld, PlaceLetGo

    def __init__(self) -> None:
        super().__init__()
        self._own: dict[tuple[str, str], PlaceHeld] = {}
        self._theirs: dict[int, set[tuple[str, str]]] = {}

    def hold(self, name: str, holder: str) -> None:
        """Give a place to a request of this worker; others know of it at once."""
        if self.has(name, holder):
            return
        super().hold(name, holder)
        held = PlaceHeld(at=self.journal.clock(), name=name, holder=holder)
        self._own[name, holder] = held
        self.journal.note(held, at_once=True)

    def free(self, name: str, holder: str) -> None:
        """Take a place of this worker back."""
        if self._own.pop((name, holder), None) is not None:
            super().free(name, holder)
            self.journal.note(PlaceLetGo(at=self.journal.clock(), name=name, holder=holder))

    def take(self, worker: int, change: PlaceHeld, /) -> None:
        """Take the place of a request of another worker."""
        self._theirs.setdefault(worker, set()).add((change.name, change.holder))
        super().hold(change.name, change.holder)

    def drop_one(self, worker: int, change: PlaceLetGo, /) -> None:
        """Take a place of another worker back."""
        self._theirs.get(worker, set()).discard((change.name, change.holder))
        super().free(change.name, change.holder)

    def drop(self, worker: int) -> None:
        """Take all places of another worker back."""
        for name, holder in self._theirs.pop(worker, set()):
            super().free(name, holder)

    def list_own(self) -> Iterable[PlaceHeld]:
        """Return the places of this worker."""
        return self._own.values()
