"""What pods have shown that they can do: so it is known whether others do what one fails."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from pdrouter.bounded import make_room
from pdrouter.engines.split import Leg

_RECENT_S = 60.0
_NEWS_S = 1.0
"""Time for which it is not noted again that a pod does what it did."""
_ENOUGH = 2
"""Pods that have shown it of late: whichever is asked about, another one has."""
MOST_NAMES = 4096
"""Models and adapters, by leg and path, that are remembered; adapters may come and go for ever."""


@dataclass(frozen=True, slots=True)
class _Handle:
    """The last handle that was good; of the recent ones, that for the shortest prompt.

    Attributes:
        uid: the pod that has given it.
        tokens: length of the prompt.
        at: when that was.
    """

    uid: str
    tokens: int
    at: float


@dataclass(slots=True)
class _Served:
    """Who has served a model on a path of late.

    Attributes:
        pods: when it was, by UID; of the last few.
        known_until: until when these are enough: that others do it, too, is no news.
    """

    pods: dict[str, float] = field(default_factory=dict)
    known_until: float = -inf


class Proofs:
    """Remembers who has served what of late, and what engines tell. One for the whole process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing shown.

        Args:
            clock: gives the time in seconds.
        """
        self._clock = clock
        self._served: dict[tuple[Leg, str, str, str], _Served] = {}
        self._handles: dict[tuple[str, str], _Handle] = {}
        self._told: dict[tuple[str, str], None] = {}

    def note_served(self, leg: Leg, namespace: str, model: str, path: str, uid: str) -> bool:
        """Note that a pod has served a model on a path; return whether that is news."""
        key, now = (leg, namespace, model, path), self._clock()
        served = self._served.get(key)
        if served is None:
            make_room(self._served, key, MOST_NAMES)
            served = self._served[key] = _Served()
        pods = served.pods
        if now < served.known_until or now - pods.get(uid, -inf) < _NEWS_S:
            return False
        pods.pop(uid, None)
        make_room(pods, uid, _ENOUGH)
        pods[uid] = now
        if len(pods) == _ENOUGH:
            served.known_until = min(pods.values()) + _NEWS_S
        return True

    def has_another_served(self, leg: Leg, namespace: str, model: str, path: str, uid: str) -> bool:
        """Return whether another pod has served a model on a path of late."""
        served, now = self._served.get((leg, namespace, model, path)), self._clock()
        return served is not None and any(
            other != uid and now - at < _RECENT_S for other, at in served.pods.items()
        )

    def note_handle(self, namespace: str, model: str, uid: str, tokens: int) -> bool:
        """Note that a pod has given a handle for so long a prompt; return whether that is news."""
        key, now = (namespace, model), self._clock()
        known = self._handles.get(key)
        if known is not None:
            age = now - known.at
            known_for = _RECENT_S if tokens > known.tokens else _NEWS_S
            if tokens >= known.tokens and age < known_for:
                return False
        make_room(self._handles, key, MOST_NAMES)
        self._handles[key] = _Handle(uid, tokens, now)
        return True

    def has_another_given(self, namespace: str, model: str, uid: str, tokens: int) -> bool:
        """Return whether another pod has given a handle of late, for no longer a prompt."""
        known = self._handles.get((namespace, model))
        return (
            known is not None
            and known.uid != uid
            and known.tokens <= tokens
            and self._clock() - known.at < _RECENT_S
        )

    def note_told(self, uid: str, path: str) -> bool:
        """Note that a pod tells what it has cached on a path; return whether that is news."""
        if (uid, path) in self._told:
            return False
        make_room(self._told, (uid, path), MOST_NAMES)
        self._told[uid, path] = None
        return True

    def has_told(self, uid: str, path: str) -> bool:
        """Return whether a pod tells what it has cached on a path."""
        return (uid, path) in self._told
