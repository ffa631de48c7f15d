"""What is counted of the legs that are in flight on pods."""

from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Protocol

import msgspec

from pdrouter.engines.split import Leg
from pdrouter.load.busy_shares import BusyShare
from pdrouter.load.drain_rates import DrainRate
from pdrouter.load.failure_records import NO_TRIAL, Trial


@dataclass(slots=True)
class LegLoad:
    """Legs of one kind that are in flight on one pod.

    Attributes:
        requests: how many there are; whole requests count as what Envoy sends.
        tokens: for prefill, prompt tokens that they have to compute; for decode, tokens that they
            need KV memory for at their end. Both as estimated.
    """

    requests: int = 0
    tokens: int = 0


@dataclass(slots=True)
class PodPace:
    """How a pod gets on with what it has to do.

    Attributes:
        requests: legs of any kind that it has.
        busy: which share of its time it has something.
        drain: how much it completes; counts nothing while this router has sent it nothing.
        learnt: when a prefill leg has last shown how fast it is.
    """

    requests: int = 0
    busy: BusyShare = field(default_factory=BusyShare)
    drain: DrainRate = field(default_factory=DrainRate)
    learnt: float = -inf

    def begin(self, now: float) -> None:
        """Note that the pod has something to do, and had nothing of this router's before."""
        self.busy.begin(now)
        if self.drain.since == inf:
            self.drain.since = now


class _Counting(Protocol):
    """Where a leg counts."""

    def end(self, scope: "Scope", /) -> None:
        """Count a leg no more."""


class Scope(msgspec.Struct, eq=False):
    """One leg that a ledger counts until it is released, exactly once.

    Attributes:
        ledger: counts it; None once it is released.
        leg: the leg.
        uid: the pod that it is on.
        tokens: what it costs there.
        due: when its request is due, on the clock of the ledger; None for no such time.
        cached: for prefill, tokens of the prompt before these, which the pod has cached.
        load: where it counts.
        pace: how its pod gets on, as far as that is remembered since.
        completed: tokens that it has computed; None if it was not carried out, or not seen to be.
        trial: keeps other requests from a pod that has failed, for as long.
    """

    ledger: _Counting | None
    leg: Leg
    uid: str
    tokens: int
    due: float | None
    cached: int
    load: LegLoad
    pace: PodPace
    completed: int | None = None
    trial: Trial = NO_TRIAL

    def complete(self, tokens: int | None = None) -> None:
        """Note that the leg was carried out; call it before the release.

        The time that a prefill leg took teaches how fast its pod is.

        Args:
            tokens: prompt tokens that were computed, if the engine has said so: the others were
                cached.
        """
        if tokens is None:
            self.completed = self.tokens
        else:
            self.completed = tokens
            self.cached = max(0, self.cached + self.tokens - tokens)

    def release(self) -> None:
        """Stop counting the leg. Further calls change nothing."""
        ledger, self.ledger = self.ledger, None
        if ledger is not None:
            try:
                ledger.end(self)
            finally:
                if self.trial is not NO_TRIAL:
                    self.trial.release()

    def __enter__(self) -> "Scope":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
