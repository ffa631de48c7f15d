"""The watch over the event loop."""

import asyncio
import time

import pytest
from virtual_time import run_in_virtual_time

from pdrouter.telemetry.event_loop import TICK_S, EventLoopWatch

PATIENCE_S = 60.0


class Observations:
    def __init__(self) -> None:
        self.lags: list[float] = []
        self.stalls: list[float] = []

    def watch(self) -> EventLoopWatch:
        return EventLoopWatch(self.lags.append, self.stalls.append)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.lags) < count:
                await asyncio.sleep(0.001)


async def test_each_look_gives_a_lag_and_of_it_what_was_computed() -> None:
    seen = Observations()
    with seen.watch():
        await seen.wait_for(3)
    assert len(seen.lags) == len(seen.stalls)
    assert all(0 <= stall <= lag for lag, stall in zip(seen.lags, seen.stalls, strict=True))


async def test_code_that_computes_on_the_loop_is_a_stall() -> None:
    seen = Observations()
    with seen.watch():
        await seen.wait_for(1)
        before = len(seen.stalls)
        end = time.process_time() + 10 * TICK_S
        while time.process_time() < end:
            pass
        await seen.wait_for(before + 1)
    assert max(seen.stalls[before:]) >= 5 * TICK_S


async def test_a_wait_without_computing_is_a_lag_but_no_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Observations()
    monkeypatch.setattr("pdrouter.telemetry.event_loop.time.process_time", lambda: 1.0)
    with seen.watch():
        await seen.wait_for(1)
        before = len(seen.lags)
        time.sleep(10 * TICK_S)  # noqa: ASYNC251 - what must not happen
        await seen.wait_for(before + 1)
    assert max(seen.lags[before:]) >= 5 * TICK_S
    assert max(seen.stalls) == 0


@pytest.mark.parametrize(
    ("spent", "longest", "together", "stall"),
    [
        (0.03, 0.004, 0.03, 0.004),  # All of it in turns that are known.
        (0.03, 0.004, 0.02, 0.014),  # The rest may have come before or behind the longest one.
        (0.03, 0.0, 0.0, 0.03),  # Nothing was.
        (0.03, 0.04, 0.05, 0.03),  # A turn that had begun before is counted when it ends.
    ],
)
async def test_of_a_lag_no_more_is_a_stall_than_one_turn_can_have_taken(
    spent: float, longest: float, together: float, stall: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    lags, stalls, cpu = list[float](), list[float](), [0.0]
    monkeypatch.setattr("pdrouter.telemetry.event_loop.time.process_time", lambda: cpu[0])
    with EventLoopWatch(lags.append, stalls.append, lambda: (longest, together)):
        cpu[0] = spent
        time.sleep(10 * TICK_S)  # noqa: ASYNC251 - the loop waits for a core
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            while not stalls:
                await asyncio.sleep(0.001)
    assert lags[0] >= 5 * TICK_S
    assert stalls[0] == pytest.approx(stall)


async def test_nothing_is_looked_at_after_the_context() -> None:
    seen = Observations()
    with seen.watch():
        await seen.wait_for(1)
    count = len(seen.lags)
    await asyncio.sleep(3 * TICK_S)
    assert len(seen.lags) == count


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 10, 20), (0.5, 45, 50)])
def test_a_loop_without_work_is_looked_at_less_often(
    share: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Observations()

    async def count_looks() -> int:
        loop = asyncio.get_running_loop()
        place = "pdrouter.telemetry.event_loop.time"
        monkeypatch.setattr(f"{place}.monotonic", loop.time)
        monkeypatch.setattr(f"{place}.process_time", lambda: share * loop.time())
        with seen.watch():
            await asyncio.sleep(1.0)
        return len(seen.lags)

    assert least <= run_in_virtual_time(count_looks()) <= most
