"""Which pod a session belongs to: worked out of its key and the pods' addresses, kept nowhere.

Each pod has a score for each key (rendezvous hashing); the pods in the order of their scores are a
session's own order. So all routers agree without a word, restarts change nothing, and a pod that
comes or goes moves its own share of the sessions and no other.

The hash is not aibrix's (FNV-1a), in which the last bytes hardly count: of pods whose names differ
there alone, such as ranks, some get next to no sessions, and one that goes leaves all of its own to
the same next one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

import msgspec
from xxhash import xxh3_64_intdigest

from pdrouter.cluster.pods import Pod
from pdrouter.openai.sessions import Session
from pdrouter.settings.choices import SessionAffinity


@dataclass(frozen=True, slots=True)
class AffinityRules:
    """What an operator decides about sessions.

    Attributes:
        mode: whether the requests of a session go to the same last pod, whatever the strategy.
        factor: how many times the mean of all pods' requests that pod may have.
        slack: how many requests more than that it may have.
    """

    mode: SessionAffinity = SessionAffinity.OFF
    factor: float = 1.25
    slack: int = 4

    @property
    def strict(self) -> bool:
        """Whether the load does not count."""
        return self.mode is SessionAffinity.STRICT

    def limit_requests(self, total: float, pods: int) -> float:
        """Return how many requests the pod of a session may have, with one more.

        Args:
            total: requests on all pods.
            pods: how many these are.
        """
        return ceil(self.factor * (total + 1) / pods) + self.slack


SPREAD_SESSIONS = AffinityRules()
"""Sessions are not kept together."""


class SessionOutcome(StrEnum):
    """What became of a session's wish for its pod."""

    KEPT = "kept"
    """Its own pod takes the request."""
    OVERLOADED = "overloaded"
    """Another one does: its own has too much to do, or could not have served it in time."""
    AWAY = "away"
    """Another one does: its own is gone, not ready, left out, or has no partner."""
    NONE = "none"
    """The request names no session."""


class SessionPlace(msgspec.Struct, frozen=True):
    """Where a request of a session goes.

    Attributes:
        pods: the pods that may take it, in the session's order; the first is the one that does.
        outcome: what that is to the session.
    """

    pods: Sequence[Pod]
    outcome: SessionOutcome


def place_session(
    session: Session,
    candidates: Sequence[Pod],
    known: Iterable[Pod],
    rules: AffinityRules,
    count_requests: Callable[[str], float],
) -> SessionPlace:
    """Return which of some pods takes a request of a session.

    It is the first in the session's order, which begins with the pod that the client names, that
    has not too much to do; requests beyond that all go to the same next one.

    Args:
        session: the session.
        candidates: the pods that may take the request, one at least.
        known: all pods that might, were they ready and sound.
        rules: what the operator decided.
        count_requests: gives the requests on a pod, by UID.
    """
    able = {pod.uid for pod in candidates}
    order = rank_pods(session, [pod for pod in known if pod.uid in able or not pod.refused])
    ranked = [pod for pod in order if pod.uid in able]
    chosen = 0
    if not (session.bound or rules.strict):
        counts = [count_requests(pod.uid) for pod in ranked]
        limit = rules.limit_requests(sum(counts), len(counts))
        roomy = (index for index, count in enumerate(counts) if count + 1 <= limit)
        chosen = next(roomy, counts.index(min(counts)))
    # Who has named a pod that is gone has lost it, whatever its key says.
    lost = session.address not in ("", ranked[0].address)
    if lost or ranked[0].uid != order[0].uid:
        outcome = SessionOutcome.AWAY
    else:
        outcome = SessionOutcome.OVERLOADED if chosen else SessionOutcome.KEPT
    return SessionPlace((*ranked[chosen:], *ranked[:chosen]), outcome)


def rank_pods(session: Session, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods in a session's order, which begins with the pod that the client names."""
    order = order_pods(session.key, pods)
    if session.address:
        order.sort(key=lambda pod: pod.address != session.address)
    return order


def order_pods(key: str, pods: Iterable[Pod]) -> list[Pod]:
    """Return the pods in a session's order: the highest score first, ties by the smaller name."""
    seed = xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
    scored = [
        (-xxh3_64_intdigest((name := identify(pod)).encode(), seed), name, number, pod)
        for number, pod in enumerate(pods)
    ]
    scored.sort()
    return [pod for *_, pod in scored]


def identify(pod: Pod) -> str:
    """Return what tells a pod from others, the same to all routers: its address, and its rank."""
    return pod.address if pod.rank is None else f"{pod.address}#{pod.rank.number}"
