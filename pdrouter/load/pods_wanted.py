"""How many pods of each role the load wants, as a number that autoscalers can go by.

Each router tells what its own requests want, in fractions of a pod: the sum over all routers,
rounded up, is the number of pods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from threading import Lock
from typing import NamedTuple

from pdrouter.cluster.pods import RANK_MARK, Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import LegLoad
from pdrouter.load.samples import EngineSample

_CATCH_UP_S = 60.0
"""What waits is to be computed within that time, beside what arrives."""
_STEADY_S = 60.0
"""Chance evens out over about that time."""
_FALL_S = 300.0
"""What is wanted less falls about as slowly as engines take to start."""


class Group(NamedTuple):
    """Pods that are scaled together."""

    namespace: str
    model: str
    role: Role
    roleset: str


def want_prefill_pods(arriving: float, waiting_s: float, use: float) -> float:
    """Return how many pods prefill wants.

    A pod does a second of work in a second, and is to have time to spare: what comes to pods that
    are always busy waits without end.

    Args:
        arriving: seconds of work that arrive per second.
        waiting_s: seconds of work that are there.
        use: the share of its time in which a pod is to be busy.
    """
    return (max(0.0, arriving) + waiting_s / _CATCH_UP_S) / use


def want_decode_pods(
    pods: Sequence[tuple[LegLoad, EngineSample | None]], use: float
) -> float | None:
    """Return how many pods decode wants; None while no pod has said how much KV memory it has.

    A request in flight counts with what it needs at its end, so that what is still to be generated
    has its room. Where requests wait at an engine, it is full, whatever its memory: it would take
    as many pods more as it has such requests for those that run.

    Args:
        pods: for each, what this router has there, and what its engine says.
        use: the share of its KV memory that a pod is to use.
    """
    known = [
        sample.kv_capacity_tokens
        for _, sample in pods
        if sample is not None and sample.kv_capacity_tokens
    ]
    if not known:
        return None
    usual = sum(known) / len(known)
    wanted = 0.0
    for load, sample in pods:
        capacity = usual if sample is None else sample.kv_capacity_tokens or usual
        full = load.tokens / capacity
        if sample is not None and sample.waiting and sample.running:
            full = max(full, load.requests / sample.running)
        wanted += full
    return wanted / use


@dataclass(slots=True)
class Steadied:
    """A demand without what chance adds to it: it rises within a minute, and falls slowly.

    Attributes:
        mean: the mean of late.
        shown: the demand that is told.
    """

    mean: float = 0.0
    shown: float = 0.0

    def take(self, demand: float, seconds: float) -> float:
        """Return the demand that is told, after so many seconds in which it was this much."""
        self.mean += (demand - self.mean) * (1.0 - exp(-seconds / _STEADY_S))
        self.shown += (self.mean - self.shown) * (1.0 - exp(-seconds / _FALL_S))
        self.shown = max(self.shown, self.mean)
        return self.shown


@dataclass(slots=True)
class _History:
    """What is kept of a group from one look to the next.

    Attributes:
        demand: its demand.
        arrived: seconds of prefill work that had come to each of its pods by then.
    """

    demand: Steadied = field(default_factory=Steadied)
    arrived: dict[str, float] = field(default_factory=dict)


class PodsWanted:
    """Tells the demand of all groups whenever it is asked, by what came since it was last asked.

    Attributes:
        samples: what engines say of themselves, by UID.
    """

    def __init__(
        self,
        ledger: Ledger,
        samples: Mapping[str, EngineSample],
        prefill_use: float = 0.7,
        decode_use: float = 0.8,
    ) -> None:
        """Start with nothing seen.

        Args:
            ledger: work in flight.
            samples: what engines say of themselves, by UID.
            prefill_use: the share of its time in which a prefill pod is to be busy.
            decode_use: the share of its KV memory that a decode pod is to use.
        """
        self._ledger = ledger
        self.samples = samples
        self._uses = prefill_use, decode_use
        self._histories: dict[Group, _History] = {}
        self._looked: float | None = None
        self._lock = Lock()

    def look(self, pods: Iterable[Pod], now: float) -> dict[Group, float]:
        """Return the demand by group; one of which nothing is known is absent.

        Pages are made by several threads.

        Args:
            pods: all pods that are known.
            now: the time in seconds.
        """
        groups: dict[Group, list[str]] = {}
        for pod in pods:
            if pod.role in (Role.PREFILL, Role.DECODE, Role.BOTH) and not pod.refused:
                group = Group(pod.namespace, pod.model, pod.role, pod.roleset)
                groups.setdefault(group, []).append(pod.uid)
        with self._lock:
            seconds = 0.0 if self._looked is None else max(0.0, now - self._looked)
            self._looked = now
            former, self._histories = self._histories, {}
            told = {}
            for group, uids in groups.items():
                history = self._histories[group] = former.get(group) or _History()
                demand = self._measure(group.role, uids, history, seconds)
                if demand is not None:
                    # A rank is a pod to the router, but not to who scales.
                    ranks = len(uids) / len({uid.partition(RANK_MARK)[0] for uid in uids})
                    told[group] = history.demand.take(demand / ranks, seconds)
            return told

    def _measure(
        self, role: Role, uids: Sequence[str], history: _History, seconds: float
    ) -> float | None:
        """Return a group's demand now; None if it is not known."""
        ledger = self._ledger
        prefill_use, decode_use = self._uses
        if role is not Role.PREFILL:
            return want_decode_pods(
                [(ledger.load(Leg.DECODE, uid), self.samples.get(uid)) for uid in uids], decode_use
            )
        waiting = {uid: ledger.count_prefill_backlog(uid) for uid in uids}
        arrived = {uid: ledger.computed.get(uid, 0.0) + work for uid, work in waiting.items()}
        fresh = sum(work - history.arrived.get(uid, 0.0) for uid, work in arrived.items())
        history.arrived = arrived
        if not seconds or not any(uid in ledger.computed for uid in uids):
            return None
        return want_prefill_pods(fresh / seconds, sum(waiting.values()), prefill_use)
