"""What pods have computed of late, prompt by prompt, as Preble's cost model counts it."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from pdrouter.load.preble_curves import PREBLE_CURVES

_Key: TypeAlias = tuple[str, int | str]

_MOST_ENTRIES = 65_536
"""Prompts that are remembered at most: of more, the oldest are forgotten before their time."""


class PodWork(NamedTuple):
    """What a pod has had to do, within the window.

    Attributes:
        requests: requests for prompts that it has computed, wherever they went.
        work: milliseconds of computing their own parts, each prompt's shared by the pods that
            have computed it, as if nothing of that had been cached.
        prompts: how many different prompts these are.
    """

    requests: float = 0.0
    work: float = 0.0
    prompts: int = 0


_IDLE = PodWork()


class _Entry(NamedTuple):
    at: float
    key: _Key
    uid: str
    tokens: int
    cached: int


@dataclass(slots=True)
class _Prompt:
    """A prompt that has come within the window.

    Attributes:
        work: milliseconds that its own part takes to compute.
        requests: how often it came.
        pods: where to, and how often.
    """

    work: float
    requests: int = 0
    pods: dict[str, int] = field(default_factory=dict)


class RecentPrompts:
    """A sliding window of prompts. What it knows of pods is kept up to date as they come and go."""

    __slots__ = ("_clock", "_entries", "_pods", "_predict", "_prompts", "_totals", "_window_s")

    def __init__(
        self,
        window_s: float = 180.0,
        clock: Callable[[], float] = time.monotonic,
        predict: Callable[[int, int], float] = PREBLE_CURVES["V100"],
    ) -> None:
        """Start empty.

        Args:
            window_s: how far back it looks, in seconds.
            clock: gives the time in seconds.
            predict: gives the milliseconds that a prompt's own part takes, by the tokens of that,
                and of the whole prompt.
        """
        self._window_s = window_s
        self._predict = predict
        self._clock = clock
        self._entries: deque[_Entry] = deque()
        self._prompts: dict[_Key, _Prompt] = {}
        self._pods: dict[str, PodWork] = {}
        self._totals: dict[str, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, leg: str, last: Sequence[int], uid: str, tokens: int, cached: int) -> None:
        """Note that a pod gets a prompt.

        Args:
            leg: for which leg: those of one request count apart.
            last: the last of its blocks, for all of it; none if it has no whole block.
            uid: the pod.
            tokens: its length.
            cached: how many of these some pod had computed before.
        """
        self._drop_old()
        key = (leg, last[-1] if last else uid)
        self._entries.append(_Entry(self._clock(), key, uid, tokens, cached))
        self._add_totals(leg, tokens, cached)
        prompt = self._prompts.get(key)
        if prompt is None:
            own = max(0, tokens - cached)
            prompt = self._prompts[key] = _Prompt(self._predict(own, tokens))
        self._count(prompt, -1)
        prompt.requests += 1
        prompt.pods[uid] = prompt.pods.get(uid, 0) + 1
        self._count(prompt, 1)

    def find_miss_rate(self, leg: str) -> float:
        """Return which part of a leg's prompts no pod had computed before; 1 without prompts."""
        self._drop_old()
        tokens, cached = self._totals.get(leg, (0, 0))
        return 1.0 - cached / tokens if tokens else 1.0

    def measure(self, uid: str) -> PodWork:
        """Return what a pod has had to do; what is too old counts until it is looked up anew."""
        return self._pods.get(uid, _IDLE)

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        for prompt in [each for each in self._prompts.values() if uid in each.pods]:
            self._count(prompt, -1)
            del prompt.pods[uid]
            self._count(prompt, 1)
        self._pods.pop(uid, None)

    def _drop_old(self) -> None:
        entries, oldest = self._entries, self._clock() - self._window_s
        while entries and (entries[0].at < oldest or len(entries) >= _MOST_ENTRIES):
            self._drop(entries.popleft())

    def _drop(self, entry: _Entry) -> None:
        self._add_totals(entry.key[0], -entry.tokens, -entry.cached)
        prompt = self._prompts[entry.key]
        self._count(prompt, -1)
        prompt.requests -= 1
        left = prompt.pods.get(entry.uid, 1) - 1
        if left:
            prompt.pods[entry.uid] = left
        else:
            prompt.pods.pop(entry.uid, None)
        if prompt.requests:
            self._count(prompt, 1)
        else:
            del self._prompts[entry.key]

    def _add_totals(self, leg: str, tokens: int, cached: int) -> None:
        before = self._totals.get(leg, (0, 0))
        self._totals[leg] = before[0] + tokens, before[1] + cached

    def _count(self, prompt: _Prompt, sign: int) -> None:
        """Add a prompt to what its pods have had to do, or take it off."""
        if not prompt.pods:
            return
        work = sign * prompt.requests * prompt.work / len(prompt.pods)
        for uid in prompt.pods:
            known = self._pods.get(uid, _IDLE)
            prompts = known.prompts + sign
            if prompts:
                requests = known.requests + sign * prompt.requests
                self._pods[uid] = PodWork(requests, max(0.0, known.work + work), prompts)
            else:
                del self._pods[uid]
