"""What waits for the pods of one model: a line for each class of requests."""

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.fair_line import FairLine, Place
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.routing.decision import RoutingFacts, Strategy
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.turns import Turn


class Applicant(NamedTuple):
    """A request that asks for its turn.

    Attributes:
        name: name by which the view has its model.
        pods: the pods of the model.
        strategy: what chooses among them.
        facts: what that is told of the request.
        line: its class; empty for none.
        record: its record.
    """

    name: str
    pods: ModelPods
    strategy: Strategy
    facts: RoutingFacts
    line: str
    record: RequestRecord


class Way(NamedTuple):
    """What a request needs room on: the pods of a model, or of an adapter, by its first leg.

    Attributes:
        name: name by which the view has the model.
        leg: the leg.
    """

    name: str
    leg: Leg


class Waiting(NamedTuple):
    """A request that waits.

    Attributes:
        applicant: the request.
        granted: its turn, once that has come.
    """

    applicant: Applicant
    granted: "asyncio.Future[Turn]"


class Next(NamedTuple):
    """The request whose turn is next.

    Attributes:
        place: its place.
        line: the line that it is in.
    """

    place: Place[Waiting]
    line: FairLine[Waiting]


class ModelQueue:
    """What waits for the pods of one model and its adapters, and what is on its way to them.

    Attributes:
        key: its name, with the namespace.
        lines: the lines by class.
        on_the_way: requests that have had their turn, and are not counted where they go.
        prompt_tokens: the length of their prompts.
    """

    __slots__ = ("_counters", "key", "lines", "on_the_way", "prompt_tokens")

    def __init__(self, key: str, counters: VirtualTokens) -> None:
        self.key = key
        self._counters = counters
        self.lines: dict[str, FairLine[Waiting]] = {}
        self.on_the_way = 0
        self.prompt_tokens = 0

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    @property
    def ways(self) -> set[Way]:
        """Ways of what waits."""
        return {way for line in self.lines.values() for way in line.ways if isinstance(way, Way)}

    def find_line(self, name: str) -> FairLine[Waiting]:
        """Return the line of a class."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = FairLine(self._counters, f"{name} {self.key}")
        return line

    def find_next(self, ways: Collection[Way]) -> Next | None:
        """Return what is next of those that go these ways: of the lines' first, what is due first.

        Requests that have just ended, and are about to leave, do so now.
        """
        while True:
            firsts = ((line.find_first(ways), line) for line in self.lines.values() if len(line))
            found = [Next(place, line) for place, line in firsts if place is not None]
            if not found:
                return None
            first = min(found, key=lambda each: each.place.due)
            if not first.place.item.granted.done():
                return first
            first.line.leave(first.place)

    def count_by_user(self) -> Counter[str]:
        """Return how many requests of each user wait."""
        counts: Counter[str] = Counter()
        for line in self.lines.values():
            counts.update(line.users)
        return counts

    def find_newest(self, user: str) -> Place[Waiting] | None:
        """Return the request of a user that has waited least; None if none waits."""
        newest = filter(None, (line.find_newest(user) for line in self.lines.values()))
        return max(newest, key=lambda place: place.item.applicant.record.began, default=None)
