"""What scores are made of: kept as it was, and put into words only when somebody asks."""

from collections.abc import Mapping, Sequence

import msgspec

from pdrouter.load.prefill_rates import PrefillCurve
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import RankingRequest, count_computed


class PrefillParts(msgspec.Struct, frozen=True):
    """What prefill pods would have had to do for a request.

    Attributes:
        facts: the request.
        matches: how many blocks of its prompt each pod had cached, by UID; 0 where absent.
        curve: how fast pods were.
        compute_weight: how many times a second of computing counts in scores that are seconds;
            None for other scores.
        homes: the home pods of this router; empty where that makes no difference.
        away_factor: how many times as much others' home pods cost.
    """

    facts: RoutingFacts
    matches: Mapping[str, int]
    curve: PrefillCurve
    compute_weight: float | None = None
    homes: frozenset[str] = frozenset()
    away_factor: float = 1.0

    @classmethod
    def of(
        cls,
        request: RankingRequest,
        compute_weight: float | None = None,
        homes: frozenset[str] = frozenset(),
        away_factor: float = 1.0,
    ) -> "PrefillParts":
        """Return what is known now."""
        curve = request.state.ledger.rates.freeze()
        return cls(request.facts, request.matches, curve, compute_weight, homes, away_factor)

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return the parts of a pod's score, their units in their names."""
        del index
        computed = count_computed(self.facts, self.matches.get(uid, 0))
        cached = self.facts.prompt_tokens - computed
        compute_s = self.curve.predict(uid, computed, cached)
        parts: dict[str, float] = {
            "cached_tokens": cached,
            "computed_tokens": computed,
            "compute_s": round(compute_s, 6),
            "tokens_per_s": round(computed / compute_s, 1),
            "speed_factor": round(self.curve.factors.get(uid, 1.0), 3),
        }
        padded = self.curve.count_padded(uid, computed)
        if padded is not None:
            parts["padded_tokens"] = padded
        if self.compute_weight is not None:
            away = self.away_factor if self.homes and uid not in self.homes else 1.0
            parts["wait_s"] = round(max(0.0, score / away - self.compute_weight * compute_s), 6)
            parts["compute_weight"] = round(self.compute_weight, 3)
            parts["away_factor"] = away
        return parts


class DecodeParts(msgspec.Struct, frozen=True):
    """How full and how busy decode pods would have been with a request.

    Attributes:
        usages: the share of KV memory that each would have used, in the order of the candidates.
    """

    usages: Sequence[float]

    def describe(self, index: int, uid: str, score: float) -> dict[str, float]:
        """Return the parts of a pod's score, their units in their names."""
        del uid
        usage = self.usages[index]
        return {
            "requests": round((score - usage) / (1.0 + usage), 3),
            "kv_usage_share": round(usage, 6),
        }
