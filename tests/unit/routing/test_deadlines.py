"""When requests are due, and that no class of them waits for ever."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.routing.deadlines import (
    Deadline,
    DeadlineRules,
    assume_deadline,
    number_deadline,
)
from pdrouter.settings.kinds import LONGEST_TARGET_S


def test_a_request_that_does_not_say_when_it_is_due_may_take_as_long_as_its_prompt_suggests() -> (
    None
):
    rates = PrefillRates(1000)
    short = assume_deadline(DeadlineRules(1.0, 2.0), 500, rates, came=10.0)
    long = assume_deadline(DeadlineRules(1.0, 2.0), 30_000, rates, came=10.0)
    assert short.target_s == pytest.approx(2.0)
    assert short.due == pytest.approx(12.0)
    assert long.due == pytest.approx(71.0)
    assert not short.binding


def test_all_routers_give_the_same_number_to_the_same_moment() -> None:
    deadline = Deadline(due=105.25, target_s=5.25, source="x")
    assert number_deadline(deadline, now=100.0, wall_s=1_800_000_000.0) == 1_800_000_005_250
    # Of another router: its own clock, and a moment later.
    other = Deadline(due=5.25, target_s=5.25, source="x")
    assert number_deadline(other, now=1.0, wall_s=1_800_000_001.0) == 1_800_000_005_250


@given(st.floats(0, 1e9), st.floats(0.001, LONGEST_TARGET_S), st.floats(1.7e9, 4e9))
def test_a_number_fits_what_json_and_engines_can_hold(
    now: float, target_s: float, wall_s: float
) -> None:
    number = number_deadline(Deadline(now + target_s, target_s), now, wall_s)
    assert 0 < number < 2**53


@given(
    st.lists(
        st.tuples(
            st.floats(0, 2),  # Seconds since the one before came.
            st.sampled_from([0.1, 1.0, 30.0, 300.0]),  # The target of its class.
            st.floats(0.01, 5),  # Seconds of work.
        ),
        min_size=1,
        max_size=60,
    )
)
def test_nobody_is_passed_by_those_who_come_later_than_he_is_due(
    requests: list[tuple[float, float, float]],
) -> None:
    """However busy other classes are, an engine comes to a request before all of these.

    So a request waits for no more than the work that comes until it is due, and its class does not
    starve. With ranks in place of moments, it would wait as long as any of a better class came.
    """
    arrivals, came = [], 0.0
    for number, (gap, target_s, work_s) in enumerate(requests):
        came += gap
        priority = number_deadline(Deadline(came + target_s, target_s), came, 1.8e9 + came)
        arrivals.append((came, priority, number, target_s, work_s))
    started: dict[int, float] = {}
    waiting: list[tuple[int, int, float]] = []
    now, left = 0.0, list(arrivals)
    while left or waiting:
        while left and left[0][0] <= now:
            _, priority, number, _, work_s = left.pop(0)
            heapq.heappush(waiting, (priority, number, work_s))
        if not waiting:
            now = left[0][0]
            continue
        _, number, work_s = heapq.heappop(waiting)
        started[number] = now
        now += work_s
    for came, _, number, target_s, _ in arrivals:
        for other, _, later, _, _ in arrivals:
            # A number is a whole millisecond.
            if other > came + target_s + 0.001:
                assert started[number] <= started[later]
