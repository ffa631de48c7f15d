import asyncio

import pytest

from pdrouter.turns import BUDGET_S, Turns


class Burst:
    """Work that all comes at once, and takes time that only its clock knows."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.turns = Turns(lambda: self.now)
        self.done: list[int] = []
        self.by_turn: list[int] = []

    def work(self, number: int) -> None:
        self.now += self.seconds
        self.done.append(number)

    async def run(self, count: int) -> None:
        for number in range(count):
            self.turns.begin(self.work, number)
        self.by_turn.append(len(self.done))
        while len(self.done) < count:
            before = len(self.done)
            await asyncio.sleep(0)
            self.by_turn.append(len(self.done) - before)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 5.0])
async def test_a_turn_takes_what_fits_and_the_order_is_kept(share: float) -> None:
    burst = Burst(share * BUDGET_S)
    await burst.run(500)
    assert burst.done == list(range(500))
    # The first turns do not know yet what the work costs.
    assert max(burst.by_turn[3:]) <= max(1, min(16, int(1 / share)))
    assert min(burst.by_turn[3:-1]) >= 1


async def test_what_is_put_off_waits_for_a_later_turn_and_for_what_came_before() -> None:
    turns, done = Turns(), list[str]()

    def work(name: str, again: int) -> None:
        done.append(name)
        if again:
            turns.put_off(lambda: work(name, again - 1))

    turns.put_off(lambda: work("a", 2))
    turns.begin(lambda: work("b", 0))
    assert done == []
    await asyncio.sleep(0)
    assert done == ["a", "b"]
    await asyncio.sleep(0)
    assert done == ["a", "b", "a"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert done == ["a", "b", "a", "a"]


async def test_what_comes_alone_does_not_wait() -> None:
    burst = Burst(BUDGET_S)
    for number in range(10):
        burst.turns.begin(burst.work, number)
        assert burst.done[-1] == number
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_what_is_found_dear_may_be_cheap_later() -> None:
    burst = Burst(10 * BUDGET_S)
    await burst.run(20)
    burst.seconds, burst.done, burst.by_turn = BUDGET_S / 100, [], []
    await burst.run(500)
    assert max(burst.by_turn) == 16


async def test_cheap_work_lets_only_little_more_of_what_was_dear_into_a_turn() -> None:
    burst = Burst(BUDGET_S)
    await burst.run(20)
    for seconds, count in ((BUDGET_S / 100, 15), (BUDGET_S, 20)):
        burst.seconds, burst.done, burst.by_turn = seconds, [], []
        await burst.run(count)
    assert max(burst.by_turn) <= 6


async def test_what_takes_too_long_is_spread_also_where_nothing_was_left_over() -> None:
    burst = Burst(BUDGET_S / 100)
    for seconds, count in ((BUDGET_S / 100, 500), (BUDGET_S / 3, 10), (BUDGET_S / 3, 10)):
        burst.seconds, burst.done, burst.by_turn = seconds, [], []
        await burst.run(count)
        await asyncio.sleep(0)
    assert max(burst.by_turn) <= 4
    assert burst.done == list(range(10))


async def test_a_turn_that_was_too_long_is_forgotten_when_full_turns_are_short() -> None:
    burst = Burst(20 * BUDGET_S)
    await burst.run(3)
    burst.seconds = BUDGET_S / 100
    for _ in range(5):
        burst.done, burst.by_turn = [], []
        await burst.run(2)
        await asyncio.sleep(0)
    assert burst.by_turn[0] == 2


async def test_who_does_not_wait_any_more_is_passed_over() -> None:
    turns, loop = Turns(), asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(50)]
    for future in futures:
        turns.resolve(future, "result")
    assert not futures[-1].done()
    futures[-1].cancel()
    assert [await future for future in futures[:-1]] == ["result"] * 49
    await asyncio.sleep(0)
    assert futures[-1].cancelled()


async def test_the_loop_rests_when_all_is_done() -> None:
    turns = Turns()
    for _ in range(50):
        turns.begin(lambda: None)
    for _ in range(60):
        await asyncio.sleep(0)
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    assert len(ready) == 0


async def test_a_turn_ends_when_those_that_it_woke_have_gone_on() -> None:
    turns, loop, done = Turns(), asyncio.get_running_loop(), list[str]()
    futures = [loop.create_future() for _ in range(3)]

    async def wait(future: asyncio.Future[str]) -> None:
        done.append(await future)
        if len(done) == 1:
            turns.end_with(lambda: done.append("end"))

    tasks = [loop.create_task(wait(future)) for future in futures]
    await asyncio.sleep(0)

    def wake() -> None:
        for future in futures:
            turns.resolve(future, "woken")

    turns.gather(wake)
    await asyncio.sleep(0)
    assert done == ["woken"] * 3 + ["end"]
    await asyncio.gather(*tasks)


async def test_what_fails_does_not_keep_others_from_their_turn() -> None:
    turns, done, failures = Turns(), list[int](), list[object]()
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: failures.append(context["exception"])
    )

    def work(number: int) -> None:
        done.append(number)
        if number % 3 == 0:
            raise ValueError(number)

    for number in range(9):
        turns.put_off(work, number)
        turns.end_with(lambda number=number: work(number + 9))  # type: ignore[misc]
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(done) == list(range(18))
    assert len(failures) == 6


async def test_turns_that_follow_each_other_are_timed_from_beginning_to_beginning() -> None:
    burst = Burst(BUDGET_S / 4)
    turns = burst.turns

    async def compute_beside(seconds: float) -> None:
        burst.now += seconds

    turns.put_off(burst.work, 0)
    turns.put_off(turns.put_off, burst.work, 1)
    beside = asyncio.create_task(compute_beside(7.0))
    for _ in range(4):
        await asyncio.sleep(0)
    await beside
    longest, together = turns.take_times()
    assert longest == pytest.approx(7.0 + BUDGET_S / 4)
    assert together == pytest.approx(7.0 + BUDGET_S / 2)
    assert turns.take_times() == (0.0, 0.0)
    # What is computed while nothing is begun is in no turn.
    burst.now += 100.0
    turns.put_off(burst.work, 2)
    for _ in range(3):
        await asyncio.sleep(0)
    assert turns.take_times()[0] < 1.0
