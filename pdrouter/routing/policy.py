"""The rules by which the `pd` strategy chooses within one leg."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pdrouter.cluster.pods import Pod
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.state import RoutingState


class RoutedRequest:
    """A request in front of the pods: what policies ask for, worked out once."""

    __slots__ = ("facts", "matches", "state")

    def __init__(self, facts: RoutingFacts, state: RoutingState) -> None:
        self.facts = facts
        self.state = state
        self.matches: Mapping[str, int] = state.prefixes.match(facts.prefix.hashes)
        """How many blocks of the prompt each pod has probably cached, by UID; 0 where absent."""

    def count_uncached(self, uid: str) -> int:
        """Return how many prompt tokens a pod would have to compute, at least one."""
        matched = self.matches.get(uid, 0)
        tokens = self.facts.prompt_tokens
        return max(1, round(tokens * (1.0 - self.facts.prefix.share(matched))))


class PrefillPolicy(Protocol):
    """Scores prefill pods."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def narrow(self, pods: Sequence[Pod], request: RoutedRequest) -> tuple[Sequence[Pod], str]:
        """Return the pods that are worth scoring, and why there are fewer, for people.

        All of them, with an empty text, is the usual answer.
        """

    def count_tokens(self, uid: str, request: RoutedRequest) -> int:
        """Return how many prompt tokens a pod would compute for the request."""

    def score(self, pods: Sequence[Pod], request: RoutedRequest) -> Sequence[float]:
        """Return the score of each pod: lower is better, and more load never lowers it."""


class DecodePolicy(Protocol):
    """Scores decode pods."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def narrow(self, pods: Sequence[Pod], request: RoutedRequest) -> tuple[Sequence[Pod], str]:
        """Return the pods that are worth scoring, and why there are fewer, for people."""

    def score(self, pods: Sequence[Pod], request: RoutedRequest) -> Sequence[float]:
        """Return the score of each pod: lower is better, and more load never lowers it."""
