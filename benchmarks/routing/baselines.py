"""Ways to choose pods that others use, as policies of the `pd` strategy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.policy import Ranking, RankingRequest


class _Scored(ABC):
    """What most policies here have in common: all pods count, at their full price."""

    name = ""

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return all pods."""
        del request
        return pods, ""

    @abstractmethod
    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the score of each pod."""

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return what the two steps leave of decode pods."""
        left, note = self.narrow(pods, request)
        return Ranking(left, self.score(left, request), note)

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return the length of the prompt."""
        del uid
        return request.facts.prompt_tokens

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> None:
        """Return nothing: nobody reads it here."""
        del pods, request


class Anyone(_Scored):
    """Any pod, for either leg."""

    name = "random"

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the same for all; ties are broken at random."""
        del request
        return [0.0] * len(pods)


class FewestPrefills(_Scored):
    """The prefill pod with the fewest requests: this router's, and others' as last scraped."""

    name = "least-request"

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the prefill legs in flight."""
        return [_count_requests(Leg.PREFILL, pod.uid, request) for pod in pods]


class FewestDecodes(_Scored):
    """The decode pod with the fewest requests: this router's, and others' as last scraped."""

    name = "least-request"

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the requests that each decodes."""
        return [_count_requests(Leg.DECODE, pod.uid, request) for pod in pods]


class BetterOfTwoPrefills(_Scored):
    """Of two random prefill pods, the one with fewer prompt tokens in flight."""

    name = "power-of-two"

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return two random pods."""
        return request.state.random.sample(pods, min(2, len(pods))), ""

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the prompt tokens in flight."""
        ledger = request.state.ledger
        return [float(ledger.load(Leg.PREFILL, pod.uid).tokens) for pod in pods]


class BetterOfTwoDecodes(FewestDecodes):
    """Of two random decode pods, the one with fewer requests."""

    name = "power-of-two"

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return two random pods."""
        return request.state.random.sample(pods, min(2, len(pods))), ""


class SGLangCacheAware(_Scored):
    """The cache-aware policy of SGLang's router, with its defaults.

    The pod with the longest match, if it is long enough, else the one that has got the least to
    cache so far; but the one with the fewest requests while these are out of balance.
    """

    name = "sglang-cache-aware"
    _MATCH = 0.3
    """`--cache-threshold`: share of the prompt."""
    _SPREAD = 64
    """`--balance-abs-threshold`: requests."""
    _RATIO = 1.5
    """`--balance-rel-threshold`."""

    def __init__(self) -> None:
        self._cached: dict[str, int] = {}

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the requests in flight, the unmatched blocks or what was cached, by that rule."""
        ledger = request.state.ledger
        loads = [ledger.load(Leg.PREFILL, pod.uid).requests for pod in pods]
        if max(loads) - min(loads) > self._SPREAD and max(loads) > self._RATIO * min(loads):
            return [float(load) for load in loads]
        matches = [request.matches.get(pod.uid, 0) for pod in pods]
        if _share(request, max(matches)) > self._MATCH:
            return [float(-match) for match in matches]
        return [float(self._cached.get(pod.uid, 0)) for pod in pods]

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return what the pod has to compute; it is chosen, so that is what it will cache."""
        tokens = request.count_uncached(uid)
        self._cached[uid] = self._cached.get(uid, 0) + tokens
        return tokens


class MooncakeStyle(_Scored):
    """The least estimated time to first token, as in Mooncake's Conductor.

    Its model of the hardware is profiled beforehand and the same for all pods. What it can do and
    vLLM's pods cannot, fetching a prefix from another prefill pod, is left out: then its threshold
    only says which matches are worth counting.
    """

    name = "mooncake"
    _MATCH = 0.05
    """Share of the prompt below which a match is ignored."""

    def __init__(self, predict: Callable[[int, int], float]) -> None:
        """Set up the policy.

        Args:
            predict: gives the seconds for a prompt with so many tokens cached, and others not.
        """
        self._predict = predict

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the predicted seconds until the prompt is computed."""
        ledger = request.state.ledger
        total = request.facts.prompt_tokens
        scores = []
        for pod in pods:
            uncached = self.count_tokens(pod.uid, request)
            queued = ledger.load(Leg.PREFILL, pod.uid).tokens
            scores.append(self._predict(0, queued) + self._predict(total - uncached, uncached))
        return scores

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return what the pod would have to compute."""
        matched = request.matches.get(uid, 0)
        worth = _share(request, matched) >= self._MATCH
        return request.count_uncached(uid) if worth else request.facts.prompt_tokens


def _count_requests(leg: Leg, uid: str, request: RankingRequest) -> float:
    sample = request.state.samples.get(uid)
    others = 0.0 if sample is None else sample.others
    return request.state.ledger.load(leg, uid).requests + others


def _share(request: RankingRequest, blocks: int) -> float:
    """Return how much of the prompt the first so many blocks are, 0 to 1."""
    prefix = request.facts.prefix
    return prefix.ends[blocks - 1] / prefix.size if blocks else 0.0
