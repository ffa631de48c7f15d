"""The rules by which the `pd` strategy chooses within one leg."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import RoutingFacts, ScoreParts
from pdrouter.routing.session_affinity import SPREAD_SESSIONS, AffinityRules
from pdrouter.routing.state import RoutingState


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What an operator may decide about `pd` and its policies; the defaults are aibrix's.

    Attributes:
        compute_weight: how many times a second of computing counts as much as one of waiting at
            the most, for `ttft`.
        others_weight: how much of the prefill work that others have sent counts, for `ttft`.
        away_cost: how much more than a home pod any other costs, as a part of its score, where
            there are several routers, for `ttft`.
        bucketing: whether pods say in their configuration which prompt lengths they are for.
        prefill_imbalance_spread: prefill legs by which pods may differ before one with the fewest
            is taken.
        decode_imbalance_spread: decode requests by which pods differ when one with the fewest is
            taken.
        decode_throughput_spread: tokens per second by which pods may differ before the one that
            generates least is taken.
        decode_score_ratio: ratio that the times to complete all requests may have before the pod
            with the shortest is taken.
        standard_deviation_factor: standard deviations above the mean that a prefill pod's legs may
            lie; for `prefix-cache`, the requests of a pod.
        request_imbalance_spread: requests by which pods may differ before `prefix-cache` and
            `prefix-cache-preble` look only at those with the fewest.
        preble_output_tokens: length of an answer for `prefix-cache-preble`.
        vtc_min_tokens: for `vtc-basic`, the least weighted tokens between the place of one pod and
            the next one's; and what the user with the fewest has if nobody has any.
        vtc_max_tokens: what the user with the most has if nobody has any.
        vtc_max_pod_load: requests on a pod that is fully used.
        vtc_fairness_weight: what the distance of a pod from a user's place counts, in pods.
        vtc_utilization_weight: what a pod counts that is fully used.
        locality_weight: what the longest distance between the pods of a pair counts, where the
            highest score of a leg counts 1.
        weight_running: weight of the requests in `load_balancing`.
        weight_throughput: weight of the idle throughput in `load_balancing`.
        affinity: how far a session stays on its pod.
    """

    compute_weight: float = 4.0
    others_weight: float = 0.35
    away_cost: float = 0.4
    bucketing: bool = False
    prefill_imbalance_spread: int = 16
    decode_imbalance_spread: float = 16.0
    decode_throughput_spread: float = 2048.0
    decode_score_ratio: float = 1.5
    standard_deviation_factor: float = 1.0
    request_imbalance_spread: int = 8
    preble_output_tokens: int = 45
    vtc_min_tokens: float = 1000.0
    vtc_max_tokens: float = 8000.0
    vtc_max_pod_load: float = 100.0
    vtc_fairness_weight: float = 1.0
    vtc_utilization_weight: float = 1.0
    locality_weight: float = 0.02
    weight_running: float = 1.0
    weight_throughput: float = 1.0
    affinity: AffinityRules = SPREAD_SESSIONS


DEFAULT_OPTIONS = PolicyOptions()


class RankingRequest:
    """A request in front of the pods: what policies ask for, worked out once."""

    __slots__ = ("_decoded", "_prefill_uids", "facts", "matches", "ranked", "state")

    def __init__(
        self, facts: RoutingFacts, state: RoutingState, prefill_uids: tuple[str, ...] = ()
    ) -> None:
        """Look the prompt up.

        Args:
            facts: the request.
            state: the pods' condition.
            prefill_uids: all prefill pods of its model, whichever of them it may go to.
        """
        self.facts = facts
        self.state = state
        self._prefill_uids = prefill_uids
        self.matches: Mapping[str, int] = state.prefixes.match(facts.prefix.hashes)
        """How many blocks of the prompt each pod has probably cached, by UID; 0 where absent."""
        self._decoded: Mapping[str, int] | None = None
        self.ranked: dict[str, Ranking] = {}
        """What prefill policies have already found out, by their names."""

    def find_matches(self, leg: Leg) -> Mapping[str, int]:
        """Return how many blocks of the prompt each pod has, of those that serve a leg."""
        if leg is Leg.PREFILL:
            return self.matches
        if self._decoded is None:
            self._decoded = self.state.decoded.match(self.facts.prefix.hashes)
        return self._decoded

    def find_homes(self, uids: Sequence[str]) -> frozenset[str]:
        """Return this router's home pods; none where that makes no difference among some pods.

        Which they are does not depend on where the request may go.
        """
        homes = self.state.homes.find(self._prefill_uids)
        return frozenset() if homes.isdisjoint(uids) else homes

    def count_uncached(self, uid: str) -> int:
        """Return how many prompt tokens a pod would have to compute, at least one."""
        return count_computed(self.facts, self.matches.get(uid, 0))


def count_computed(facts: RoutingFacts, blocks: int) -> int:
    """Return how many prompt tokens are left if so many blocks are cached, at least one."""
    prefix = facts.prefix
    size = prefix.size
    left = size - prefix.ends[blocks - 1] if blocks else size
    return (facts.prompt_tokens * left + size // 2) // size or 1


class PrefillPolicy(Protocol):
    """Scores prefill pods.

    In two steps, because what is left after the first has to find partners among the decode pods.
    """

    @property
    def name(self) -> str:
        """Name in settings."""

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return the pods that are worth scoring, and why there are fewer, for people.

        All of them, with an empty text, is the usual answer.
        """

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the score of each pod: lower is better.

        Infinity takes a pod out, though the others were compared with it; one is always left.
        """

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many prompt tokens a pod would compute for the request."""

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> ScoreParts | None:
        """Return what the scores that these pods have got are made of; None if nobody tells."""


class Ranking(msgspec.Struct, frozen=True):
    """Pods of one leg with their scores.

    Attributes:
        pods: those that are worth scoring, at least one.
        scores: the score of each: lower is better, and finite.
        note: why they are fewer, for people; empty if they are not.
        parts: what the scores are made of; None where that is not told.
    """

    pods: Sequence[Pod]
    scores: Sequence[float]
    note: str = ""
    parts: ScoreParts | None = None


class DecodePolicy(Protocol):
    """Scores decode pods."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return the pods, of one or more, that are worth scoring, and their scores."""
