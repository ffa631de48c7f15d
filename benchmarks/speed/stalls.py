"""How long the router's event loop was held, as its own histogram tells."""

import math
import re
from collections.abc import Mapping
from typing import Self

LIMIT_S = 0.005
_BUCKET = re.compile(r'^(pdrouter_event_loop_(?:lag|stall)_seconds)_bucket\{le="([^"]+)"\} (\S+)$')


class Looks:
    """The router's looks at its event loop, from its start until now.

    Attributes:
        buckets: for each histogram, how many looks found at most so many seconds.
    """

    def __init__(self, buckets: Mapping[str, Mapping[float, float]]) -> None:
        self.buckets = buckets

    @classmethod
    def parse(cls, page: str) -> Self:
        """Read a metrics page of the router."""
        buckets: dict[str, dict[float, float]] = {}
        for line in page.splitlines():
            if found := _BUCKET.match(line):
                name, bound, count = found.groups()
                buckets.setdefault(name, {})[float(bound)] = float(count)
        return cls(buckets)

    def since(self, before: "Looks") -> dict[str, float]:
        """Return figures of what has happened after an earlier reading.

        For lags and stalls: how many were longer than 5 ms, in percent of the looks, and the upper
        bound of the longest in ms (of an endless bucket, its lower bound).
        """
        figures: dict[str, float] = {}
        for name, buckets in self.buckets.items():
            former = before.buckets.get(name, {})
            counts = {bound: count - former.get(bound, 0.0) for bound, count in buckets.items()}
            what = "lag" if "lag" in name else "stall"
            looks = counts[math.inf]
            late = looks - counts[LIMIT_S]
            figures[f"{what}s_above_5_ms_percent"] = 100.0 * late / looks if looks else 0.0
            figures[f"longest_{what}_ms"] = 1000.0 * _find_longest(counts)
        return figures


def _find_longest(counts: Mapping[float, float]) -> float:
    looks = counts[math.inf]
    if not looks:
        return 0.0
    reached = min(bound for bound, count in counts.items() if count == looks)
    return reached if reached < math.inf else max(each for each in counts if each < math.inf)
