"""The ledger of work in flight on each pod, as far as this process has sent it there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType


@dataclass(slots=True)
class PodLoad:
    """Work in flight on one pod.

    Attributes:
        prefill_requests: prefill legs that run or wait there.
        prefill_tokens: estimated prompt tokens of those legs.
        decode_requests: decode legs, and whole requests, that run there.
    """

    prefill_requests: int = 0
    prefill_tokens: int = 0
    decode_requests: int = 0


_IDLE = PodLoad()


class Scope:
    """One piece of work that a ledger counts until it is released, exactly once."""

    __slots__ = ("_amount", "_ledger", "_uid")

    def __init__(self, ledger: "Ledger", uid: str, amount: PodLoad) -> None:
        self._ledger: Ledger | None = ledger
        self._uid = uid
        self._amount = amount

    def release(self) -> None:
        """Stop counting the work. Further calls change nothing."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.subtract(self._uid, self._amount)

    def __enter__(self) -> "Scope":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Ledger:
    """Counts work by the UID of its pod.

    Entries come with the first piece of work and go with the last, so that pods which are gone
    leave nothing behind, and an update of a pod changes nothing.
    """

    __slots__ = ("_loads",)

    def __init__(self) -> None:
        self._loads: dict[str, PodLoad] = {}

    def load(self, uid: str) -> PodLoad:
        """Return the work in flight on a pod. It is the ledger's own record: do not change it."""
        return self._loads.get(uid, _IDLE)

    def snapshot(self) -> Mapping[str, PodLoad]:
        """Return a copy of all entries by UID; pods without work have none."""
        return {uid: replace(load) for uid, load in self._loads.copy().items()}

    def start_prefill(self, uid: str, tokens: int) -> Scope:
        """Count a prefill leg of so many estimated prompt tokens."""
        return self._add(uid, PodLoad(prefill_requests=1, prefill_tokens=tokens))

    def start_decode(self, uid: str) -> Scope:
        """Count a decode leg or a whole request."""
        return self._add(uid, PodLoad(decode_requests=1))

    def _add(self, uid: str, amount: PodLoad) -> Scope:
        load = self._loads.setdefault(uid, PodLoad())
        load.prefill_requests += amount.prefill_requests
        load.prefill_tokens += amount.prefill_tokens
        load.decode_requests += amount.decode_requests
        return Scope(self, uid, amount)

    def subtract(self, uid: str, amount: PodLoad) -> None:
        """Take back what a scope has counted; only scopes call this."""
        load = self._loads[uid]
        load.prefill_requests -= amount.prefill_requests
        load.prefill_tokens -= amount.prefill_tokens
        load.decode_requests -= amount.decode_requests
        if load == _IDLE:
            del self._loads[uid]
