"""Users of elsewhere, remembered for a moment: a request need not wait for each look-up."""

import time
from collections.abc import Callable

from pdrouter.bounded import make_room
from pdrouter.users.directory import Directory, DirectoryUnavailable
from pdrouter.users.user import User

_FRESH_S = 5.0
_STALE_S = 300.0
_MOST = 10_000


class CachedDirectory:
    """Asks a directory for each user once in a while.

    While it does not answer, what it said last counts for some minutes.
    """

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing remembered.

        Args:
            directory: knows the users.
            clock: gives the time in seconds.
        """
        self._directory = directory
        self._clock = clock
        self._found: dict[str, tuple[float, User | None]] = {}

    async def find(self, name: str) -> User | None:
        """Return a user; None if there is none of this name.

        Raises:
            DirectoryUnavailable: it is not known whether there is.
        """
        now = self._clock()
        at, user = self._found.get(name, (float("-inf"), None))
        if now - at < _FRESH_S:
            return user
        try:
            found = await self._directory.find(name)
        except DirectoryUnavailable:
            if now - at < _STALE_S:
                return user
            raise
        make_room(self._found, name, _MOST)
        self._found[name] = now, found
        return found
