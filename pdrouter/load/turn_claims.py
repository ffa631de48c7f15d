"""Who is next in the queues of each worker, so that none gives turns past those of another."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pdrouter.bounded import make_room

FRESH_S = 0.25
"""How long a claim holds: workers say again what is still true, and one that hangs does not."""
MOST_WAYS = 4096
"""Ways on which somebody may wait, of all models."""


class Claim(NamedTuple):
    """The request that is next in a worker's queue.

    Attributes:
        line: its line.
        due: when it is due.
        tokens: the counter of its user.
        at: when its worker has said so.
    """

    line: str
    due: float
    tokens: float
    at: float


class TurnClaims:
    """What is next in each worker's queue, by what that has to have room on."""

    __slots__ = ("_claims", "_clock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with none.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._claims: dict[str, dict[str, Claim]] = {}

    def put(self, way: str, worker: str, line: str, due: float, tokens: float) -> None:
        """Say what is next in a worker's queue."""
        claims = self._claims.get(way)
        if claims is None:
            make_room(self._claims, way, MOST_WAYS)
            claims = self._claims[way] = {}
        now = self._clock()
        for other in [each for each, claim in claims.items() if claim.at < now - FRESH_S]:
            del claims[other]
        claims[worker] = Claim(line, due, tokens, now)

    def drop(self, way: str, worker: str) -> None:
        """Say that nothing waits in a worker's queue any more."""
        self._claims.get(way, {}).pop(worker, None)

    def list_others(self, way: str, worker: str) -> Iterator[Claim]:
        """Yield what is next in the queues of other workers."""
        claims = self._claims.get(way)
        if claims:
            oldest = self._clock() - FRESH_S
            for other, claim in claims.items():
                if other != worker and claim.at >= oldest:
                    yield claim
