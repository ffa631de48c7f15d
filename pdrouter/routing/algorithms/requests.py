"""The algorithms that go by the requests that pods have, or by nothing at all."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.policy import Ranking, RankingRequest
from pdrouter.routing.scoring import MeasureParts, Measures


class AnyPod:
    """`random`: all pods are alike."""

    name = "random"

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return all pods with the same score."""
        del request, leg
        return Ranking(pods, [0.0] * len(pods))


class LeastRequest:
    """`least-request`: the pod with the fewest requests, ours and others'."""

    name = "least-request"
    unit = "requests"
    most = False

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return how many requests each pod has."""
        return Measures(count_requests(pods, request, leg))


def count_requests(pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> list[float]:
    """Return the requests on each pod: ours of a leg, and those of others as last seen."""
    loads, samples = request.state.ledger.loads[leg], request.state.samples
    counts: list[float] = []
    for pod in pods:
        uid = pod.uid
        load, sample = loads.get(uid), samples.get(uid)
        ours = 0.0 if load is None else load.requests
        counts.append(ours if sample is None else ours + sample.others)
    return counts


class PowerOfTwo:
    """`power-of-two`: of two pods drawn at random, the one with fewer requests."""

    name = "power-of-two"

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return two pods, if there are as many, and how many requests they have."""
        drawn = request.state.random.sample(pods, min(2, len(pods)))
        counts = count_requests(drawn, request, leg)
        return Ranking(drawn, counts, parts=MeasureParts((("requests", counts),)))


class LeastBusyTime:
    """`least-busy-time`: the pod that has had something to do for the least of its time."""

    name = "least-busy-time"
    unit = "busy_share"
    most = False

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return the share of its time, of late, in which each pod has had requests."""
        del leg
        shares = request.state.ledger.measure_busy([pod.uid for pod in pods])
        return Measures(shares, "no engine says how busy its GPU is: whether it has had requests")
