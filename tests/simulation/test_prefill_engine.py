from dataclasses import replace

import pytest
from clusters import BATCHING, SERIAL, make_request

from benchmarks.routing.cluster.events import EventQueue
from benchmarks.routing.cluster.prefill_engine import PrefillEngine, PrefillTask
from benchmarks.routing.cluster.speeds import PrefillSpeed
from pdrouter.openai.prompt_prefix import PromptPrefix


class Prefills:
    """A prefill engine, and when it has computed which prompts."""

    def __init__(
        self,
        speed: PrefillSpeed,
        *,
        blocks: int = 64,
        slowness: float = 1.0,
        by_priority: bool = False,
    ) -> None:
        self.events = EventQueue()
        self.engine = PrefillEngine(
            self.events, speed, blocks * 512, slowness, by_priority=by_priority
        )
        self.computed: list[tuple[int, float]] = []
        self.tasks: list[PrefillTask] = []

    def submit(
        self,
        prompt: PromptPrefix,
        at: float = 0.0,
        *,
        hold_s: float = 0.0,
        priority: float = 0.0,
    ) -> None:
        number = len(self.tasks)

        def note(task: PrefillTask) -> None:
            self.computed.append((number, round(self.events.now, 6)))
            self.events.schedule(self.events.now + hold_s, lambda: self.engine.release(task))

        task = PrefillTask(prompt, note, priority)
        self.tasks.append(task)
        self.events.schedule(at, lambda: self.engine.submit(task))

    def run(self) -> list[tuple[int, float]]:
        self.events.run()
        return self.computed


def make_prompt(tokens: int, *blocks: int) -> PromptPrefix:
    return make_request(0.0, tokens, blocks=blocks).prompt


def test_a_serial_engine_computes_prompts_one_after_the_other_in_order() -> None:
    prefills = Prefills(SERIAL)
    prefills.submit(make_prompt(3000))
    prefills.submit(make_prompt(100))
    prefills.submit(make_prompt(1000))

    assert prefills.run() == [(0, 3.0), (1, 3.1), (2, 4.1)]
    assert prefills.engine.busy_s == pytest.approx(4.1)


def test_a_batching_engine_shares_a_step_among_short_prompts() -> None:
    prefills = Prefills(BATCHING)
    prefills.submit(make_prompt(10), at=0.0)
    for _ in range(3):
        prefills.submit(make_prompt(500), at=0.001)

    assert prefills.run() == [(0, 0.01), (1, 1.51), (2, 1.51), (3, 1.51)]


def test_a_batching_engine_computes_a_long_prompt_in_several_steps_before_the_next() -> None:
    prefills = Prefills(BATCHING)
    prefills.submit(make_prompt(3000))
    prefills.submit(make_prompt(1096))

    assert prefills.run() == [(0, 4.096), (1, 4.096)]


def test_steps_have_a_price_of_their_own() -> None:
    prefills = Prefills(replace(BATCHING, seconds_per_step=0.5))
    prefills.submit(make_prompt(3000))

    assert prefills.run() == [(0, 4.0)]


def test_a_slow_pod_takes_longer() -> None:
    prefills = Prefills(SERIAL, slowness=2.0)
    prefills.submit(make_prompt(1000))

    assert prefills.run() == [(0, 2.0)]


@pytest.mark.parametrize(
    ("tokens", "seconds"), [(1, 0.512), (512, 0.512), (513, 2.048), (2049, 4.096)]
)
def test_static_shapes_round_prompts_up(tokens: int, seconds: float) -> None:
    prefills = Prefills(replace(SERIAL, buckets=(512, 2048)))
    prefills.submit(make_prompt(tokens))

    assert prefills.run() == [(0, seconds)]


def test_attention_looks_at_cached_tokens_too() -> None:
    speed = replace(SERIAL, seconds_per_token=0.0, seconds_per_token_squared=1.0)

    assert speed.compute(0, 3) == 9.0
    assert speed.compute(0, 1) + speed.compute(1, 2) == 9.0


def test_hits_are_determined_when_a_prompt_has_its_turn() -> None:
    prefills = Prefills(SERIAL)
    prefills.submit(make_prompt(1024, 1, 2))
    prefills.submit(make_prompt(1100, 1, 2))

    assert prefills.run() == [(0, 1.024), (1, 1.1)]
    assert [task.cached for task in prefills.tasks] == [0, 1024]
    assert prefills.engine.cached_tokens == 1024
    assert prefills.engine.computed_tokens == 1024 + 76


def test_twins_in_one_step_find_nothing_of_each_other() -> None:
    prefills = Prefills(replace(BATCHING, tokens_per_step=8192))
    prefills.submit(make_prompt(10), at=0.0)
    prefills.submit(make_prompt(1024, 1, 2), at=0.001)
    prefills.submit(make_prompt(1100, 1, 2), at=0.001)
    prefills.run()

    assert [task.cached for task in prefills.tasks] == [0, 0, 0]


def test_an_engine_whose_memory_is_full_of_blocks_to_hand_over_waits() -> None:
    prefills = Prefills(SERIAL, blocks=3)
    prefills.submit(make_prompt(1024, 1, 2), hold_s=5.0)
    prefills.submit(make_prompt(1024, 3, 4))

    assert prefills.run() == [(0, 1.024), (1, 7.048)]


def test_the_engine_says_how_much_it_has_to_do() -> None:
    prefills = Prefills(SERIAL)
    for _ in range(3):
        prefills.submit(make_prompt(1000))
    seen: list[tuple[int, int]] = []
    prefills.events.schedule(
        0.5, lambda: seen.append((prefills.engine.running, prefills.engine.waiting))
    )
    prefills.run()

    assert seen == [(1, 2)]
    assert prefills.engine.mean_prefill_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("by_priority", "order"), [(True, [0, 2, 4, 3, 1]), (False, [0, 1, 2, 3, 4])]
)
def test_the_lowest_priority_value_goes_first_but_not_before_what_has_begun(
    by_priority: bool, order: list[int]
) -> None:
    prefills = Prefills(BATCHING, by_priority=by_priority)
    # Two steps, so that the others come while it is half done.
    prefills.submit(make_prompt(4096), priority=9.0)
    for priority in (5.0, 1.0, 3.0, 1.0):
        prefills.submit(make_prompt(2048), at=0.5, priority=priority)
    waiting: list[tuple[int, int]] = []
    prefills.events.schedule(
        1.0, lambda: waiting.append((prefills.engine.running, prefills.engine.waiting))
    )

    assert [number for number, _ in prefills.run()] == order
    assert waiting == [(1, 4)]


def test_short_prompts_share_the_steps_of_a_long_one_whose_chunks_are_limited() -> None:
    def compute(longest_chunk: int | None) -> list[tuple[int, float]]:
        prefills = Prefills(replace(BATCHING, longest_chunk=longest_chunk))
        prefills.submit(make_prompt(6144))
        prefills.submit(make_prompt(500), at=0.1)
        prefills.submit(make_prompt(500), at=0.1)
        return prefills.run()

    assert compute(None) == [(0, 6.144), (1, 7.144), (2, 7.144)]
    # The first step has 1024 tokens; then 1024, 500 and 500, until the long one is alone.
    assert compute(1024) == [(1, 3.048), (2, 3.048), (0, 7.144)]
