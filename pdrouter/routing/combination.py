"""Several policies that add up to one, each with its weight: `ttft:2,least_request`.

Policies score in units of their own: seconds, requests, shares. So each one's scores are brought to
the range from 0, its best pod, to 1, its worst, before they are weighted and added, as aibrix does
with its lists of algorithms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from msgspec import structs

from pdrouter.bounded import make_room
from pdrouter.cluster.pods import Pod
from pdrouter.routing.decision import ScoreParts
from pdrouter.routing.policy import DecodePolicy, PrefillPolicy, Ranking, RankingRequest
from pdrouter.routing.scoring import JoinedParts, add_up, to_range
from pdrouter.settings.combination import CombinationInvalid, parse_combination

_MOST_KEPT = 64


class CombinedPrefill:
    """A prefill policy that is the sum of others.

    What one of them leaves out is left out. The first says what a request costs on a pod.
    """

    def __init__(self, name: str, parts: Sequence[tuple[PrefillPolicy, int]]) -> None:
        """Set up the policy.

        Args:
            name: the combination, as it is shown.
            parts: the policies, each with its weight.
        """
        self.name = name
        self._parts = parts

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        """Return what each policy in turn finds worth scoring."""
        notes = []
        for policy, _ in self._parts:
            pods, note = policy.narrow(pods, request)
            if note:
                notes.append(note)
        return pods, "; ".join(notes)

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        """Return the weighted sum of all scores; those that any policy takes out are out."""
        scored = [(policy.score(pods, request), weight) for policy, weight in self._parts]
        for (policy, _), (scores, _) in zip(self._parts, scored, strict=True):
            request.ranked.setdefault(policy.name, Ranking(pods, scores))
        sums = add_up(scored)
        # Each leaves in one at least, but not always the same.
        return sums if min(sums) < math.inf else to_range(scored[0][0])

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        """Return how many prompt tokens a pod would compute for the request."""
        return self._parts[0][0].count_tokens(uid, request)

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> ScoreParts:
        """Return what the scores of each policy are made of."""
        ranked = request.ranked
        rankings = [
            structs.replace(ranked[policy.name], parts=policy.explain(pods, request))
            for policy, _ in self._parts
            if policy.name in ranked
        ]
        return JoinedParts(rankings)


class CombinedDecode:
    """A decode policy that is the sum of others. What one of them leaves out is left out."""

    def __init__(self, name: str, parts: Sequence[tuple[DecodePolicy, int]]) -> None:
        """Set up the policy.

        Args:
            name: the combination, as it is shown.
            parts: the policies, each with its weight.
        """
        self.name = name
        self._parts = parts

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        """Return the pods that all policies find worth scoring, and the weighted sums.

        Each looks at what those before it have left in: one is always left.
        """
        ranked: list[tuple[dict[str, float], int]] = []
        rankings, notes = [], []
        for policy, weight in self._parts:
            ranking = policy.rank(pods, request)
            rankings.append(ranking)
            pods = ranking.pods
            uids = [pod.uid for pod in pods]
            ranked.append((dict(zip(uids, ranking.scores, strict=True)), weight))
            if ranking.note:
                notes.append(ranking.note)
        uids = [pod.uid for pod in pods]
        scored = [([scores[uid] for uid in uids], weight) for scores, weight in ranked]
        return Ranking(pods, add_up(scored), "; ".join(notes), JoinedParts(rankings))


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Policy = TypeVar("Policy", bound=_Named)


class PolicyBook(Generic[Policy]):
    """The policies of one leg by what users write: a name, or a combination."""

    def __init__(
        self,
        known: Mapping[str, Policy],
        default: str,
        combine: Callable[[str, Sequence[tuple[Policy, int]]], Policy],
        listed: Mapping[str, Policy] = MappingProxyType({}),
    ) -> None:
        """Set up the book.

        Args:
            known: the policies by name.
            default: what is taken where nothing else is asked for.
            combine: makes one policy of several, with a name and weights.
            listed: what takes the place of some of them beside others.

        Raises:
            CombinationInvalid: there is no such default.
        """
        self._known = known
        self._listed = {**known, **listed}
        self._combine = combine
        self._combined: dict[str, Policy] = {}
        self.default = self._make(default)

    @classmethod
    def of(cls, policy: Policy) -> "PolicyBook[Policy]":
        return cls({policy.name: policy}, policy.name, lambda _, parts: parts[0][0])

    def find(self, text: str) -> tuple[Policy, str]:
        """Return the policy that is asked for, and what is wrong with the text, for people.

        A model's annotation may ask for what is not there; a typing error in it should not take the
        model out of service, so that gets the default.
        """
        if not text:
            return self.default, ""
        policy = self._known.get(text) or self._combined.get(text)
        if policy is not None:
            return policy, ""
        try:
            policy = self._make(text)
        except CombinationInvalid as invalid:
            return self.default, str(invalid)
        make_room(self._combined, text, _MOST_KEPT)
        self._combined[text] = policy
        return policy, ""

    def _make(self, text: str) -> Policy:
        weights = parse_combination(text, tuple(self._known))
        if len(weights) == 1:
            return self._known[weights[0][0]]
        name = ",".join(f"{name}:{weight}" for name, weight in weights)
        return self._combine(name, [(self._listed[name], weight) for name, weight in weights])
