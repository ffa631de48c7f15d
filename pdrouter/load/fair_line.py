"""The requests that wait for their turn: the user who was served least goes first."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

from pdrouter.load.virtual_tokens import VirtualTokens

T = TypeVar("T")


class Place(Generic[T]):
    """One request in a line.

    Attributes:
        user: whose it is.
        way: what it has to have room on: requests of other ways go while it has none.
        tokens: the weighted tokens that it is charged as when its turn comes.
        due: when it is due; between lines, what is due first goes first.
        item: what stands there.
    """

    __slots__ = ("due", "item", "number", "tokens", "user", "way")

    def __init__(self, user: str, way: Hashable, tokens: float, due: float, item: T) -> None:
        self.user = user
        self.way = way
        self.tokens = tokens
        self.due = due
        self.item = item
        self.number = -1


class FairLine(Generic[T]):
    """A line in which users take turns by their virtual tokens; within a user, first come.

    Of two users who wait all the time, the counters are never apart by more than the dearest
    request of either: who is ahead by anything does not get the next turn.

    Attributes:
        name: its name among the counters.
    """

    __slots__ = ("_counters", "_numbers", "_size", "_waiting", "name")

    def __init__(self, counters: VirtualTokens, name: str = "") -> None:
        """Start empty.

        Args:
            counters: the counters of users.
            name: its name among them.
        """
        self.name = name
        self._counters = counters
        self._numbers = count()
        self._size = 0
        self._waiting: dict[tuple[str, Hashable], OrderedDict[int, Place[T]]] = {}

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Place[T]]:
        return (place for places in self._waiting.values() for place in places.values())

    @property
    def users(self) -> set[str]:
        """Users who wait."""
        return {user for user, _ in self._waiting}

    @property
    def ways(self) -> set[Hashable]:
        """Ways of what waits."""
        return {way for _, way in self._waiting}

    def read(self, user: str) -> float:
        """Return the counter of a user."""
        return self._counters.read(self.name, user)

    def join(self, place: Place[T]) -> None:
        """Let a request wait."""
        users = self.users
        if place.user not in users:
            reached = self._counters.read_line(self.name)
            floor = min((reached, *map(self.read, users)))
            self._counters.lift(self.name, place.user, floor)
        place.number = next(self._numbers)
        key = place.user, place.way
        self._waiting.setdefault(key, OrderedDict())[place.number] = place
        self._size += 1

    def leave(self, place: Place[T]) -> None:
        """Let a request wait no more. It has got nothing. Further calls change nothing."""
        key = place.user, place.way
        places = self._waiting.get(key)
        if places is None or places.pop(place.number, None) is None:
            return
        self._size -= 1
        if not places:
            del self._waiting[key]

    def serve(self, place: Place[T]) -> None:
        """Let a request have its turn: it waits no more, and is charged."""
        self.leave(place)
        self._counters.charge(self.name, place.user, place.tokens)

    def pass_by(self, place: Place[T]) -> None:
        """Charge a request that has its turn as it comes, since none has to wait."""
        self.join(place)
        self.serve(place)

    def find_first(self, ways: Collection[Hashable]) -> Place[T] | None:
        """Return the request whose turn is next of those that go these ways; None for none."""
        first: Place[T] | None = None
        least = 0.0
        for (user, way), places in self._waiting.items():
            if way not in ways:
                continue
            place, tokens = next(iter(places.values())), self.read(user)
            if first is None or (tokens, place.number) < (least, first.number):
                first, least = place, tokens
        return first

    def count_by_user(self) -> Counter[str]:
        """Return how many requests of each user wait."""
        counts: Counter[str] = Counter()
        for (user, _), places in self._waiting.items():
            counts[user] += len(places)
        return counts

    def find_newest(self, user: str) -> Place[T] | None:
        """Return the request of a user that has come last; None if none waits."""
        newest = (
            next(reversed(places.values()))
            for (each, _), places in self._waiting.items()
            if each == user
        )
        return max(newest, key=lambda place: place.number, default=None)
