"""What answers have used, for whoever waits to know it: any worker may be told, by Envoy's log."""

import math
import time
from collections.abc import Callable

_WANTED_S = 3600.0
"""Time for which it is wanted once it was: an answer may be told of long after its request came."""
_AGAIN_S = 60.0
"""Time after which it is said again that it is wanted."""


class UsageNews:
    """Passes on what answers have used, if somebody wants to know. One for the whole process.

    Attributes:
        on_news: is told of a request, and of the tokens of its prompt and of its answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nobody who wants to know.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._wanted_at = -math.inf
        self.on_news: Callable[[str, int, int], object] = _ignore

    @property
    def wanted(self) -> bool:
        """Whether anybody may wait for any."""
        return self._clock() - self._wanted_at < _WANTED_S

    def want(self) -> bool:
        """Note that somebody waits for some; return whether that is news."""
        now = self._clock()
        if now - self._wanted_at < _AGAIN_S:
            return False
        self._wanted_at = now
        return True

    def tell(self, request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        """Tell what the answer to a request has used."""
        self.on_news(request_id, prompt_tokens, output_tokens)


def _ignore(request_id: str, prompt_tokens: int, output_tokens: int) -> None:
    del request_id, prompt_tokens, output_tokens
