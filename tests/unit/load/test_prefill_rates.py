"""How fast pods are: learnt from what they have done."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates, round_up


def learn(rates: PrefillRates, curve: Callable[[int], float], *, factors: dict[str, float]) -> None:
    random = Random(1)
    for _ in range(400):
        uid = random.choice(sorted(factors))
        tokens = int(random.lognormvariate(8.5, 1))
        noise = random.uniform(0.9, 1.1)
        rates.observe(uid, tokens, curve(tokens) * factors[uid] * noise)


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
    rates.observe("a", 200, 0.5)
    before = rates.predict("a", 100)
    frozen = rates.freeze()
    assert frozen.predict("a", 100) == pytest.approx(before)
    rates.observe("a", 200, 5.0)
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
    rates.observe("a", tokens, seconds)
    assert rates.predict("a", 8000) == pytest.approx(1.0)


def test_legs_that_end_together_share_their_time() -> None:
    rates = PrefillRates(1000)
    for _ in range(300):
        # Four at once, in two seconds.
        for seconds in (2.0, 0.0, 0.0, 0.0):
            rates.observe("a", 1000, seconds)
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
        rates.observe(uid, tokens, seconds)
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
    ("tokens", "rounded"),
    [(1, 128), (128, 128), (129, 1024), (1024, 1024), (1025, 2048), (2049, 3072)],
)
def test_static_shapes_round_prompts_up(tokens: int, rounded: int) -> None:
    assert round_up(tokens, (128, 1024)) == rounded


def test_engines_of_static_shapes_are_learnt_and_predicted_by_their_buckets() -> None:
    rates = PrefillRates(1000, (512, 4096))
    assert rates.predict("a", 1) == pytest.approx(0.512)
    for _ in range(500):
        rates.observe("a", 30, 0.1)
        rates.observe("a", 700, 0.8)
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
        rates.observe(random.choice("abcdefgh"), tokens, seconds)
    for uid in "abcdefgh":
        assert rates.predict(uid, 1000) == pytest.approx(0.1, rel=0.8)
    # Half of the legs take no time: that is how far factors of equal pods are from each other.
    assert 0.05 < rates.predict("new", 1000) < 0.15
