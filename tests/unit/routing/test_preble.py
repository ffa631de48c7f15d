"""`prefix-cache-preble` goes by Preble's rule and cost, as aibrix reckons them."""

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.preble_curves import PREBLE_CURVES
from pdrouter.load.recent_prompts import PodWork, RecentPrompts
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.algorithms.preble import note_prompt
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings.choices import PREBLE_GPUS

PREFIX = PromptPrefix((1, 2, 3, 4), (250, 500, 750, 1000), 1000)
FACTS = RoutingFacts(400, None, PREFIX)


def choose(state: RoutingState, name: str = "prefix-cache-preble", pods: int = 3) -> Decision:
    strategy = create_strategies(options=PolicyOptions(preble_output_tokens=20)).find(name)
    whole = make_model_pods(*(make_pod(f"p{number}", Role.BOTH) for number in range(pods)))
    return strategy.decide(FACTS, whole, state)


def cache(state: RoutingState, *blocks: int) -> None:
    for number, count in enumerate(blocks):
        state.decoded.expect(PREFIX.hashes[:count], f"uid-p{number}", 100)


@pytest.mark.parametrize(
    ("gpu", "own", "end", "milliseconds"),
    [
        ("V100", 100, 500, (55 + 0.80) / 0.9),
        ("V100", 191, 1024, (55 + 0.80) / 0.9),
        ("V100", 192, 1025, (-295 + 600 - 235.9296 + (4.65e-4 * 1025 + 0.398) / 2) / 0.9),
        ("V100", 384, 384, (0.27106428 * 384 + 10.52444263 + 0.80) / 0.9),
        ("V100", 1024, 2048, (0.27106428 * 1024 + 10.52444263 + (0.95232 + 0.398) / 2) / 0.9),
        ("V100", 1025, 2048, (0.27106428 * 1025 + 10.52444263 + 0.95232 + 0.398) / 0.9),
        ("V100", 0, 2048, (55 + 0.95232 + 0.398) / 0.9),
        (
            "V100",
            4096,
            4096,
            (
                (0.27106428 * 4096 + 10.52444263)
                + (4.65e-4 * 4096 + 0.398)
                + (-18.425 + 9.65e-3 * 4096 + 5.4e-6 * 4096**2)
            )
            / 0.9,
        ),
        ("A6000", 100, 500, (22 + 0.32) / 0.9),
        ("A6000", 300, 1000, (-118 + 1.25 * 300 - 0.00256 * 90_000 + 0.32) / 0.9),
        ("A6000", 400, 2000, (0.10842571 * 400 + 4.209777054806409 + 0.2655) / 0.9),
    ],
)
def test_prompts_take_as_long_as_aibrix_says(
    gpu: str, own: int, end: int, milliseconds: float
) -> None:
    assert PREBLE_CURVES[gpu](own, end) == pytest.approx(milliseconds)


def test_the_curves_are_those_that_settings_name() -> None:
    assert tuple(PREBLE_CURVES) == PREBLE_GPUS


def test_the_cost_is_missed_work_shared_by_pods_and_answers() -> None:
    state = make_state()
    state.recent.add(Leg.DECODE, (10,), "uid-p0", 1000, 600)  # 400 of its own: 119.0 ms on a V100.
    state.recent.add(Leg.DECODE, (10,), "uid-p1", 1000, 1000)
    state.recent.add(Leg.DECODE, (20,), "uid-p1", 100, 0)  # 62 ms.
    work = PREBLE_CURVES["V100"](400, 1000)
    short = PREBLE_CURVES["V100"](100, 100)
    missed = 1 - 1600 / 2100
    last = choose(state).last
    # The first prompt came twice, and is on two pods.
    costs = [missed * 2 * work / 2 + 3, missed * (2 * work / 2 + short) + 6, 0.0]
    assert last.scores == pytest.approx(costs)
    assert last.pod.name == "p2"


@pytest.mark.parametrize(
    ("blocks", "loads", "chosen"),
    [
        # More than half: the pods that have most of it, by their requests of late.
        ((3, 0, 0), (9, 0, 0), "p0"),
        ((3, 4, 0), (0, 9, 0), "p1"),
        ((3, 3, 1), (2, 1, 0), "p1"),
        # Half is not more than half: by cost.
        ((2, 0, 0), (9, 1, 3), "p1"),
        ((0, 0, 0), (9, 3, 1), "p2"),
    ],
)
def test_the_rule_is_prebles(blocks: tuple[int, ...], loads: tuple[int, ...], chosen: str) -> None:
    state = make_state()
    cache(state, *blocks)
    for number, load in enumerate(loads):
        for each in range(load):
            state.recent.add(Leg.DECODE, (1000 * (number + 1) + each,), f"uid-p{number}", 500, 0)
    for name in ("prefix-cache-preble", "prefix-cache-preble,least-gpu-cache"):
        assert choose(state, name).last.pod.name == chosen


def test_alone_only_those_with_the_fewest_requests_are_looked_at_where_they_differ_much() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    state = make_state(ledger)
    for _ in range(9):
        ledger.start(Leg.DECODE, "uid-p0")
    cache(state, 4, 3, 0)
    decision = choose(state)
    assert decision.last.pod.name == "p1"
    assert decision.notes[0].startswith("prefix-cache-preble: pods differ by 9 requests")
    assert choose(state, "prefix-cache-preble,least-gpu-cache").last.pod.name == "p0"


def test_what_is_sent_is_noted_with_what_was_cached_before() -> None:
    state = make_state()
    decision = choose(state)
    uid = decision.last.pod.uid
    note_prompt(FACTS, decision, state)
    assert state.recent.find_miss_rate(Leg.DECODE) == 1.0
    state.decoded.expect(PREFIX.hashes[:3], uid, 400)
    note_prompt(FACTS, decision, state)
    assert state.recent.find_miss_rate(Leg.DECODE) == pytest.approx(1 - 300 / 800)
    assert state.recent.measure(uid).requests == 2
    # What goes to a prefill pod is none of the others' business.
    assert state.recent.find_miss_rate(Leg.PREFILL) == 1.0


def test_the_window_forgets_what_is_old_and_pods_that_are_gone() -> None:
    now = 0.0
    recent = RecentPrompts(60.0, lambda: now)
    recent.add(Leg.DECODE, (1,), "a", 100, 0)
    recent.add(Leg.DECODE, (1,), "b", 100, 100)
    recent.add(Leg.DECODE, (), "a", 10, 0)
    recent.add(Leg.DECODE, (), "a", 10, 0)
    work, short = PREBLE_CURVES["V100"](100, 100), PREBLE_CURVES["V100"](10, 10)
    assert recent.measure("a") == pytest.approx((4, work + 2 * short, 2))
    recent.forget("b")
    assert recent.measure("a") == pytest.approx((4, 2 * work + 2 * short, 2))
    assert recent.measure("b") == PodWork()
    now = 61.0
    assert recent.find_miss_rate(Leg.DECODE) == 1.0
    assert (len(recent), recent.measure("a")) == (0, PodWork())


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.floats(0, 40)), max_size=60)
)
def test_what_is_known_of_pods_is_what_the_window_holds(
    events: list[tuple[int, str, float]],
) -> None:
    now = 0.0
    recent = RecentPrompts(60.0, lambda: now)
    added: list[tuple[float, int, str]] = []
    for key, uid, seconds in events:
        now += seconds
        recent.add(Leg.DECODE, (key,), uid, 100, 0)
        added.append((now, key, uid))
        window = [(one, pod) for at, one, pod in added if at >= now - 60.0]
        assert len(recent) == len(window)
        for pod in "abc":
            keys = {one for one, where in window if where == pod}
            known = recent.measure(pod)
            assert known.prompts == len(keys)
            assert known.requests == sum(one in keys for one, _ in window)
            shares = sum(
                1 / len({where for other, where in window if other == one})
                for one, _ in window
                if one in keys
            )
            assert known.work == pytest.approx(shares * PREBLE_CURVES["V100"](100, 100))
