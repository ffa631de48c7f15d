from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from clusters import BATCHING, DECODE, NO_LINK, SERIAL, make_request
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing.cluster.decode_batch import DecodeTask
from benchmarks.routing.cluster.decode_engine import DecodeEngine
from benchmarks.routing.cluster.events import EventQueue
from benchmarks.routing.cluster.speeds import DecodeSpeed, Link, PrefillSpeed


@dataclass
class Times:
    received: list[float]
    first: list[float]
    finished: list[float]


class Decodes:
    """A decode engine, and what it has said of each request when."""

    def __init__(
        self,
        speed: DecodeSpeed = DECODE,
        *,
        prefill: PrefillSpeed = SERIAL,
        kv_tokens: int = 100_000,
        link: Link = NO_LINK,
        by_priority: bool = False,
    ) -> None:
        self.events = EventQueue()
        self.engine = DecodeEngine(
            self.events, speed, prefill, link, kv_tokens=kv_tokens, by_priority=by_priority
        )
        self.tasks: list[DecodeTask] = []
        self.times: list[Times] = []

    def submit(
        self,
        prompt: int,
        output: int,
        *,
        at: float = 0.0,
        prefilled: bool = True,
        blocks: Sequence[int] = (),
        answer: tuple[int, ...] = (),
        priority: float = 0.0,
    ) -> Times:
        times = Times([], [], [])

        def note(where: list[float]) -> None:
            where.append(round(self.events.now, 6))

        task = DecodeTask(
            replace(make_request(at, prompt, output, blocks), answer_hashes=answer),
            lambda: note(times.first),
            lambda: note(times.finished),
            (lambda: note(times.received)) if prefilled else None,
            priority,
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


def test_an_engine_that_computes_whole_prompts_only_generates_one_token_meanwhile() -> None:
    decodes = Decodes()
    first = decodes.submit(100, 10)
    second = decodes.submit(2000, 10, at=0.5, prefilled=False)
    decodes.run()

    assert first.finished == [3.0]
    assert second == Times([], [2.6], [3.5])


def test_steps_take_along_what_their_tokens_allow_of_prompts_that_are_computed_here() -> None:
    decodes = Decodes(prefill=BATCHING)
    first = decodes.submit(100, 10)
    second = decodes.submit(3000, 10, at=0.5, prefilled=False)
    decodes.run()

    # 2047 tokens in one step, which has one for the other request too, and 953 in the next.
    assert second.first == [3.7]
    assert first.finished == [4.0]
    assert second.finished == [4.6]
    assert decodes.engine.computed_tokens == 3000
    # All that is waited for shows, if not in the mean of a request.
    assert decodes.engine.gaps.find_quantile(1.0) == pytest.approx(2.147, rel=0.01)
    assert decodes.engine.gaps.find_quantile(0.5) == pytest.approx(0.1, rel=0.01)


def test_two_short_prompts_are_computed_in_one_step() -> None:
    decodes = Decodes(prefill=BATCHING)
    decodes.submit(1, 5, prefilled=False)
    both = [decodes.submit(500, 5, at=0.05, prefilled=False) for _ in range(2)]
    decodes.run()

    assert [times.first for times in both] == [[1.201]] * 2


def test_an_answer_of_one_token_ends_with_the_prompt_that_is_computed_here() -> None:
    decodes = Decodes(prefill=BATCHING)
    times = decodes.submit(1000, 1, prefilled=False)
    decodes.run()

    assert times == Times([], [1.1], [1.1])
    assert decodes.engine.kv_usage == 0.0


def test_prompts_that_came_from_elsewhere_are_cached_here() -> None:
    decodes = Decodes(prefill=BATCHING)
    decodes.submit(1100, 2, blocks=(1, 2))
    again = decodes.submit(1600, 2, at=1.0, prefilled=False, blocks=(1, 2, 3))
    decodes.run()

    assert decodes.tasks[1].cached == 1024
    assert again.first == [1.676]


def test_answers_are_cached_too() -> None:
    decodes = Decodes(prefill=BATCHING)
    decodes.submit(1100, 500, blocks=(1, 2), answer=(3, 4))
    decodes.submit(2100, 2, at=100.0, prefilled=False, blocks=(1, 2, 3, 4))
    decodes.run()

    # 1600 tokens in all: three whole blocks.
    assert decodes.tasks[1].cached == 1536


def test_blocks_that_are_cached_here_are_not_fetched() -> None:
    decodes = Decodes(link=Link(latency_s=0.5, bytes_per_token=1.0, bytes_per_s=1000.0))
    decodes.submit(1100, 2, blocks=(1, 2))
    again = decodes.submit(1124, 2, at=10.0, blocks=(1, 2))
    decodes.run()

    assert again.received == [10.6]


def test_requests_that_need_the_memory_drive_out_what_is_cached() -> None:
    decodes = Decodes(kv_tokens=2048)
    decodes.submit(1024, 2, blocks=(1, 2))
    decodes.submit(1600, 2, at=1.0)
    decodes.submit(1030, 2, at=2.0, prefilled=False, blocks=(1, 2))
    decodes.run()

    assert decodes.tasks[2].cached == 0


def test_the_lowest_priority_value_is_admitted_first() -> None:
    def order(*, by_priority: bool) -> list[list[float]]:
        decodes = Decodes(replace(DECODE, slots=1), by_priority=by_priority)
        decodes.submit(100, 10)
        waiting = [
            decodes.submit(100, 10, at=0.1 * number, priority=priority)
            for number, priority in enumerate((3.0, 1.0, 2.0, 1.0), start=1)
        ]
        decodes.run()
        return [times.finished for times in waiting]

    assert order(by_priority=True) == [[5.0], [2.0], [4.0], [3.0]]
    assert order(by_priority=False) == [[2.0], [3.0], [4.0], [5.0]]


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


requests = st.tuples(
    st.integers(1, 900),
    st.integers(1, 100),
    st.floats(0.0, 20.0),
    st.booleans(),
    st.sampled_from(((), (1,), (2,))),
    st.integers(0, 2),
)


@given(st.lists(requests, max_size=12), st.booleans())
def test_every_request_begins_and_ends_exactly_once(
    submitted: list[tuple[int, int, float, bool, tuple[int, ...], int]], batching: bool
) -> None:
    decodes = Decodes(
        DecodeSpeed(0.05, 0.01, 0.0001, slots=4),
        prefill=replace(BATCHING, tokens_per_step=100) if batching else SERIAL,
        kv_tokens=1000,
        link=Link(0.1, 1.0, 1e4),
        by_priority=True,
    )
    for prompt, output, at, prefilled, blocks, priority in submitted:
        decodes.submit(
            prompt, output, at=at, prefilled=prefilled, blocks=blocks, priority=float(priority)
        )
    decodes.run()

    for times in decodes.times:
        assert len(times.first) == len(times.finished) == 1
        assert times.first[0] <= times.finished[0]
    assert decodes.engine.kv_usage == 0.0
    assert decodes.engine.generated_tokens == pytest.approx(
        sum(output for _, output, *_ in submitted), abs=0.1
    )
