"""The requests that wait for their turn: the user who was served least goes first."""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
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

    __slots__ = ("_by_user", "_counters", "_numbers", "_size", "_waiting", "name")

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
        self._by_user: dict[str, int] = {}
        self._waiting: dict[Hashable, dict[str, OrderedDict[int, Place[T]]]] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def users(self) -> Mapping[str, int]:
        """How many requests wait of each user who has any."""
        return self._by_user

    @property
    def ways(self) -> Collection[Hashable]:
        """Ways of what waits."""
        return self._waiting.keys()

    def read(self, user: str) -> float:
        """Return the counter of a user."""
        return self._counters.read(self.name, user)

    def join(self, place: Place[T]) -> None:
        """Let a request wait."""
        user = place.user
        if user not in self._by_user:
            self._counters.lift(self.name, user)
        place.number = next(self._numbers)
        waiting = self._waiting.setdefault(place.way, {})
        waiting.setdefault(user, OrderedDict())[place.number] = place
        self._by_user[user] = self._by_user.get(user, 0) + 1
        self._size += 1

    def leave(self, place: Place[T]) -> None:
        """Let a request wait no more. It has got nothing. Further calls change nothing."""
        user, waiting = place.user, self._waiting.get(place.way, {})
        places = waiting.get(user)
        if places is None or places.pop(place.number, None) is None:
            return
        if not places:
            del waiting[user]
        if not waiting:
            del self._waiting[place.way]
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]
        self._size -= 1

    def serve(self, place: Place[T]) -> None:
        """Let a request have its turn: it waits no more, and is charged."""
        self.leave(place)
        self._counters.charge(self.name, place.user, place.tokens)

    def pass_by(self, user: str, tokens: float) -> None:
        """Charge a request that has its turn as it comes, since none has to wait.

        Args:
            user: whose it is.
            tokens: the weighted tokens that it is charged.
        """
        if user not in self._by_user:
            self._counters.lift(self.name, user)
        self._counters.charge(self.name, user, tokens)

    def find_first(self, ways: Collection[Hashable]) -> Place[T] | None:
        """Return the request whose turn is next of those that go these ways; None for none."""
        first: Place[T] | None = None
        least = 0.0
        for way in self._waiting.keys() & ways:
            for user, places in self._waiting[way].items():
                tokens = self.read(user)
                if first is not None and tokens > least:
                    continue
                place = next(iter(places.values()))
                if first is None or tokens < least or place.number < first.number:
                    first, least = place, tokens
        return first

    def find_newest(self, user: str) -> Place[T] | None:
        """Return the request of a user that has come last; None if none waits."""
        places = (waiting[user] for waiting in self._waiting.values() if user in waiting)
        newest = (next(reversed(each.values())) for each in places)
        return max(newest, key=lambda place: place.number, default=None)
