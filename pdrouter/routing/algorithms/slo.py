"""The algorithms of aibrix's `slo` family, by predictions of what is measured.

aibrix takes GPU profiles from Redis for them, which are measured before. Here it is predicted when
the first token comes, and asked whether that is when it is due.
"""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.load.legs_in_flight import LegLoad
from pdrouter.routing.algorithms.first_token import predict_first_tokens
from pdrouter.routing.algorithms.requests import count_requests
from pdrouter.routing.kv_capacity import FULL, find_usage
from pdrouter.routing.policy import Ranking, RankingRequest
from pdrouter.routing.scoring import MeasureParts, to_costs

_IDLE = LegLoad()


class LeastLoad:
    """`slo-least-load`: the pod with the shortest predicted time to the first token."""

    def __init__(self, name: str, *, bounded: bool) -> None:
        """Set up the algorithm.

        Args:
            name: its name.
            bounded: whether pods whose KV memory is full are left out while others have room.
        """
        self.name = name
        self._bounded = bounded
        self._note = f"{name}: no GPU profiles are read, by the predicted time to the first token"

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return the pods that may have the request, by that time."""
        pods = _keep_roomy(pods, request, leg) if self._bounded else pods
        seconds = predict_first_tokens(pods, request, leg)
        note = self._note
        left = _find_left(request)
        if left is not None and min(seconds) > left:
            note += "; no pod would be in time"
        return Ranking(pods, seconds, note, MeasureParts((("first_token_s", seconds),)))


class PackLoad:
    """`slo-pack-load`: the busiest pod that would still be in time, so that others stay idle.

    For a request that is due at no time, it is the busiest on which nobody waits.
    """

    name = "slo-pack-load"

    def __init__(self) -> None:
        self._otherwise = LeastLoad(self.name, bounded=True)

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return the pods that would be in time, by what they have to do; all if none would."""
        roomy = _keep_roomy(pods, request, leg)
        seconds, left = predict_first_tokens(roomy, request, leg), _find_left(request)
        if left is None:
            kept = [index for index, pod in enumerate(roomy) if not _has_queue(pod, request)]
        else:
            kept = [index for index, each in enumerate(seconds) if each <= left]
        if not kept:
            return self._otherwise.rank(roomy, request, leg)
        fitting = [roomy[index] for index in kept]
        counts = count_requests(fitting, request, leg)
        parts = MeasureParts(
            (("requests", counts), ("first_token_s", [seconds[index] for index in kept]))
        )
        why = "without a target, none on which somebody waits" if left is None else "all in time"
        note = f"{self.name}: no GPU profiles are read, the busiest of {len(kept)} pods, {why}"
        return Ranking(fitting, to_costs(counts, most=True), note, parts)


def _find_left(request: RankingRequest) -> float | None:
    """Return the seconds until the first token is due; None for no such time."""
    due = request.facts.due
    return None if due is None else due - request.state.clock()


def _has_queue(pod: Pod, request: RankingRequest) -> bool:
    sample = request.state.samples.get(pod.uid)
    return sample is not None and bool(sample.waiting)


def _keep_roomy(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Sequence[Pod]:
    """Return the pods whose KV memory has room for prompt and answer; all if none has."""
    if leg is Leg.PREFILL:
        return pods
    loads, samples = request.state.ledger.loads[leg], request.state.samples
    need = request.facts.prompt_tokens + request.facts.output_tokens
    roomy = [
        pod
        for pod in pods
        if (sample := samples.get(pod.uid)) is None
        or find_usage(sample, loads.get(pod.uid, _IDLE), need) <= FULL
    ]
    return roomy or pods
