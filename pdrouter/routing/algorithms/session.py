"""The algorithm `session-affinity`: the pod that a session belongs to."""

from collections.abc import Sequence

from msgspec import structs

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.openai.sessions import Session
from pdrouter.routing.algorithms.requests import count_requests
from pdrouter.routing.policy import PolicyOptions, Ranking, RankingRequest
from pdrouter.routing.scoring import Measures
from pdrouter.routing.session_affinity import place_session, rank_pods
from pdrouter.routing.sessions import POLICY

_NAMELESS = "the request names no session"


class SessionMatch:
    """Measures whether a pod is the session's: what `session-affinity` is in a list.

    The load does not count, for other scorers in the list say what it is worth.
    """

    name = POLICY
    unit = "is_sessions"
    most = True

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        """Return 1 for the session's pod and 0 for the others."""
        session = _find_session(request, leg)
        if session is None:
            return Measures([None] * len(pods), _NAMELESS)
        own, *_ = rank_pods(session, pods)
        return Measures([float(pod.uid == own.uid) for pod in pods])


class SessionAffinity:
    """`session-affinity` by itself: the session's pod, unless it has too much to do.

    Without a session it is the pod with the fewest requests.
    """

    name = POLICY

    def __init__(self, options: PolicyOptions) -> None:
        """Set up the algorithm.

        Args:
            options: how far a session stays on its pod.
        """
        self._rules = options.affinity

    def rank(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Ranking:
        """Return all pods by their places in the session's order, or by their requests."""
        counts = count_requests(pods, request, leg)
        session = _find_session(request, leg)
        if session is None:
            return Ranking(pods, counts, f"{POLICY}: {_NAMELESS}")
        requests = {pod.uid: count for pod, count in zip(pods, counts, strict=True)}
        order = place_session(session, pods, pods, self._rules, requests.__getitem__).pods
        places = {pod.uid: float(place) for place, pod in enumerate(order)}
        return Ranking(pods, [places[pod.uid] for pod in pods])


def _find_session(request: RankingRequest, leg: Leg) -> Session | None:
    """Return the session; the pod that a client names is one of the last leg."""
    session = request.facts.session
    if session is None or leg is Leg.DECODE:
        return session
    return structs.replace(session, address="")
