"""The ledger of work in flight on each pod, as far as this process has sent it there."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from pdrouter.engines.split import Leg
from pdrouter.load.legs_in_flight import LegLoad, PodPace, Scope
from pdrouter.load.prefill_queue import PrefillQueue
from pdrouter.load.prefill_rates import PrefillRates

Clock = Callable[[], float]
"""Gives the time in seconds; only differences count."""


_IDLE = LegLoad()
_PREFILL = Leg.PREFILL
"""Looked up once: in Python 3.11, to find a member of an enumeration takes longer than a call."""

_GREATEST_SURPRISE = 4.0
"""How many times longer than predicted all legs on a pod may take, for what is learnt from it.

A pause of the engine or the network must not make its pod look a hundred times slower, for then no
request would go there to show that it was over. A pod that is that slow is learnt in a few legs.
"""

_NEW_LEG = 0.02
"""Weight of a leg in the mean of all."""

_STILL_KNOWN_S = 60.0
"""Time for which what a completed leg has taught of a pod's speed is enough to refuse requests."""


class Ledger:
    """Counts work by leg and by the UID of its pod.

    Entries come with the first piece of work and go with the last, so that pods which are gone
    leave nothing behind, and an update of a pod changes nothing.

    Attributes:
        loads: work in flight by leg and UID; idle pods have none. Do not change it.
        on_end: called when a leg has ended; None while nobody waits for that.
    """

    __slots__ = (
        "_clock",
        "_loads",
        "_mean_work",
        "_others",
        "_paces",
        "_queues",
        "computed",
        "loads",
        "on_end",
        "rates",
    )

    def __init__(self, rates: PrefillRates | None = None, clock: Clock = time.monotonic) -> None:
        """Start with nothing in flight.

        Args:
            rates: learns from prefill legs that are completed.
            clock: gives the time.
        """
        self.rates = rates or PrefillRates()
        self._clock = clock
        self._loads: dict[Leg, dict[str, LegLoad]] = {leg: {} for leg in Leg}
        self.loads: Mapping[Leg, Mapping[str, LegLoad]] = self._loads
        self.on_end: Callable[[], None] | None = None
        self._queues: dict[str, PrefillQueue] = {}
        self._others: dict[str, float] = {}
        self._mean_work = 0.0
        self._paces: dict[str, PodPace] = {}
        self.computed: dict[str, float] = {}
        """Seconds of a usual pod's time that the completed prefill legs of each pod were."""

    def load(self, leg: Leg, uid: str) -> LegLoad:
        """Return the legs in flight on a pod. It is the ledger's own record: do not change it."""
        return self._loads[leg].get(uid, _IDLE)

    def count_requests(self, uid: str) -> int:
        """Return the legs of any kind that are in flight on a pod."""
        return sum(loads[uid].requests for loads in self._loads.values() if uid in loads)

    def snapshot(self) -> Mapping[str, Mapping[Leg, LegLoad]]:
        """Return a copy of all entries by UID; pods without work have none."""
        found: dict[str, dict[Leg, LegLoad]] = {}
        for leg, loads in self._loads.items():
            for uid, load in loads.copy().items():
                found.setdefault(uid, {})[leg] = replace(load)
        return found

    def describe(self, uid: str) -> dict[str, int]:
        """Return the work in flight on a pod, for people."""
        described: dict[str, int] = {}
        for leg in Leg:
            load = self.load(leg, uid)
            described |= {f"{leg}_requests": load.requests, f"{leg}_tokens": load.tokens}
        return described

    def forget(self, uid: str) -> None:
        """Forget how fast a pod was that is gone; what is in flight there still counts."""
        self.rates.forget(uid)
        self._others.pop(uid, None)
        self._paces.pop(uid, None)
        self.computed.pop(uid, None)

    def predict_prefill_wait(self, uid: str) -> float:
        """Return the seconds until a pod has done the prefill legs that it has, as predicted."""
        return self.predict_prefill(uid, 0.0)

    def predict_prefills(
        self, uids: Sequence[str], added: Iterable[float], others_weight: float = 1.0
    ) -> list[float]:
        """Return the seconds until each pod has done the prefill legs that it has, and one more.

        Args:
            uids: the pods.
            added: the work of the leg that is added to each, in the units of `PrefillRates`.
            others_weight: how much of what others have sent there is waited for.
        """
        now = self._clock()
        queues, factors, unit_s = self._queues, self.rates.speeds.factors, self.rates.unit_s
        others, each_other = self._others, others_weight * self._mean_work
        predicted = []
        for uid, own in zip(uids, added, strict=True):
            scale = unit_s * factors.get(uid, 1.0)
            work = own + each_other * others[uid] if uid in others else own
            queue = queues.get(uid)
            if queue is None:
                predicted.append(work * scale)
            else:
                # The first leg is under way. If it is overdue, it hangs, or the prediction was
                # wrong: the longer it is late, the longer it will take.
                left = abs(queue.first * scale - (now - queue.since))
                predicted.append(left + (queue.rest + work) * scale)
        return predicted

    def predict_prefill(self, uid: str, added: float, due: float | None = None) -> float:
        """Return the seconds until a pod has done the prefill legs that it has, and one more.

        Args:
            uid: the pod.
            added: the work of the leg, in the units of `PrefillRates`.
            due: when its request is due, if the pod takes first what is due first: of the legs of
                this router that wait there, only those that are due by then come before it.
        """
        scale = self.rates.unit_s * self.rates.speeds.factors.get(uid, 1.0)
        work = added + self._others.get(uid, 0.0) * self._mean_work
        queue = self._queues.get(uid)
        if queue is None:
            return work * scale
        left = abs(queue.first * scale - (self._clock() - queue.since))
        before = queue.rest if due is None else queue.count_due(due)
        return left + (before + work) * scale

    def knows(self, uid: str) -> bool:
        """Return whether a pod has completed a prefill leg of late, which showed how fast it is."""
        pace = self._paces.get(uid)
        return pace is not None and self._clock() - pace.learnt <= _STILL_KNOWN_S

    def count_prefill_backlog(self, uid: str) -> float:
        """Return the seconds of a usual pod's time that the prefill legs on a pod are."""
        queue = self._queues.get(uid)
        return 0.0 if queue is None else (queue.first + queue.rest) * self.rates.unit_s

    def measure_use(self, uids: Sequence[str]) -> float:
        """Return the share of some pods that have prefill legs, this router's or others'."""
        used = self._queues.keys() & uids
        if self._others:
            used |= self._others.keys() & uids
        return len(used) / len(uids)

    def note_others(self, uid: str, requests: float) -> None:
        """Take how many requests a pod has that this router has not sent, as last seen.

        A prefill pod takes as long for them as for as many of this router's.
        """
        pace = self._paces.get(uid)
        if pace is None and requests:
            pace = self._paces[uid] = PodPace()
        if pace is not None:
            pace.busy.note_others(self._clock(), busy=requests > 0)
        if requests:
            self._others[uid] = requests
        else:
            self._others.pop(uid, None)

    def drain_rate(self, uid: str) -> float | None:
        """Return the requests that a pod completes per second, of late; None if it is unknown.

        A prefill leg counts when it was carried out, other work when it is released.
        """
        pace = self._paces.get(uid)
        return None if pace is None else pace.drain.measure(self._clock())

    def measure_busy(self, uids: Sequence[str]) -> list[float]:
        """Return the share of its time, of late, in which each of these pods has had requests."""
        now, paces = self._clock(), self._paces
        return [paces[uid].busy.measure(now) if uid in paces else 0.0 for uid in uids]

    def start(
        self, leg: Leg, uid: str, tokens: int = 0, due: float | None = None, cached: int = 0
    ) -> Scope:
        """Count a leg: so many prompt tokens to compute, or so many that need KV memory.

        Args:
            leg: the leg.
            uid: the pod.
            tokens: what it costs there.
            due: when its request is due; None for no such time.
            cached: of a prefill leg, tokens of the prompt before those, which are cached there.
        """
        now = self._clock()
        pace = self._paces.get(uid)
        if pace is None:
            pace = self._paces[uid] = PodPace()
        if not pace.requests:
            pace.begin(now)
        pace.requests += 1
        loads = self._loads[leg]
        load = loads.get(uid)
        if load is None:
            load = loads[uid] = LegLoad()
        load.requests += 1
        load.tokens += tokens
        scope = Scope(self, leg, uid, tokens, due, cached, load, pace)
        if leg is _PREFILL:
            self._join_queue(scope, now)
        return scope

    def end(self, scope: Scope) -> None:
        """Take back what a scope has counted, and learn from it; only scopes call this."""
        pace, now = scope.pace, self._clock()
        try:
            if scope.leg is _PREFILL:
                self._leave_queue(scope, now)
            else:
                pace.drain.note(now)
        finally:
            pace.requests -= 1
            if not pace.requests:
                pace.busy.end(now)
            load = scope.load
            load.requests -= 1
            load.tokens -= scope.tokens
            if not load.requests:
                del self._loads[scope.leg][scope.uid]
            if self.on_end is not None:
                self.on_end()

    def _join_queue(self, scope: Scope, now: float) -> None:
        uid, rates = scope.uid, self.rates
        queue = self._queues.get(uid)
        work = rates.measure(scope.tokens, rates.find_shapes(uid), scope.cached)
        if queue is None:
            self._queues[uid] = PrefillQueue(now, scope, work)
        else:
            queue.add(scope, work)
        self._mean_work += (work - self._mean_work) * (_NEW_LEG if self._mean_work else 1.0)

    def _leave_queue(self, scope: Scope, now: float) -> None:
        uid, completed = scope.uid, scope.completed
        queue = self._queues[uid]
        # A pod that has been forgotten meanwhile is not known again.
        if completed is not None and self._paces.get(uid) is scope.pace:
            self._learn(scope, queue, completed, now - queue.since)
            scope.pace.drain.note(now)
            scope.pace.learnt = now
        was_first = queue.remove(scope)
        if not queue.work:
            del self._queues[uid]
        elif was_first or completed is not None:
            queue.since = now

    def _learn(self, scope: Scope, queue: PrefillQueue, computed: int, seconds: float) -> None:
        """Learn from a leg that ended so long after the one before.

        The pod worked on the legs of this router in turn, and all the while on those that this
        router has not sent: the time is shared out by what both are predicted to take.

        Args:
            scope: the leg.
            queue: its pod's queue, with the leg.
            computed: tokens that it has computed.
            seconds: how long that took, with others' work.
        """
        uid, rates = scope.uid, self.rates
        unit_s = rates.unit_s
        weight = rates.find_shapes(uid).weigh(computed, scope.cached)
        actual = rates.convert(weight)
        self.computed[uid] = self.computed.get(uid, 0.0) + actual * unit_s
        own = queue.first + queue.rest - queue.work[scope] + actual
        everything = own + self._others.get(uid, 0.0) * self._mean_work
        if computed > 0 and own > 0:
            predicted = everything * unit_s * rates.speeds.factors.get(uid, 1.0)
            seconds = min(seconds, _GREATEST_SURPRISE * predicted)
            rates.observe(uid, weight, seconds * own / everything)
