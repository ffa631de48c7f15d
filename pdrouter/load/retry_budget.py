"""How many of a model's requests may be tried again: a pool that is broken must not be hammered.

Retries are at most a share of the requests of late, as in Linkerd and Envoy, and a few per second
whatever that share comes to: where there is little traffic, a request may be tried again. Pure:
time is passed in.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

_STEPS = 10
_MOST_MODELS = 1024


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How many retries there may be.

    Attributes:
        share: retries per request.
        per_second: how many there may be beside these.
        window_s: seconds that both are counted over.
    """

    share: float = 0.2
    per_second: float = 10.0
    window_s: float = 10.0


class _Mark(NamedTuple):
    """How many requests had been counted at a time."""

    at: float
    requests: int


@dataclass(slots=True)
class _Account:
    """What is counted of a model.

    Attributes:
        marks: taken when retries are asked for, a few times per window; the first one is where the
            window begins, or before.
        requests: requests so far.
        retries: when the retries of the window were.
    """

    marks: deque[_Mark]
    requests: int = 0
    retries: deque[float] = field(default_factory=deque)


class RetryBudget:
    """Counts requests and retries by model.

    A request costs an addition: how many there were in the window is worked out when one of them is
    to be tried again.
    """

    __slots__ = ("_accounts", "_clock", "rules")

    def __init__(
        self, rules: RetryRules | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing counted.

        Args:
            rules: how many retries there may be.
            clock: gives the time in seconds.
        """
        self.rules = rules or RetryRules()
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def count_request(self, model: str) -> None:
        """Count a request of a model, once."""
        account = self._accounts.get(model)
        if account is None:
            account = self._open(model)
        account.requests += 1

    def take_retry(self, model: str) -> bool:
        """Return whether a request of a model may be tried again, and count that if so."""
        account = self._accounts.get(model) or self._open(model)
        rules, retries, now = self.rules, account.retries, self._clock()
        while retries and retries[0] <= now - rules.window_s:
            retries.popleft()
        requests = self._count_recent(account, now)
        if len(retries) + 1 > rules.share * requests + rules.per_second * rules.window_s:
            return False
        retries.append(now)
        return True

    def _count_recent(self, account: _Account, now: float) -> float:
        """Return the requests in the window, as if they had come evenly since it was last asked."""
        window_s, marks = self.rules.window_s, account.marks
        while len(marks) > 1 and marks[1].at <= now - window_s:
            marks.popleft()
        if now - marks[-1].at >= window_s / _STEPS:
            marks.append(_Mark(now, account.requests))
        requests, seconds = account.requests - marks[0].requests, now - marks[0].at
        return requests * window_s / max(window_s, seconds)

    def _open(self, model: str) -> _Account:
        if len(self._accounts) >= _MOST_MODELS:
            self._accounts.pop(next(iter(self._accounts)))
        account = self._accounts[model] = _Account(deque([_Mark(self._clock(), 0)]))
        return account
