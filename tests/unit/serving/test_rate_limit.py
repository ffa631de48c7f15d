"""A model's requests per second: bursts up to the limit, then an even rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.serving.rate_limit import RateLimiter


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 1000])
def test_as_many_as_a_second_allows_pass_at_once(limit: int, time: Time) -> None:
    limiter = RateLimiter(time)
    assert [limiter.admit("m", limit) for _ in range(limit)] == [0.0] * limit
    assert limiter.admit("m", limit) == pytest.approx(1 / limit)


def test_a_request_passes_when_the_time_that_it_was_told_is_over(time: Time) -> None:
    limiter = RateLimiter(time)
    while not (wait := limiter.admit("m", 4)):
        pass
    time.now += wait * 0.9
    assert limiter.admit("m", 4) > 0
    time.now += wait * 0.1
    assert limiter.admit("m", 4) == 0
    assert limiter.admit("m", 4) > 0


def test_a_refused_request_costs_nothing(time: Time) -> None:
    limiter = RateLimiter(time)
    limiter.admit("m", 1)
    assert {limiter.admit("m", 1) for _ in range(5)} == {1.0}


def test_what_was_not_used_in_a_second_is_lost(time: Time) -> None:
    limiter = RateLimiter(time)
    limiter.admit("m", 2)
    time.now += 3600
    assert [bool(limiter.admit("m", 2)) for _ in range(3)] == [False, False, True]


def test_models_have_limits_of_their_own(time: Time) -> None:
    limiter = RateLimiter(time)
    assert limiter.admit("a", 1) == limiter.admit("b", 1) == 0
    assert limiter.admit("a", 1) == limiter.admit("b", 1) == 1


def test_a_request_that_was_not_served_can_be_given_back(time: Time) -> None:
    limiter = RateLimiter(time)
    limiter.admit("m", 1)
    limiter.give_back("m", 1)
    limiter.give_back("unknown", 1)
    assert limiter.admit("m", 1) == 0
    assert limiter.admit("m", 1) == 1


@given(
    st.integers(1, 20),
    st.lists(st.floats(0, 0.5), min_size=1, max_size=80),
)
def test_no_second_lets_more_than_twice_the_limit_pass(limit: int, gaps: list[float]) -> None:
    time = Time()
    limiter = RateLimiter(time)
    passed = []
    for gap in gaps:
        time.now += gap
        if not limiter.admit("m", limit):
            passed.append(time.now)
    for start in passed:
        assert sum(start <= moment < start + 1 for moment in passed) <= 2 * limit
    assert len(passed) <= limit + (time.now - 1000.0) * limit + 1e-3


def test_models_that_are_idle_take_no_memory_for_ever(time: Time) -> None:
    limiter = RateLimiter(time)
    for number in range(5000):
        limiter.admit(f"m{number}", 1)
        time.now += 0.01
    assert len(limiter._paid_until) <= 1024
