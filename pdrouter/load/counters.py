"""What becomes of an engine's counters between two looks at them."""

from dataclasses import dataclass
from math import exp

from pdrouter.load.whole_serving import HORIZON_S

_SHORTEST_SPAN_S = 0.2
"""With fewer steps of the engine between two readings, a rate says more about their timing."""
_HISTORY = 50.0
"""What an engine's tokens before the first look count as, at most."""


@dataclass(slots=True)
class TokenCounter:
    """Makes a rate of the engine's count of generated tokens."""

    _at: float = 0.0
    _tokens: float | None = None
    _per_s: float | None = None

    def read(self, at: float, tokens: float | None) -> float | None:
        """Return the tokens per second since the reading before; None if there is none.

        A count that has become smaller is that of an engine that has started again.
        """
        if self._tokens is None or tokens is None or tokens < self._tokens:
            self._at, self._tokens, self._per_s = at, tokens, None
        elif at - self._at >= _SHORTEST_SPAN_S:
            self._per_s = (tokens - self._tokens) / (at - self._at)
            self._at, self._tokens = at, tokens
        return self._per_s


@dataclass(slots=True)
class GapMeter:
    """Makes a mean time between tokens, of late, of the engine's histogram of them."""

    _at: float = 0.0
    _total: tuple[float, float] | None = None
    _seconds: float = 0.0
    _gaps: float = 0.0

    def read(self, at: float, seconds: float | None, gaps: float | None) -> float | None:
        """Return the mean; None as long as there was no second token.

        Args:
            at: when the page was read.
            seconds: sum over all gaps since the engine's start; None if it does not say.
            gaps: how many there were.
        """
        if seconds is None or gaps is None:
            return None
        if self._total is None or gaps < self._total[1]:
            share = min(1.0, _HISTORY / gaps) if gaps else 0.0
            self._seconds, self._gaps = seconds * share, gaps * share
        elif gaps > self._total[1]:
            kept = exp((self._at - at) / HORIZON_S)
            self._seconds = self._seconds * kept + max(0.0, seconds - self._total[0])
            self._gaps = self._gaps * kept + gaps - self._total[1]
        else:
            return self._mean  # An engine that generates nothing is as fast as it was.
        self._at, self._total = at, (seconds, gaps)
        return self._mean

    @property
    def _mean(self) -> float | None:
        return self._seconds / self._gaps if self._gaps else None
