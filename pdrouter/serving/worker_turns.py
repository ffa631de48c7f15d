"""Keeps the turns that several workers give in one order."""

from secrets import token_hex

from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.token_weights import TokenWeights
from pdrouter.load.turn_claims import TurnClaims
from pdrouter.serving.model_queue import ModelQueue, Next, Way

_SLACK_S = 0.05
"""A worker comes to what another has done with its next look: until then, who is next there must
not keep pods from work."""
_SAMPLE_TOKENS = 1000


class WorkerTurns:
    """Tells other workers who is next here, and asks who is next there.

    A worker learns at once when its own legs have ended, and of those of others a little later.
    Without this, one that has legs in flight would give all turns to its own requests.
    """

    def __init__(self, claims: TurnClaims, rates: PrefillRates, weights: TokenWeights) -> None:
        """Begin with nobody.

        Args:
            claims: what all workers say.
            rates: how fast pods are.
            weights: what tokens count.
        """
        self._claims = claims
        self._rates = rates
        self._weights = weights
        self._worker = token_hex(8)
        self._told: dict[str, set[Way]] = {}

    def tell(self, queue: ModelQueue) -> None:
        """Say who is next in a queue."""
        before, self._told[queue.key] = self._told.get(queue.key, set()), set(queue.ways)
        for way in self._told[queue.key]:
            found = queue.find_next((way,))
            if found is not None:
                place, line = found
                tokens = line.read(place.user)
                self._claims.put(_write(way), self._worker, line.name, place.due, tokens)
        for way in before - self._told[queue.key]:
            self._claims.drop(_write(way), self._worker)

    def are_waiting(self, way: Way) -> bool:
        """Return whether requests wait at other workers that need the same room."""
        return any(self._claims.list_others(_write(way), self._worker))

    def goes_first(self, found: Next, pods: int) -> bool:
        """Return whether the next request here is not behind the next ones of other workers.

        Args:
            found: the next one here.
            pods: how many pods there are for it.
        """
        place, line = found
        if not isinstance(place.way, Way):
            return True
        tokens = line.read(place.user) - pods * self._count_slack()
        return not any(
            claim.tokens < tokens if claim.line == line.name else claim.due < place.due - _SLACK_S
            for claim in self._claims.list_others(_write(place.way), self._worker)
        )

    def _count_slack(self) -> float:
        """Return the weighted tokens that a pod is served until another worker looks."""
        rates = self._rates
        seconds = rates.measure(_SAMPLE_TOKENS, rates.default) * rates.unit_s
        tokens = _SAMPLE_TOKENS * _SLACK_S / seconds
        return self._weights.weigh(tokens, tokens)


def _write(way: Way) -> str:
    return f"{way.leg} {way.name}"
