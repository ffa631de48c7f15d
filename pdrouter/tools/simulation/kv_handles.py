"""The KV blocks that a prefill engine holds: issued once, then fetched once, freed or expired."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pdrouter.tools.simulation.legs import Handle

FetchResult = Literal[
    "ok",
    "unknown",
    "reused",
    "released",
    "expired",
    "lost",
    "altered",
    "wrong_engine",
    "other_revision",
    "mismatch",
]

FETCH_STATUS: dict[FetchResult, int] = {
    "ok": 200,
    "wrong_engine": 403,
    "other_revision": 403,
    "altered": 403,
    "unknown": 404,
    "reused": 409,
    "released": 409,
    "mismatch": 409,
    "expired": 410,
    "lost": 410,
}
"""The HTTP status with which a prefill engine answers a fetch, or a release."""

_REMEMBERED = 10_000
_HOSTS = ("remote_host", "peer_host")


@dataclass(frozen=True, slots=True)
class _Held:
    issued: str
    digest: str
    tokens: int
    deadline: float


class HandleStore:
    """Handles by key, each good for one fetch within its lease.

    Time is passed in, in seconds of any monotonic clock.
    """

    def __init__(self, engine_id: str, lease_s: float, on_expiry: Callable[[], None]) -> None:
        """Start with no handle.

        Args:
            engine_id: The engine whose blocks these are.
            lease_s: Seconds for which blocks are held.
            on_expiry: Called once for each handle whose lease ends before the fetch.
        """
        self._engine_id = engine_id
        self._lease_s = lease_s
        self._on_expiry = on_expiry
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._ended: OrderedDict[str, tuple[_Held, FetchResult]] = OrderedDict()

    def issue(self, handle: Handle, digest: str, tokens: int, now: float) -> None:
        """Hold the blocks of a prompt until they are fetched or the lease ends.

        Args:
            handle: What the router is given.
            digest: The prompt's identity.
            tokens: The prompt's length.
            now: The time.
        """
        deadline = now + self._lease_s
        self._held[handle_key(handle)] = _Held(_comparable(handle), digest, tokens, deadline)

    def fetch(self, handle: Handle, digest: str, now: float) -> FetchResult:
        """Give the blocks away, if the handle is the very one issued and still good.

        Args:
            handle: What the decode engine was given; only its host may differ.
            digest: The identity of the decode leg's prompt.
            now: The time.
        """
        result = self._look(handle, now)
        if result != "ok":
            return result
        key = handle_key(handle)
        if self._held[key].digest != digest:
            return "mismatch"
        self._end(key, "reused")
        return "ok"

    def release(self, handle: Handle, now: float) -> FetchResult:
        """Free the blocks that no decode engine will fetch, if the handle is still good.

        Args:
            handle: What the decode engine was given; only its host may differ.
            now: The time.
        """
        result = self._look(handle, now)
        if result == "ok":
            self._end(handle_key(handle), "released")
        return result

    def _look(self, handle: Handle, now: float) -> FetchResult:
        self._expire(now)
        if handle.get("remote_engine_id", self._engine_id) != self._engine_id:
            return "wrong_engine"
        key = handle_key(handle)
        held = self._held.get(key)
        result: FetchResult = "ok"
        if key in self._ended:
            held, result = self._ended[key]
        if held is None:
            return "unknown"
        return "altered" if held.issued != _comparable(handle) else result

    def lose(self) -> None:
        """Lose all blocks that are held, as an engine does whose process ends."""
        for key in tuple(self._held):
            self._end(key, "lost")

    def outstanding(self, now: float) -> int:
        """Count the handles that can still be fetched."""
        self._expire(now)
        return len(self._held)

    def held_tokens(self, now: float) -> int:
        """Count the prompt tokens whose blocks are held."""
        self._expire(now)
        return sum(held.tokens for held in self._held.values())

    def _expire(self, now: float) -> None:
        while self._held:
            key, oldest = next(iter(self._held.items()))
            if oldest.deadline > now:
                return
            self._end(key, "expired")
            self._on_expiry()

    def _end(self, key: str, later_result: FetchResult) -> None:
        self._ended[key] = (self._held.pop(key), later_result)
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)


def handle_key(handle: Handle) -> str:
    """Give the part of a handle that identifies it.

    That is the answer's id for the legacy Neuron connector, and the block ids for NIXL: old
    engines issue no request id. What an encoder says has a number.
    """
    return json.dumps(handle.get("remote_block_ids", handle.get("id", handle.get("ec_cookie"))))


def _comparable(handle: Handle) -> str:
    """Spell a handle so that equal means equal in every type and digit."""
    kept = {name: value for name, value in handle.items() if name not in _HOSTS}
    return json.dumps(kept, sort_keys=True)
