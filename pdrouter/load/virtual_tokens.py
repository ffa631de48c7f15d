"""The virtual token counters of users: who has been served less goes first.

After Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Each user of a line has
a counter of the weighted tokens that were served to it. Who comes back is lifted to where the line
is: nobody saves up turns while others have no need of them, and nobody loses by having been alone.
"""

from pdrouter.bounded import make_room

MOST_COUNTERS = 16_384
"""Counters that are kept, of all lines: the one that was not changed for longest is forgotten."""


class VirtualTokens:
    """Counters by line and user. One for the whole process."""

    __slots__ = ("_most", "_reached", "_tokens")

    def __init__(self, most: int = MOST_COUNTERS) -> None:
        """Start with nobody.

        Args:
            most: how many counters are kept.
        """
        self._tokens: dict[tuple[str, str], float] = {}
        self._reached: dict[str, float] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, line: str, user: str) -> float:
        """Return the counter of a user."""
        return self._tokens.get((line, user), 0.0)

    def lift(self, line: str, user: str) -> None:
        """Let a user who has not waited begin where the line is.

        That is the counter of who was served last, as it was before.
        """
        self._put(line, user, max(self.read(line, user), self._reached.get(line, 0.0)))

    def charge(self, line: str, user: str, tokens: float) -> None:
        """Count what is served to a user now."""
        before = self.read(line, user)
        self._put(line, user, before + tokens)
        make_room(self._reached, line, self._most)
        self._reached[line] = max(before, self._reached.get(line, 0.0))

    def correct(self, line: str, user: str, tokens: float) -> None:
        """Count what was served to a user beyond what was charged; less than nothing takes back.

        A user who has been forgotten stays so.
        """
        if (line, user) in self._tokens:
            self._tokens[line, user] += tokens

    def _put(self, line: str, user: str, tokens: float) -> None:
        key = line, user
        self._tokens.pop(key, None)
        make_room(self._tokens, key, self._most)
        self._tokens[key] = tokens
