"""How many requests of a model may be tried again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.load.retry_budget import RetryBudget, RetryRules

MODEL = "llama"


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def count_retries(budget: RetryBudget, model: str = MODEL, *, most: int = 10_000) -> int:
    """Ask for retries until one is refused, and return how many are allowed."""
    return next(number for number in range(most) if not budget.take_retry(model))


def make_budget(share: float, per_second: float) -> tuple[RetryBudget, Clock]:
    clock = Clock()
    return RetryBudget(RetryRules(share, per_second, window_s=10.0), clock), clock


@pytest.mark.parametrize(
    ("share", "per_second", "requests", "retries"),
    [
        (0.2, 0.0, 1000, 200),
        (0.2, 10.0, 1000, 300),
        (0.2, 10.0, 0, 100),
        (0.2, 0.0, 4, 0),
        (0.2, 0.0, 5, 1),
        (0.0, 0.1, 1000, 1),
        (0.0, 0.0, 1000, 0),
        (1.0, 0.0, 7, 7),
    ],
)
def test_retries_are_a_share_of_the_requests_and_some_per_second(
    share: float, per_second: float, requests: int, retries: int
) -> None:
    budget, _ = make_budget(share, per_second)
    for _ in range(requests):
        budget.count_request(MODEL)
    assert count_retries(budget) == retries


def test_what_is_used_up_comes_back_with_time_alone() -> None:
    budget, clock = make_budget(0.0, 1.0)
    assert count_retries(budget) == 10
    clock.now += 9.99
    assert count_retries(budget) == 0
    clock.now += 0.01
    assert count_retries(budget) == 10


def test_it_comes_back_with_further_requests() -> None:
    budget, clock = make_budget(0.5, 0.0)
    for _ in range(10):
        budget.count_request(MODEL)
    assert count_retries(budget) == 5
    for _ in range(4):
        clock.now += 0.1
        budget.count_request(MODEL)
    assert count_retries(budget) == 2


def test_requests_of_long_ago_allow_nothing() -> None:
    budget, clock = make_budget(1.0, 0.0)
    for _ in range(100):
        budget.count_request(MODEL)
    assert budget.take_retry(MODEL)
    clock.now += 2000
    assert not budget.take_retry(MODEL)
    for _ in range(100):
        budget.count_request(MODEL)
    clock.now += 20
    # Twice the window has passed since it was last asked: half of them count.
    assert count_retries(budget) == 50


def test_models_have_budgets_of_their_own() -> None:
    budget, _ = make_budget(0.0, 1.0)
    assert count_retries(budget, "one") == 10
    assert count_retries(budget, "two") == 10


def test_models_that_come_and_go_are_forgotten() -> None:
    budget, _ = make_budget(0.0, 0.1)
    for number in range(5000):
        budget.count_request(f"model-{number}")
        assert budget.take_retry(f"model-{number}")
    assert len(budget._accounts) <= 1024


@given(
    st.floats(0, 1),
    st.floats(0, 5),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 20), st.integers(1, 20)), max_size=60),
)
def test_no_window_has_more_retries_than_its_requests_and_seconds_allow(
    share: float, per_second: float, steps: list[tuple[float, int, int]]
) -> None:
    budget, clock = make_budget(share, per_second)
    requests: list[float] = []
    retries: list[float] = []
    for wait, arriving, asking in steps:
        clock.now += wait
        for _ in range(arriving):
            budget.count_request(MODEL)
            requests.append(clock.now)
        granted = [clock.now for _ in range(asking) if budget.take_retry(MODEL)]
        if not granted:
            continue  # Those of before were for requests of before.
        retries += granted
        recent = sum(at > clock.now - 10 for at in retries)
        # The window begins with a mark, which is up to a tenth and a step before it.
        counted = sum(at >= clock.now - 10 - 1 - 3 for at in requests)
        assert recent <= math.ceil(share * counted + per_second * 10)
