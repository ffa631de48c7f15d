"""How long tokens were waited for: a histogram, for there are millions."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import exp, log

_BINS_PER_E = 50.0
"""Bins for each factor of e: a quantile is off by 1% at the most."""


@dataclass(slots=True)
class TokenGaps:
    """Times from one token of a request to its next.

    Attributes:
        counts: tokens in each bin.
        seconds: sum of all times.
        tokens: how many there were.
    """

    counts: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: float = 0.0

    def note(self, seconds: float, tokens: float) -> None:
        """Count tokens that came so long after those before them."""
        at = round(log(max(seconds, 1e-9)) * _BINS_PER_E)
        self.counts[at] = self.counts.get(at, 0.0) + tokens
        self.seconds += seconds * tokens
        self.tokens += tokens

    @classmethod
    def join(cls, several: Iterable["TokenGaps"]) -> "TokenGaps":
        """Return all of them together."""
        joined = cls()
        for gaps in several:
            joined.seconds += gaps.seconds
            joined.tokens += gaps.tokens
            for at, tokens in gaps.counts.items():
                joined.counts[at] = joined.counts.get(at, 0.0) + tokens
        return joined

    def find_quantile(self, share: float) -> float:
        """Return the seconds that so large a share of tokens did not exceed; 0 without any."""
        left = share * sum(self.counts.values())
        at = None
        for at in sorted(self.counts):
            left -= self.counts[at]
            if left <= 0:
                break
        return 0.0 if at is None else exp(at / _BINS_PER_E)
