"""How long to wait before the API server is asked again."""

from random import Random

import aiohttp


class BackOff:
    """Pauses that double from failure to failure of one kind, with jitter.

    A server that refuses wants to be left alone. One that cannot be reached does not know that it
    is asked, and is back all of a sudden: to ask it often costs nobody anything, and what has
    changed meanwhile is seen at once.
    """

    def __init__(
        self, first_s: float, most_s: float, unreachable_most_s: float, random: Random
    ) -> None:
        """Start without failures.

        Args:
            first_s: pause after the first failure, in seconds.
            most_s: pause at the most.
            unreachable_most_s: the same while the server cannot be reached.
            random: source of jitter.
        """
        self._first_s = first_s
        self._most_s = most_s
        self._unreachable_most_s = unreachable_most_s
        self._random = random
        self._unreachable = False
        self._failures = 0

    def reset(self) -> None:
        """Note that something has worked."""
        self._failures = 0

    def lengthen(self, error: Exception, wished_s: float = 0.0) -> float:
        """Return the seconds to wait after a failure.

        Args:
            error: the failure. One of the other kind than the last is the first of its kind: a
                server that comes back with an error was not refusing all the time.
            wished_s: for how long the server wants to be left alone.
        """
        unreachable = is_unreachable(error)
        if unreachable is not self._unreachable:
            self._unreachable, self._failures = unreachable, 0
        most_s = self._unreachable_most_s if unreachable else self._most_s
        pause = min(self._first_s * 2.0 ** min(self._failures, 20), most_s)
        self._failures += 1
        return max(pause * self._random.uniform(0.5, 1.0), min(wished_s, self._most_s))


def is_unreachable(error: Exception) -> bool:
    """Return whether there was no connection, or one that ended without an answer.

    Certificates that do not fit are another matter: those who must mend that take their time.
    """
    return isinstance(error, aiohttp.ClientConnectionError) and not isinstance(
        error,
        aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | aiohttp.SocketTimeoutError,
    )
