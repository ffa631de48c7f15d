"""The strategies by what users write: a name, or a list of algorithms with weights."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from msgspec import structs

from pdrouter.bounded import make_room
from pdrouter.cluster.view import ModelPods
from pdrouter.routing.decision import Decision, RoutingFacts, Strategy
from pdrouter.routing.scoring import Listed, Scorer
from pdrouter.routing.single_pod import SinglePod
from pdrouter.routing.state import RoutingState
from pdrouter.settings.combination import ChosenStrategy, parse_strategy

_MOST_KEPT, _LONGEST_KEPT = 256, 1024
"""Texts whose strategies are kept: clients may send any."""


class StrategyBook(Mapping[str, Strategy]):
    """Finds strategies; those that have a name are what it holds as a mapping."""

    def __init__(
        self,
        known: Mapping[str, Strategy],
        scorers: Mapping[str, Scorer] = MappingProxyType({}),
    ) -> None:
        """Set up the book.

        Args:
            known: the strategies by name.
            scorers: those algorithms that can be in lists.
        """
        self._known = known
        self._scorers = scorers
        self._found: dict[str, Strategy] = {}

    def __getitem__(self, name: str) -> Strategy:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, text: str) -> Strategy:
        """Return the strategy that a text asks for.

        Raises:
            CombinationInvalid: there is none; the message says why.
        """
        strategy = self._known.get(text) or self._found.get(text)
        if strategy is None:
            strategy = self._make(parse_strategy(text, tuple(self._known)))
            if len(text) <= _LONGEST_KEPT:
                make_room(self._found, text, _MOST_KEPT)
                self._found[text] = strategy
        return strategy

    def _make(self, chosen: ChosenStrategy) -> Strategy:
        weights = chosen.weights
        if len(weights) > 1:
            name = ",".join(f"{name}:{weight}" for name, weight in weights)
            scorers = [(self._scorers[name], weight) for name, weight in weights]
            return SinglePod(Listed(name, scorers))
        strategy = self._known[weights[0][0]]
        return _Noted(strategy, chosen.note) if chosen.note else strategy


class _Noted:
    """A strategy that says something of each of its decisions."""

    def __init__(self, strategy: Strategy, note: str) -> None:
        self.name = strategy.name
        self.list_algorithms: Callable[[str, str], frozenset[str]] = strategy.list_algorithms
        self._strategy = strategy
        self._note = note

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        """Choose the pods for a request."""
        decision = self._strategy.decide(facts, pods, state)
        return structs.replace(decision, notes=(self._note, *decision.notes))
