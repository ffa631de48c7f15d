"""What goes wrong and what clients do, drawn from a seed: the same seed is the same plan."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.transfer import FETCH_PATH

_DECK = 100
_WIDEST_SPACING = 5
"""Requests between two disturbances of a long run; of a short one there are fewer."""


class Kind(StrEnum):
    """What may go wrong."""

    PREFILL_FAULT = "fault of a prefill engine"
    DECODE_FAULT = "fault of a decode engine"
    TRANSFER_FAULT = "fault of a transfer"
    METRICS_FAULT = "fault of an engine's metrics"
    RECOVERY = "an engine is well again"
    IDLE_CLOSE = "idle connections are closed"
    CHURN = "pods come and go"
    ENGINE_RESTART = "an engine starts again"
    ENGINE_OUTAGE = "an engine is away"
    ROUTER_STOP = "a router is replaced"
    ROUTER_KILL = "a router is killed"
    ENVOY_RESTART = "Envoy starts again"


_CARDS: Mapping[Kind, int] = {
    Kind.PREFILL_FAULT: 25,
    Kind.DECODE_FAULT: 16,
    Kind.TRANSFER_FAULT: 5,
    Kind.METRICS_FAULT: 4,
    Kind.RECOVERY: 28,
    Kind.IDLE_CLOSE: 5,
    Kind.CHURN: 8,
    Kind.ENGINE_RESTART: 3,
    Kind.ENGINE_OUTAGE: 3,
    Kind.ROUTER_STOP: 1,
    Kind.ROUTER_KILL: 1,
    Kind.ENVOY_RESTART: 1,
}
"""How often each is in a hundred disturbances."""

PREFILL_FAULTS = (
    Fault(status=500),
    Fault(status=503, times=20),
    Fault(status=429, retry_after="1", times=5),
    Fault(status=400, times=3),
    Fault(status=404, times=3),
    Fault(drop=True, times=20),
    Fault(hang=True, times=4),
    Fault(slow_s=0.2),
    Fault(null_params=True, times=20),
    Fault(empty_blocks=True, times=10),
    Fault(omit_params=("remote_engine_id",), times=10),
)
DECODE_FAULTS = (
    Fault(status=500, times=10),
    Fault(status=429, retry_after="1", times=5),
    Fault(drop=True, times=5),
    Fault(hang=True, times=1),
    Fault(slow_s=0.2, times=20),
    Fault(drop_after_tokens=3, times=5),
)
TRANSFER_FAULTS = (
    Fault(path=FETCH_PATH, status=500, times=5),
    Fault(path=FETCH_PATH, drop=True, times=5),
    Fault(path=FETCH_PATH, slow_s=0.2, times=10),
)
METRICS_FAULTS = (
    Fault(path="/metrics", status=500, times=10),
    Fault(path="/metrics", drop=True, times=10),
    Fault(path="/metrics", hang=True, times=3),
)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that goes wrong.

    Attributes:
        kind: what.
        pick: decides which engine or pods, from 0 to 1.
        fault: what an engine does wrong; None if it is another kind.
    """

    kind: Kind
    pick: float
    fault: Fault | None = None


class Manner(StrEnum):
    """How a client behaves."""

    PLAIN = "plain"
    STREAM = "stream"
    SEVERAL = "several choices"
    """`n` of 2, which one pod serves whole."""
    LEAVE_EARLY = "leaves before the answer"
    LEAVE_LATE = "leaves in the answer"
    INVALID = "invalid"


_MANNERS: Mapping[Manner, int] = {
    Manner.PLAIN: 28,
    Manner.STREAM: 37,
    Manner.SEVERAL: 5,
    Manner.LEAVE_EARLY: 14,
    Manner.LEAVE_LATE: 10,
    Manner.INVALID: 6,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        number: its place, from 0.
        manner: how its client behaves.
        words: length of its prompt.
        tokens: length of its answer.
        patience: when a client leaves, from 0 to 1 of what it might wait for.
    """

    number: int
    manner: Manner
    words: int
    tokens: int
    patience: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run.

    Attributes:
        seed: what it was drawn from.
        asks: the requests, in order.
        disturbances: by the number of the request before which they come.
    """

    seed: int
    asks: Sequence[Ask]
    disturbances: Mapping[int, Disturbance]

    @property
    def fingerprint(self) -> str:
        """A word that is the same for the same plan."""
        told = repr((self.asks, sorted(self.disturbances.items())))
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def draw_plan(seed: int, requests: int) -> Plan:
    """Draw a run; from 100 requests on, each kind of disturbance occurs."""
    random = Random(f"asks {seed}")
    asks = tuple(_draw_ask(number, random) for number in range(requests))
    spacing = max(1, min(_WIDEST_SPACING, requests // _DECK))
    deck = _deal(Random(f"disturbances {seed}"))
    return Plan(seed, asks, {number: next(deck) for number in range(0, requests, spacing)})


def _draw_ask(number: int, random: Random) -> Ask:
    (manner,) = random.choices(tuple(_MANNERS), tuple(_MANNERS.values()))
    words, tokens = random.randint(1, 400), random.randint(4, 24)
    return Ask(number, manner, words, tokens, random.random())


def _deal(random: Random) -> Iterator[Disturbance]:
    """Give disturbances without end, each hundred with all kinds in an order of its own."""
    while True:
        cards = [kind for kind, count in _CARDS.items() for _ in range(count)]
        random.shuffle(cards)
        for kind in cards:
            yield Disturbance(kind, random.random(), _draw_fault(kind, random))


_FAULTS: Mapping[Kind, Sequence[Fault]] = {
    Kind.PREFILL_FAULT: PREFILL_FAULTS,
    Kind.DECODE_FAULT: DECODE_FAULTS,
    Kind.TRANSFER_FAULT: TRANSFER_FAULTS,
    Kind.METRICS_FAULT: METRICS_FAULTS,
}


def _draw_fault(kind: Kind, random: Random) -> Fault | None:
    faults = _FAULTS.get(kind)
    return None if faults is None else random.choice(faults)
