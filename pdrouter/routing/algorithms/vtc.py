"""`vtc-basic`: users have places among the pods, by what they were served of late."""

from collections.abc import Sequence

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.load.served_tokens import Shares
from pdrouter.routing.algorithms.requests import count_requests
from pdrouter.routing.policy import DEFAULT_OPTIONS, PolicyOptions, RankingRequest
from pdrouter.routing.scoring import Measures

NAME = "vtc-basic"

_SHOWN = 64


class VtcBasic:
    """Measures pods by the distance from a user's place among them, and by how busy they are.

    The order of the pods is that of their names, so that a place means the same pods each time.
    """

    name = NAME
    unit = "distance_and_use"
    most = False

    def __init__(self, options: PolicyOptions = DEFAULT_OPTIONS) -> None:
        self._options = options

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return what each pod costs; nothing of any for a request that no user has sent."""
        user, options = request.facts.user, self._options
        if not user:
            return Measures([None] * len(pods), "no user is named: any pod")
        place = find_place(request.state.served.look(user), len(pods), options)
        order = sorted(range(len(pods)), key=lambda index: (pods[index].name, pods[index].uid))
        distances = [0.0] * len(pods)
        for position, index in enumerate(order):
            distances[index] = abs(position - place)
        counts = count_requests(pods, request, leg)
        scores = [score(*each, options) for each in zip(distances, counts, strict=True)]
        return Measures(scores, f"the place of {user[:_SHOWN]!r} is {place:.2f} of {len(pods)}")


def find_bucket(shares: Shares, options: PolicyOptions) -> float:
    """Return how many weighted tokens lie between the place of one pod and the next."""
    least = options.vtc_min_tokens if shares.least is None else shares.least
    most = options.vtc_max_tokens if shares.most is None else shares.most
    return max(options.vtc_min_tokens, (least + most) / 2)


def find_place(shares: Shares, pods: int, options: PolicyOptions) -> float:
    """Return where among so many pods a user belongs, from 0 on: the more served, the later."""
    return min(shares.own / find_bucket(shares, options), pods - 1)


def score(distance: float, requests: float, options: PolicyOptions) -> float:
    """Return what a pod costs that is so far from the user's place, with so many requests."""
    use = min(requests / options.vtc_max_pod_load, 1.0)
    return options.vtc_fairness_weight * distance + options.vtc_utilization_weight * use
