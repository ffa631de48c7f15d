from dataclasses import dataclass, replace

import pytest
from clusters import DECODE, NO_LINK, SERIAL
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing.cluster.decode_batch import DecodeTask
from benchmarks.routing.cluster.decode_engine import DecodeEngine
from benchmarks.routing.cluster.events import EventQueue
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link


@dataclass
class Times:
    received: list[float]
    first: list[float]
    finished: list[float]


class Decodes:
    """A decode engine, and what it has said of each request when."""

    def __init__(
        self, speed: DecodeSpeed = DECODE, *, kv_tokens: int = 100_000, link: Link = NO_LINK
    ) -> None:
        self.events = EventQueue()
        self.engine = DecodeEngine(self.events, speed, SERIAL, link, kv_tokens=kv_tokens)
        self.tasks: list[DecodeTask] = []
        self.times: list[Times] = []

    def submit(self, prompt: int, output: int, *, at: float = 0.0, prefilled: bool = True) -> Times:
        times = Times([], [], [])

        def note(where: list[float]) -> None:
            where.append(round(self.events.now, 6))

        task = DecodeTask(
            prompt,
            output,
            lambda: note(times.first),
            lambda: note(times.finished),
            (lambda: note(times.received)) if prefilled else None,
        )
        self.tasks.append(task)
        self.times.append(times)
        self.events.schedule(at, lambda: self.engine.submit(task))
        return times

    def run(self) -> None:
        self.events.run()


def test_a_request_gets_its_tokens_at_the_pace_of_the_steps() -> None:
    decodes = Decodes()
    times = decodes.submit(100, 10)
    decodes.run()

    assert times == Times([0.0], [0.1], [1.0])
    assert decodes.engine.busy_s == pytest.approx(1.0)


def test_an_answer_of_one_token_begins_and_ends_at_once() -> None:
    decodes = Decodes()
    times = decodes.submit(100, 1)
    decodes.run()

    assert times == Times([0.0], [0.1], [0.1])


def test_kv_blocks_are_fetched_before_the_first_step() -> None:
    decodes = Decodes(link=Link(latency_s=0.5, bytes_per_token=10.0, bytes_per_s=1000.0))
    times = decodes.submit(100, 10)
    decodes.run()

    assert times == Times([1.5], [1.6], [2.5])


def test_each_running_request_slows_the_others() -> None:
    alone = Decodes(replace(DECODE, seconds_per_request=0.1))
    lonely = alone.submit(100, 10)
    alone.run()
    together = Decodes(replace(DECODE, seconds_per_request=0.1))
    crowded = [together.submit(100, 10) for _ in range(4)]
    together.run()

    assert lonely.finished == [2.0]
    assert [times.finished for times in crowded] == [[5.0]] * 4


def test_steps_grow_with_the_kv_memory_in_use() -> None:
    decodes = Decodes(replace(DECODE, seconds_per_step=0.0, seconds_per_kv_token=0.001))
    times = decodes.submit(100, 10)
    decodes.run()

    # The sum of 0.001 * (100 + step) over ten continuous steps.
    assert times.finished == [1.05]


def test_a_request_that_joins_slows_the_rest_of_another() -> None:
    decodes = Decodes(replace(DECODE, seconds_per_request=0.1))
    first = decodes.submit(100, 10)
    second = decodes.submit(100, 5, at=1.0)
    decodes.run()

    # Five steps alone at 0.2 s, five together at 0.3 s.
    assert first.finished == [2.5]
    assert second.finished == [2.5]


def test_requests_beyond_the_slots_wait_in_order() -> None:
    decodes = Decodes(replace(DECODE, slots=1))
    waiting: list[tuple[int, int]] = []
    all_times = [decodes.submit(100, 10) for _ in range(3)]
    decodes.events.schedule(
        0.5, lambda: waiting.append((decodes.engine.running, decodes.engine.waiting))
    )
    decodes.run()

    assert [times.finished for times in all_times] == [[1.0], [2.0], [3.0]]
    assert waiting == [(1, 2)]


def test_a_prompt_is_admitted_only_when_its_kv_memory_is_there() -> None:
    decodes = Decodes(kv_tokens=1000)
    first = decodes.submit(600, 10)
    second = decodes.submit(600, 10)
    decodes.run()

    assert second.received == first.finished


def test_when_kv_memory_runs_out_the_last_to_join_is_computed_again() -> None:
    decodes = Decodes(kv_tokens=1000)
    first = decodes.submit(480, 100)
    second = decodes.submit(480, 100)
    decodes.run()

    assert decodes.engine.preemptions == 1
    assert [task.preemptions for task in decodes.tasks] == [0, 1]
    assert first.finished == [10.0]
    # 20 tokens until the memory was full; then 500 to compute again, and 80 more to generate.
    assert second == Times([0.0], [0.1], [18.5])
    assert decodes.engine.computed_tokens == 500


def test_a_prompt_that_is_computed_here_stops_generation_meanwhile() -> None:
    decodes = Decodes()
    first = decodes.submit(100, 10)
    second = decodes.submit(2000, 10, at=0.5, prefilled=False)
    decodes.run()

    assert first.finished == [3.0]
    assert second == Times([], [2.6], [3.5])


def test_the_engine_says_how_full_it_is() -> None:
    decodes = Decodes(kv_tokens=1000)
    decodes.submit(480, 100)
    seen: list[tuple[float, float]] = []
    decodes.events.schedule(
        2.0,
        lambda: seen.append((decodes.engine.kv_usage, decodes.engine.generated_tokens)),
    )
    decodes.run()

    assert seen == [pytest.approx((0.5, 20.0))]
    assert decodes.engine.kv_usage == 0.0


def test_looking_at_the_engine_changes_nothing() -> None:
    def run(*looks: float) -> list[Times]:
        decodes = Decodes(DecodeSpeed(0.05, 0.01, 0.0001, slots=4), kv_tokens=3000)
        for number in range(6):
            decodes.submit(500 + number, 40 + number, at=0.3 * number)

        def look() -> None:
            assert 0.0 <= decodes.engine.kv_usage <= 1.0

        for at in looks:
            decodes.events.schedule(at, look)
        decodes.run()
        return decodes.times

    assert run(0.1, 0.2, 1.0, 1.01, 2.5, 3.0, 4.0) == run()


requests = st.tuples(st.integers(1, 900), st.integers(1, 100), st.floats(0.0, 20.0), st.booleans())


@given(st.lists(requests, max_size=12))
def test_every_request_begins_and_ends_exactly_once(
    submitted: list[tuple[int, int, float, bool]],
) -> None:
    decodes = Decodes(
        DecodeSpeed(0.05, 0.01, 0.0001, slots=4), kv_tokens=1000, link=Link(0.1, 1.0, 1e4)
    )
    for prompt, output, at, prefilled in submitted:
        decodes.submit(prompt, output, at=at, prefilled=prefilled)
    decodes.run()

    for times in decodes.times:
        assert len(times.first) == len(times.finished) == 1
        assert times.first[0] <= times.finished[0]
    assert decodes.engine.kv_usage == 0.0
    assert decodes.engine.generated_tokens == pytest.approx(
        sum(output for _, output, _, _ in submitted), abs=0.1
    )
