"""Answers that are read to their end after their request has ended."""

import asyncio

import pytest
from waiting import WAIT_S, wait_until

from pdrouter.serving.drains import Drains


async def test_what_ends_in_time_is_not_cut() -> None:
    async with Drains(WAIT_S) as drains:
        task = asyncio.create_task(asyncio.sleep(0, "read"))
        drains.take(task)
        assert drains.outstanding == 1
        assert await task == "read"
        await wait_until(lambda: not drains.outstanding)


async def test_what_does_not_end_in_time_is_cut() -> None:
    async with Drains(0.01) as drains:
        task = asyncio.create_task(asyncio.Event().wait())
        drains.take(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until(lambda: not drains.outstanding)


async def test_there_are_no_more_than_may_be() -> None:
    async with Drains(WAIT_S, most=1) as drains:
        first, second = (asyncio.create_task(asyncio.Event().wait()) for _ in range(2))
        drains.take(first)
        drains.take(second)
        await asyncio.wait([second])
        assert second.cancelled()
        assert not first.done()
    assert first.cancelled()
