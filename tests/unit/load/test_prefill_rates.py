"""How fast pods are: learnt from what they have done."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.static_shapes import ANY_SHAPE, StaticShapes


def learn(rates: PrefillRates, curve: Callable[[int], float], *, factors: dict[str, float]) -> None:
    random = Random(1)
    for _ in range(400):
        uid = random.choice(sorted(factors))
        tokens = int(random.lognormvariate(8.5, 1))
        noise = random.uniform(0.9, 1.1)
        rates.observe(uid, rates.default.weigh(tokens, 0), curve(tokens) * factors[uid] * noise)


def test_before_anything_is_known_the_guess_holds() -> None:
    assert PrefillRates(1000).predict("a", 500) == pytest.approx(0.5)


@pytest.mark.parametrize("quadratic", [0.0, 2e-9])
def test_curve_and_pods_are_learnt(quadratic: float) -> None:
    def curve(tokens: int) -> float:
        return tokens / 6000 + tokens * tokens * quadratic

    rates = PrefillRates()
    learn(rates, curve, factors={"a": 1.0, "b": 1.0, "slow": 2.0})
    for tokens in (1_000, 10_000, 80_000):
        for uid in "ab":
            assert rates.predict(uid, tokens) == pytest.approx(curve(tokens), rel=0.15)
        assert rates.predict("slow", tokens) == pytest.approx(2 * curve(tokens), rel=0.15)


def test_what_is_frozen_stays_as_it_was() -> None:
    rates = PrefillRates(1000.0, (128, 256))
    rates.observe("a", rates.default.weigh(200, 0), 0.5)
    before = rates.predict("a", 100)
    frozen = rates.freeze()
    assert frozen.predict("a", 100) == pytest.approx(before)
    rates.observe("a", rates.default.weigh(200, 0), 5.0)
    rates.forget("a")
    assert frozen.predict("a", 100) == pytest.approx(before)
    assert rates.predict("a", 100) != pytest.approx(before)


def test_a_pod_that_is_gone_is_forgotten() -> None:
    rates = PrefillRates()
    learn(rates, lambda tokens: tokens / 6000, factors={"a": 1.0, "slow": 3.0})
    rates.forget("slow")
    rates.forget("nobody")
    assert rates.predict("slow", 1000) == rates.predict("new", 1000)


@pytest.mark.parametrize(("tokens", "seconds"), [(0, 1.0), (-1, 1.0), (10, -1.0)])
def test_what_cannot_be_is_not_learnt(tokens: int, seconds: float) -> None:
    rates = PrefillRates()
    rates.observe("a", rates.default.weigh(tokens, 0), seconds)
    assert rates.predict("a", 8000) == pytest.approx(1.0)


def test_legs_that_end_together_share_their_time() -> None:
    rates = PrefillRates(1000)
    for _ in range(300):
        # Four at once, in two seconds.
        for seconds in (2.0, 0.0, 0.0, 0.0):
            rates.observe("a", rates.default.weigh(1000, 0), seconds)
    assert rates.predict("a", 4000) == pytest.approx(2, rel=0.25)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 200_000), st.floats(0, 1e4)),
        max_size=60,
    )
)
@settings(deadline=None)
def test_whatever_is_learnt_more_tokens_take_longer(
    observations: list[tuple[str, int, float]],
) -> None:
    rates = PrefillRates()
    for uid, tokens, seconds in observations:
        rates.observe(uid, rates.default.weigh(tokens, 0), seconds)
        for pod in "abc":
            predictions = [rates.predict(pod, count) for count in (1, 100, 10_000, 1_000_000)]
            assert predictions == sorted(predictions)
            assert predictions[0] > 0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_is_the_work_ahead_less_what_is_done_of_it() -> None:
    clock = Clock()
    ledger = Ledger(PrefillRates(1000), clock)
    assert ledger.predict_prefill_wait("a") == 0
    first = ledger.start(Leg.PREFILL, "a", 1000)
    ledger.start(Leg.PREFILL, "a", 500)
    assert ledger.predict_prefill_wait("a") == pytest.approx(1.5)
    clock.now += 0.4
    assert ledger.predict_prefill_wait("a") == pytest.approx(1.1)
    clock.now += 0.6
    assert ledger.predict_prefill_wait("a") == pytest.approx(0.5)
    first.complete()
    first.release()
    assert ledger.predict_prefill_wait("a") == pytest.approx(0.5)


def test_what_waits_is_predicted_by_what_has_been_learnt_since_it_was_sent() -> None:
    clock = Clock()
    ledger = Ledger(PrefillRates(8000), clock)
    queue = [ledger.start(Leg.PREFILL, "a", 8000) for _ in range(10)]
    for scope in queue[:5]:
        # The pods are ten times slower than was assumed.
        clock.now += 10
        with scope:
            scope.complete()
    assert ledger.predict_prefill_wait("a") == pytest.approx(50, rel=0.3)


def test_a_leg_may_leave_the_queue_out_of_turn() -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    first, second, third = (ledger.start(Leg.PREFILL, "a", tokens) for tokens in (1000, 2000, 4000))
    second.release()
    assert ledger.predict_prefill_wait("a") == pytest.approx(5)
    first.release()
    assert ledger.predict_prefill_wait("a") == pytest.approx(4)
    third.release()
    assert ledger.predict_prefill_wait("a") == 0


def test_a_leg_is_learnt_from_with_the_legs_beside_it() -> None:
    """Time is shared out by what all are predicted to take, not by the one leg alone."""
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    ledger.note_others("a", 1)
    for _ in range(100):
        waiting = ledger.start(Leg.PREFILL, "a", 3000)
        with ledger.start(Leg.PREFILL, "a", 1000) as scope:
            clock.now += 1
            scope.complete()
        waiting.release()
    # Others' legs, of 2,000 tokens in the mean, were given a third of each second.
    assert rates.predict("a", 1000) == pytest.approx(2 / 3, rel=0.1)


def test_a_leg_that_is_overdue_is_not_taken_for_done() -> None:
    clock = Clock()
    ledger = Ledger(PrefillRates(1000), clock)
    ledger.start(Leg.PREFILL, "a", 1000)
    clock.now += 31
    assert ledger.predict_prefill_wait("a") == pytest.approx(30)


def test_a_leg_teaches_from_when_its_pod_came_to_it() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    scopes = [ledger.start(Leg.PREFILL, "a", 1000) for _ in range(30)]
    for scope in scopes:
        # Each takes two seconds, and waits for those before it.
        clock.now += 2
        with scope:
            scope.complete()
    assert rates.predict("a", 1000) == pytest.approx(2, rel=0.1)


def test_one_leg_that_stalls_does_not_keep_requests_from_its_pod_for_long() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    for _ in range(20):
        with ledger.start(Leg.PREFILL, "a", 1000) as scope:
            clock.now += 1
            scope.complete()
    with ledger.start(Leg.PREFILL, "a", 1000) as scope:
        clock.now += 600
        scope.complete()
    assert rates.predict("a", 1000) < 1.5


def test_legs_of_others_are_waited_for_as_for_own() -> None:
    clock = Clock()
    ledger = Ledger(PrefillRates(1000), clock)
    for _ in range(300):
        ledger.start(Leg.PREFILL, "b", 2000).release()
    ledger.note_others("a", 3)
    assert ledger.predict_prefill_wait("a") == pytest.approx(6, rel=0.02)
    ledger.start(Leg.PREFILL, "a", 1000)
    assert ledger.predict_prefill_wait("a") == pytest.approx(7, rel=0.02)
    ledger.note_others("a", 0)
    assert ledger.predict_prefill_wait("a") == pytest.approx(1)
    ledger.note_others("a", 3)
    ledger.forget("a")
    assert ledger.predict_prefill_wait("a") == pytest.approx(1)


def test_a_pod_that_works_for_others_too_is_not_taken_for_slow() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    ledger.note_others("a", 1)
    for _ in range(100):
        with ledger.start(Leg.PREFILL, "a", 1000) as scope:
            clock.now += 2
            scope.complete()
    assert rates.predict("a", 1000) == pytest.approx(1, rel=0.1)


def test_a_leg_with_nothing_to_compute_teaches_nothing() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    with Ledger(rates, clock).start(Leg.PREFILL, "a", 0) as scope:
        clock.now += 50
        scope.complete()
    assert rates.predict("a", 1000) == pytest.approx(1)


def test_a_leg_that_computes_more_than_expected_does_not_look_fast() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    for _ in range(60):
        # It was taken for cached, and was not.
        with ledger.start(Leg.PREFILL, "a", 10) as scope:
            clock.now += 8
            scope.complete(8000)
    assert rates.predict("a", 8000) == pytest.approx(8, rel=0.05)


def test_a_leg_that_failed_teaches_nothing() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    with ledger.start(Leg.PREFILL, "a", 1000):
        clock.now += 50
    assert rates.predict("a", 1000) == pytest.approx(1)


def test_what_the_engine_says_it_has_computed_counts() -> None:
    clock = Clock()
    rates = PrefillRates(1000)
    ledger = Ledger(rates, clock)
    for _ in range(60):
        with ledger.start(Leg.PREFILL, "a", 1000) as scope:
            clock.now += 1
            scope.complete(250)
    assert rates.predict("a", 1000) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("tokens", "passes", "each"),
    [
        (1, 1, 128),
        (128, 1, 128),
        (129, 1, 1024),
        (1024, 1, 1024),
        (1025, 2, 1024),
        (2049, 3, 1024),
    ],
)
def test_static_shapes_take_prompts_in_passes(tokens: int, passes: int, each: int) -> None:
    shapes = StaticShapes((128, 1024))
    assert shapes.divide(tokens) == (passes, each)
    assert shapes.pad(tokens) == passes * each
    assert ANY_SHAPE.divide(tokens) == (1, tokens)


def test_a_prompt_above_the_largest_bucket_takes_as_many_passes_as_it_fills() -> None:
    """Attention makes long prompts dearer per token, and a pass costs what a pass costs."""
    rates = PrefillRates(1000)
    rates.note_buckets("a", (1000, 4000))
    for _ in range(600):
        for tokens, seconds in ((900, 0.2), (3500, 2.0), (4001, 4.0), (12_000, 6.0)):
            rates.observe("a", rates.find_shapes("a").weigh(tokens, 0), seconds)
    for tokens, seconds in ((1, 0.2), (1001, 2.0), (8000, 4.0), (8001, 6.0), (100_000, 50.0)):
        assert rates.predict("a", tokens) == pytest.approx(seconds, rel=0.02)
        assert rates.freeze().predict("a", tokens) == pytest.approx(seconds, rel=0.02)


def test_buckets_are_those_of_the_pod_that_says_them() -> None:
    rates = PrefillRates(1000)
    rates.note_buckets("a", (512, 4096))
    rates.note_buckets("b", (8192,))
    frozen = rates.freeze()
    for predict in (rates.predict, frozen.predict):
        assert [predict(uid, 600) for uid in "abc"] == pytest.approx([4.096, 8.192, 0.6])
    rates.note_buckets("a", (1024,))
    rates.forget("b")
    assert [rates.predict(uid, 600) for uid in "abc"] == pytest.approx([1.024, 0.6, 0.6])
    assert frozen.predict("a", 600) == pytest.approx(4.096)
    rates.note_buckets("a", ())
    assert rates.shapes == {}


def test_buckets_that_are_set_go_before_what_engines_say() -> None:
    rates = PrefillRates(1000, (2000,))
    rates.note_buckets("a", (512, 4096))
    assert [rates.predict(uid, 600) for uid in "ab"] == [2.0, 2.0]


def test_pods_that_are_compiled_alike_share_what_a_prompt_is() -> None:
    rates = PrefillRates(1000)
    for uid in "abc":
        rates.note_buckets(uid, (512, 4096))
    assert rates.find_shapes("a") is rates.find_shapes("b") is rates.find_shapes("c")


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 200_000), st.floats(0, 1e4)), max_size=40
    ),
    st.lists(st.integers(1, 10_000_000), min_size=1, max_size=64, unique=True).map(sorted),
)
@settings(deadline=None)
def test_a_pod_that_says_nothing_is_predicted_as_if_nobody_did(
    observations: list[tuple[str, int, float]], buckets: list[int]
) -> None:
    """Not a bit of any number may differ."""
    rates, others = PrefillRates(), PrefillRates()
    others.note_buckets("elsewhere", buckets)
    for uid, tokens, seconds in observations:
        weight = rates.default.weigh(tokens, 0)
        rates.observe(uid, weight, seconds)
        others.observe(uid, weight, seconds)
    for uid in "abc":
        for tokens in (1, 100, 10_000, 1_000_000):
            assert rates.predict(uid, tokens) == others.predict(uid, tokens)
            assert rates.freeze().predict(uid, tokens) == others.freeze().predict(uid, tokens)
    predictions = [others.predict("elsewhere", tokens) for tokens in (1, 100, 10_000, 1_000_000)]
    assert predictions == sorted(predictions)
    assert predictions[0] > 0
    assert predictions[-1] < float("inf")


def test_engines_of_static_shapes_are_learnt_and_predicted_by_their_buckets() -> None:
    rates = PrefillRates(1000, (512, 4096))
    assert rates.predict("a", 1) == pytest.approx(0.512)
    for _ in range(500):
        rates.observe("a", rates.find_shapes("a").weigh(30, 0), 0.1)
        rates.observe("a", rates.find_shapes("a").weigh(700, 0), 0.8)
    assert rates.predict("a", 512) == pytest.approx(0.1, rel=0.05)
    assert rates.predict("a", 513) == pytest.approx(0.8, rel=0.05)
    ledger = Ledger(rates, lambda: 0.0)
    for tokens in (30, 30, 700):
        ledger.start(Leg.PREFILL, "a", tokens)
    assert ledger.predict_prefill_wait("a") == pytest.approx(1.0, rel=0.05)


def test_curve_and_pods_do_not_drift_apart() -> None:
    random = Random(2)
    rates = PrefillRates(10_000)
    for _ in range(20_000):
        tokens = int(random.lognormvariate(7, 0.5)) + 1
        seconds = 2 * tokens / 10_000 if random.random() < 0.5 else 0.0
        rates.observe(random.choice("abcdefgh"), rates.default.weigh(tokens, 0), seconds)
    for uid in "abcdefgh":
        assert rates.predict(uid, 1000) == pytest.approx(0.1, rel=0.8)
    # Half of the legs take no time: that is how far factors of equal pods are from each other.
    assert 0.05 < rates.predict("new", 1000) < 0.15
