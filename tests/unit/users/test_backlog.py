"""Corrections of what was counted: together, once, and later if they must be."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pdrouter.users.redis.backlog import (
    KEPT_S,
    MAX_BATCH,
    RESENT_S,
    Backlog,
    Correction,
    Kind,
)
from pdrouter.users.redis.link import RedisUnavailable, Script
from pdrouter.users.redis.stats import LinkStats, Reason


class Link:
    """Notes what is sent, and fails as it is told.

    Attributes:
        sent: keys of each script.
        numbers: number of the batch of each script.
        failing: how many scripts fail from now on.
    """

    def __init__(self) -> None:
        self.stats = LinkStats(up=True)
        self.sent: list[Sequence[str]] = []
        self.numbers: list[int] = []
        self.failing = 0
        self.now = 0.0
        self._on_up: list[Callable[[], None]] = []

    def call_when_up(self, call: Callable[[], None]) -> None:
        self._on_up.append(call)

    async def run_script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        assert len(args) == 3 + 4 * (len(keys) - 1)
        assert script.digest
        self.sent.append(keys)
        self.numbers.append(args[2])
        if self.failing:
            self.failing -= 1
            self.stats.up = False
            raise RedisUnavailable(Reason.TIMEOUT, "no answer in time")

    def come_up(self) -> None:
        self.stats.up = True
        for call in self._on_up:
            call()


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def backlog(link: Link) -> Backlog:
    return Backlog(link, "p", lambda: link.now)  # type: ignore[arg-type]


def add(key: str, useful_s: float = 61.0) -> Correction:
    return Correction(key, Kind.ADD, 1, useful_s, 1.0)


async def test_what_comes_together_goes_together(link: Link, backlog: Backlog) -> None:
    backlog.add([add("a")])
    backlog.add([add("b"), add("c")])
    await backlog.wait()
    assert [keys[1:] for keys in link.sent] == [["a", "b", "c"]]


async def test_a_script_takes_no_more_than_it_may(link: Link, backlog: Backlog) -> None:
    backlog.add(add(str(number)) for number in range(2 * MAX_BATCH + 1))
    await backlog.wait()
    assert [len(keys) - 1 for keys in link.sent] == [MAX_BATCH, MAX_BATCH, 1]


async def test_what_has_failed_is_sent_again_under_the_same_number_and_first(
    link: Link, backlog: Backlog
) -> None:
    link.failing = 1
    backlog.add([add("a")])
    await backlog.wait()
    backlog.add([add("b")])
    assert len(backlog) == 2
    assert len(link.sent) == 1  # While the server is away, nothing is tried.
    link.come_up()
    await backlog.wait()
    assert [keys[1:] for keys in link.sent] == [["a"], ["a"], ["b"]]
    assert link.numbers == [1, 1, 2]
    assert not len(backlog)


async def test_what_makes_no_difference_any_more_is_not_sent(link: Link, backlog: Backlog) -> None:
    link.stats.up = False
    backlog.add([add("early", 10.0), add("late", 60.0)])
    link.now = 20.0
    link.come_up()
    await backlog.wait()
    assert [keys[1:] for keys in link.sent] == [["late"]]
    assert link.stats.dropped == 0


async def test_a_batch_is_given_up_before_it_could_count_twice(
    link: Link, backlog: Backlog
) -> None:
    assert RESENT_S < KEPT_S
    link.failing = 1
    backlog.add([add("a", 1000.0), add("b", 1000.0)])
    await backlog.wait()
    link.now = RESENT_S
    backlog.add([add("c")])
    link.come_up()
    await backlog.wait()
    assert [keys[1:] for keys in link.sent] == [["a", "b"], ["c"]]
    assert link.stats.dropped == 2
