"""Users of elsewhere are remembered for a moment, and for longer while nobody answers."""

from unittest.mock import patch

import pytest

from pdrouter.users import cached_directory
from pdrouter.users.cached_directory import CachedDirectory
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.user import Limits, User


class Changing:
    """A directory that says what it is told to; None for nobody."""

    def __init__(self) -> None:
        self.answer: User | DirectoryUnavailable | None = None
        self.asked = 0
        self.now = 1000.0

    async def find(self, name: str) -> User | None:
        self.asked += 1
        if isinstance(self.answer, DirectoryUnavailable):
            raise self.answer
        return self.answer

    def clock(self) -> float:
        return self.now


async def test_what_was_found_counts_for_a_moment_and_then_is_looked_up_again() -> None:
    kept = Changing()
    directory = CachedDirectory(kept, kept.clock)
    for answer, asked in ((User("ann", limits=Limits(1)), 1), (None, 2)):
        kept.answer = answer
        kept.now += 5.0
        for _ in range(3):
            assert await directory.find("ann") == answer
        kept.answer = User("ann", limits=Limits(2))
        kept.now += 4.9
        assert await directory.find("ann") == answer
        assert kept.asked == asked


async def test_while_nobody_answers_what_was_said_last_counts_for_minutes() -> None:
    kept = Changing()
    directory = CachedDirectory(kept, kept.clock)
    kept.answer = known = User("ann", limits=Limits(1))
    assert await directory.find("ann") == known
    kept.answer = DirectoryUnavailable("away")
    kept.now += 299.0
    assert await directory.find("ann") == known
    with pytest.raises(DirectoryUnavailable):
        await directory.find("bob")
    kept.now += 2.0
    with pytest.raises(DirectoryUnavailable):
        await directory.find("ann")


async def test_no_more_users_are_remembered_than_there_may_be() -> None:
    kept = Changing()
    directory = CachedDirectory(kept, kept.clock)
    with patch.object(cached_directory, "_MOST", 2):
        for name in ("ann", "bob", "eve", "ann"):
            await directory.find(name)
    # The one that was looked up first had to go.
    assert kept.asked == 4
    await directory.find("eve")
    assert kept.asked == 4
