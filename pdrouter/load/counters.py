"""What becomes of an engine's counters between two looks at them."""

from dataclasses import dataclass, field
from math import exp

from pdrouter.engines.reading import RequestTotals
from pdrouter.load.samples import RequestMeans
from pdrouter.load.whole_serving import HORIZON_S

_SHORTEST_SPAN_S = 0.2
"""With fewer steps of the engine between two readings, a rate says more about their timing."""
_HISTORY = 50.0
"""What an engine's tokens, or requests, before the first look count as, at most."""
_UNSAID = (None, None)


@dataclass(slots=True)
class TokenCounter:
    """Makes a rate of an engine's count of tokens."""

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
class MeanMeter:
    """Makes a mean, of late, of an engine's histogram: of times between tokens, for example."""

    _at: float = 0.0
    _total: tuple[float, float] | None = None
    _sum: float = 0.0
    _count: float = 0.0

    def read(self, at: float, total: float | None, count: float | None) -> float | None:
        """Return the mean; None as long as nothing was counted.

        Args:
            at: when the page was read.
            total: sum over all that was counted since the engine's start; None if it does not say.
            count: how many there were.
        """
        if total is None or count is None:
            return None
        if self._total is None or count < self._total[1]:
            share = min(1.0, _HISTORY / count) if count else 0.0
            self._sum, self._count = total * share, count * share
        elif count > self._total[1]:
            kept = exp((self._at - at) / HORIZON_S)
            self._sum = self._sum * kept + max(0.0, total - self._total[0])
            self._count = self._count * kept + count - self._total[1]
        else:
            return self._mean  # An engine that does nothing is as fast as it was.
        self._at, self._total = at, (total, count)
        return self._mean

    @property
    def _mean(self) -> float | None:
        return self._sum / self._count if self._count else None


@dataclass(slots=True)
class RequestMeter:
    """Makes means, of late, of what an engine's requests have taken since its start."""

    _queue: MeanMeter = field(default_factory=MeanMeter)
    _prefill: MeanMeter = field(default_factory=MeanMeter)
    _decode: MeanMeter = field(default_factory=MeanMeter)
    _prompt: MeanMeter = field(default_factory=MeanMeter)
    _output: MeanMeter = field(default_factory=MeanMeter)

    def read(self, at: float, totals: RequestTotals | None) -> RequestMeans | None:
        """Return the means; None if the engine says nothing of its requests.

        Args:
            at: when the page was read.
            totals: what it says.
        """
        if totals is None:
            return None
        return RequestMeans(
            self._queue.read(at, *(totals.queue or _UNSAID)),
            self._prefill.read(at, *(totals.prefill or _UNSAID)),
            self._decode.read(at, *(totals.decode or _UNSAID)),
            self._prompt.read(at, *(totals.prompt or _UNSAID)),
            self._output.read(at, *(totals.output or _UNSAID)),
        )
