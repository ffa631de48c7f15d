"""The virtual token counters of users: who has been served less goes first.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Each user has a counter
of the weighted tokens that were served to it. Who comes back is lifted to those who wait: nobody
saves up turns while others have no need of them, and nobody loses by having been alone.
"""

from collections.abc import Iterable

from pdrouter.bounded import make_room

MOST_USERS = 4096
"""Users whose counters are kept: the one that was not seen for longest is forgotten."""


class VirtualTokens:
    """Counters of the users of one line."""

    __slots__ = ("_last", "_most", "_tokens")

    def __init__(self, most: int = MOST_USERS) -> None:
        """Start with nobody.

        Args:
            most: how many users' counters are kept.
        """
        self._tokens: dict[str, float] = {}
        self._last = 0.0
        self._most = most

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, user: str) -> float:
        """Return a user's counter."""
        return self._tokens.get(user, 0.0)

    def lift(self, user: str, waiting: Iterable[str]) -> None:
        """Let a user who did not wait begin no lower than those who do.

        Args:
            user: the user.
            waiting: the users who wait; if there are none, the last one who was served counts.
        """
        floor = min(map(self.read, waiting), default=self._last)
        self._put(user, max(self.read(user), floor))

    def charge(self, user: str, tokens: float) -> None:
        """Count what is served to a user now."""
        self._put(user, self.read(user) + tokens)
        self._last = self.read(user)

    def correct(self, user: str, tokens: float) -> None:
        """Count what was served to a user beyond what was charged; less than nothing takes back.

        A user who has been forgotten stays so.
        """
        if user in self._tokens:
            self._tokens[user] += tokens

    def _put(self, user: str, tokens: float) -> None:
        self._tokens.pop(user, None)
        make_room(self._tokens, user, self._most)
        self._tokens[user] = tokens
