"""What counts against limits: the contract of all that counts, in one process or for many."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
from msgspec import structs

SLOTS = 60
"""Parts of a window. What was taken counts until the part in which it was is a window old."""


class Measure(StrEnum):
    """What is limited."""

    REQUESTS = "requests"
    """Requests within a window of time."""
    TOKENS = "tokens"
    """Tokens within a window of time: reserved first, put right once it is known how many."""
    CONCURRENT = "concurrent"
    """Requests at a time."""


class Quota(msgspec.Struct, frozen=True, array_like=True):
    """How much there is of one thing.

    Attributes:
        name: what counts it, the same in all processes; two quotas of one name are one.
        measure: what is counted.
        limit: the most of it; 0 for nothing at all.
        window_s: the seconds within which that is the most; 0 for what counts while it lasts.
        scope: whose it is, for people: `user 'ann'`.
        shared: whether others draw on it, too: then clients are not told what is left of it.
    """

    name: str
    measure: Measure
    limit: int
    window_s: float
    scope: str = ""
    shared: bool = False


class Demand(msgspec.Struct, frozen=True, array_like=True):
    """What a request takes of a quota.

    Attributes:
        quota: the quota.
        amount: how much; 1 of requests.
    """

    quota: Quota
    amount: int = 1


class Standing(msgspec.Struct, frozen=True):
    """What is left of a quota.

    Attributes:
        quota: the quota.
        remaining: how much of it, at the least 0.
        reset_s: seconds until all of it is there again, if nobody takes more; 0 if that is not
            known, as it is of what counts while it lasts.
    """

    quota: Quota
    remaining: int
    reset_s: float


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """What was taken. It can be written down, and be understood by other processes.

    Attributes:
        demands: what it was.
        holder: who has it; unique to each request.
        at: when, on the clock of the counters that gave it.
        counters: which these are; empty where all processes have the same.
    """

    demands: tuple[Demand, ...]
    holder: str
    at: float
    counters: str = ""

    def select(self, *measures: Measure) -> "Taken":
        """Return the part of it that is of these measures."""
        demands = tuple(each for each in self.demands if each.quota.measure in measures)
        return Taken(demands, self.holder, self.at, self.counters)

    def select_tokens(self) -> "Taken | None":
        """Return what `correct` needs of it; None if there is nothing to correct."""
        demands = tuple(
            Demand(structs.replace(each.quota, scope=""), each.amount)
            for each in self.select(Measure.TOKENS).demands
        )
        return structs.replace(self, demands=demands) if demands else None


class Verdict(msgspec.Struct, frozen=True):
    """What came of the wish to take something.

    Attributes:
        standings: what is left of each quota now, in the order of the demands.
        taken: what was taken; None if it was refused.
        refused: what stood in the way, the worst of it; None if nothing did.
        wait_s: seconds until there is room, if nobody takes more; 0 if that is not known.
    """

    standings: tuple[Standing, ...]
    taken: Taken | None = None
    refused: Demand | None = None
    wait_s: float = 0.0


class CountersUnavailable(Exception):
    """What counts cannot be reached, or does not answer in time."""


class Counters(Protocol):
    """Counts what is taken of quotas.

    In no stretch of time that is as long as a quota's window is more taken than its limit; and what
    was taken is free again a window, and a sixtieth of it (`SLOTS`), later at the latest.

    What raises `CountersUnavailable` may or may not have been done.
    """

    async def take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        """Take all that is demanded, or nothing.

        A demand that is larger than its limit is never met. Whoever stops waiting for the answer
        (cancels) has taken nothing in the end.

        Args:
            demands: what is to be taken: each quota at most once.
            holder: who takes it: unique to each request.

        Raises:
            CountersUnavailable: it is not known what is left.
        """

    async def correct(self, taken: Taken, tokens: int) -> None:
        """Count as many tokens as there were, in place of those that were reserved.

        What was reserved too much is free at once. What was used beyond it counts from now on, and
        may go beyond the limit: then nobody takes more until there is room again. Call it once.

        Args:
            taken: what was taken; all but its tokens is left alone.
            tokens: how many were used.

        Raises:
            CountersUnavailable: it may not have been counted.
        """

    async def release(self, taken: Taken) -> None:
        """End what counts while it lasts (`CONCURRENT`). Further calls change nothing.

        Raises:
            CountersUnavailable: it may count on, though not for ever.
        """

    async def give_back(self, taken: Taken) -> None:
        """Undo what was taken, as if it had not been. Call it once, and not after `correct`.

        Raises:
            CountersUnavailable: it may not have been undone.
        """
