"""aibrix's policies for decode pods: `load_balancing`, `least_request` and `conductor`."""

import math
from collections.abc import Callable, Sequence

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.policy import PolicyOptions, Ranking, RankingRequest

_LEAST_DRAIN_RATE = 0.1
_USUAL_TOKEN_MS = 20.0
"""Time between two tokens for `conductor`, where a pod's throughput is not known."""
_FEW_FREE_PERCENT = 10.0
_FULL_PENALTY = 1.5


class DecodeCondition(msgspec.Struct, frozen=True):
    """How a decode pod is.

    Attributes:
        requests: requests that this router has there.
        throughput: tokens generated per second; None if it is not known.
        free: free KV memory in percent, rounded, and 0.1 where nothing is left; 100 if it is not
            known.
    """

    requests: int
    throughput: float | None
    free: float

    @classmethod
    def observe(cls, uid: str, request: RankingRequest) -> "DecodeCondition":
        """Return the condition of a pod; a number that is none counts as not known."""
        sample = request.state.samples.get(uid)
        throughput = None if sample is None else sample.generated_tokens_per_s
        usage = None if sample is None else sample.kv_usage
        if throughput is not None and not 0 <= throughput < math.inf:
            throughput = None
        if usage is None or not math.isfinite(usage):
            usage = 0.0
        return cls(
            request.state.ledger.load(Leg.DECODE, uid).requests,
            throughput,
            max(0.1, math.floor(100.5 - 100.0 * usage)),
        )


Formula = Callable[[Sequence[DecodeCondition], PolicyOptions], list[float]]
"""Scores pods by their condition."""


class AibrixDecode:
    """Scores decode pods by a formula of aibrix's, behind aibrix's three rules against imbalance.

    The first rule that applies takes one pod, whatever the formula says.
    """

    def __init__(self, name: str, formula: Formula, options: PolicyOptions) -> None:
        """Set up a policy.

        Args:
            name: its name in settings.
            formula: how it scores.
            options: thresholds and weights.
        """
        self.name = name
        self._formula = formula
        self._options = options

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return the one pod that a rule takes, or all of them with what the formula says."""
        conditions = [DecodeCondition.observe(pod.uid, request) for pod in pods]
        note = ""
        found, virtue = self._find_by_rules(pods, conditions, request)
        if found:
            index = request.state.random.choice(found)
            pods, conditions = [pods[index]], [conditions[index]]
            note = f"{self.name}: decode pods differ, one with {virtue} it is"
        return Ranking(pods, self._formula(conditions, self._options), note)

    def _find_by_rules(
        self, pods: Sequence[Pod], conditions: Sequence[DecodeCondition], request: RankingRequest
    ) -> tuple[Sequence[int], str]:
        """Return whom the first rule that applies would take, and for what."""
        options = self._options
        found = find_fewest_requests(conditions, options.decode_imbalance_spread)
        if found:
            return found, "the fewest requests"
        found = find_lowest_throughput(conditions, options.decode_throughput_spread)
        if found:
            return found, "the lowest throughput"
        drain_rates = [request.state.ledger.drain_rate(pod.uid) for pod in pods]
        found = find_soonest_drained(conditions, drain_rates, options.decode_score_ratio)
        return found, "the fewest requests for the rate at which it completes them"


def find_fewest_requests(conditions: Sequence[DecodeCondition], spread: float) -> list[int]:
    """Return who has the fewest requests if the spread reaches a threshold; nobody otherwise."""
    counts = [condition.requests for condition in conditions]
    if max(counts) - min(counts) < spread:
        return []
    return _find_all(counts, min(counts))


def find_lowest_throughput(conditions: Sequence[DecodeCondition], spread: float) -> list[int]:
    """Return who generates least if the spread is above a threshold; nobody otherwise.

    A pod that generates least although it has more requests than the one that generates most is
    slow, not idle: aibrix sends it more, this does not.
    """
    known = {
        index: condition.throughput
        for index, condition in enumerate(conditions)
        if condition.throughput is not None
    }
    if not known or max(known.values()) - min(known.values()) <= spread:
        return []
    lowest, highest = min(known.values()), max(known.values())
    most = min(conditions[index].requests for index, value in known.items() if value == highest)
    return [
        index
        for index, value in known.items()
        if value == lowest and conditions[index].requests <= most
    ]


def find_soonest_drained(
    conditions: Sequence[DecodeCondition], drain_rates: Sequence[float | None], ratio: float
) -> list[int]:
    """Return who has done its requests first if the ratio to the last is above a threshold.

    The rule says nothing unless all pods complete requests, and all have some.
    """
    rates = [rate for rate in drain_rates if rate]
    if len(rates) < len(conditions):
        return []
    seconds = [
        condition.requests / max(rate, _LEAST_DRAIN_RATE)
        for condition, rate in zip(conditions, rates, strict=True)
    ]
    if min(seconds) <= 0 or max(seconds) / min(seconds) <= ratio:
        return []
    return _find_all(seconds, min(seconds))


def score_by_balance(conditions: Sequence[DecodeCondition], options: PolicyOptions) -> list[float]:
    """Score by requests and idle throughput, each as a share of the highest, for free memory."""
    busiest = max(1, *(condition.requests for condition in conditions))
    fastest = max(1.0, *(condition.throughput or 0.0 for condition in conditions))
    freest = max(1.0, *(condition.free for condition in conditions))
    return [
        (
            options.weight_running * (condition.requests / busiest)
            + options.weight_throughput * (1.0 - (condition.throughput or 0.0) / fastest)
        )
        / (condition.free / freest)
        for condition in conditions
    ]


def score_by_requests(conditions: Sequence[DecodeCondition], options: PolicyOptions) -> list[float]:
    """Score by the requests that a pod has."""
    del options
    return [float(condition.requests) for condition in conditions]


def score_by_token_time(
    conditions: Sequence[DecodeCondition], options: PolicyOptions
) -> list[float]:
    """Score by the milliseconds between two tokens with one more request, as aibrix reckons."""
    del options
    scores = []
    for condition in conditions:
        throughput = condition.throughput
        now = 1000.0 / throughput if throughput else _USUAL_TOKEN_MS
        then = now * (1.0 + 1.0 / max(condition.requests, 1))
        scores.append(then * _FULL_PENALTY if condition.free < _FEW_FREE_PERCENT else then)
    return scores


def _find_all(values: Sequence[float], wanted: float) -> list[int]:
    return [index for index, value in enumerate(values) if value == wanted]
