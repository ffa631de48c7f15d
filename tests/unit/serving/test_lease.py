"""A handle whose blocks may be freed before they are fetched is not sent."""

from email.utils import formatdate

import pytest
from factories import make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.serving.lease import Leases
from pdrouter.serving.leg_outcome import LegAnswer

LEASE_S = 30.0
WRITTEN = 1_790_000_000
"""When the engine has written the answer, by its own clock."""


def is_late(answer: LegAnswer, expiry: float | None, lease_s: float, now: float) -> bool:
    return Leases(lease_s, lambda: now).is_late(answer, expiry)


def answered(at: float | None, date: str = formatdate(WRITTEN, usegmt=True)) -> LegAnswer:
    return LegAnswer(Leg.PREFILL, make_pod(), "id", b"", None, at, date)


@pytest.mark.parametrize(("now", "late"), [(100, False), (126.9, False), (127.1, True)])
def test_nine_tenths_of_the_lease_are_used(now: float, late: bool) -> None:
    assert is_late(answered(100.0), None, LEASE_S, now) is late


def test_an_answer_of_which_nobody_knows_when_it_came_is_not_late() -> None:
    assert not is_late(answered(None), None, LEASE_S, 1e9)


@pytest.mark.parametrize(("now", "late"), [(100, False), (108.9, False), (109.1, True)])
def test_an_expiry_counts_from_when_the_answer_was_written(now: float, late: bool) -> None:
    assert is_late(answered(100.0), WRITTEN + 10.0, LEASE_S, now) is late


def test_a_longer_lease_than_usual_counts_too() -> None:
    assert not is_late(answered(100.0), WRITTEN + 480.0, LEASE_S, 400)


def test_blocks_that_are_freed_already_are_late() -> None:
    assert is_late(answered(100.0), WRITTEN - 5.0, LEASE_S, 100.1)


@given(skew=st.floats(-1e6, 1e6))
def test_the_clocks_of_pods_may_differ(skew: float) -> None:
    date = formatdate(WRITTEN + skew, usegmt=True)
    written = int(WRITTEN + skew)
    assert not is_late(answered(100.0, date), written + 20.0, LEASE_S, 110)
    assert is_late(answered(100.0, date), written + 20.0, LEASE_S, 120)


@pytest.mark.parametrize("expiry", [0.0, 12_345.678, 1e14])
def test_an_expiry_by_another_clock_is_not_taken_for_one(expiry: float) -> None:
    assert not is_late(answered(100.0), expiry, LEASE_S, 110)
    assert is_late(answered(100.0), expiry, LEASE_S, 130)


@pytest.mark.parametrize("date", ["", "soon", "Thu, 99 Foo 2026", "Mon, 01 Jan 0000 00:00:00 GMT"])
def test_without_a_date_the_usual_lease_counts(date: str) -> None:
    assert not is_late(answered(100.0, date), WRITTEN + 1.0, LEASE_S, 110)
    assert is_late(answered(100.0, date), WRITTEN + 1.0, LEASE_S, 130)


class Standstill:
    """A process that is stopped for a while, as its event loop sees it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.leases = Leases(LEASE_S, lambda: self.now)

    def pass_time(self, seconds: float, *, stopped: bool = False) -> None:
        self.now += seconds
        self.leases.note_lag(seconds if stopped else 0.005)

    def is_late(self, asked_s_ago: float) -> bool:
        return self.leases.is_late(answered(self.leases.find_arrival(asked_s_ago)), None)


def test_what_is_read_after_a_standstill_may_have_waited_for_all_of_it() -> None:
    process = Standstill()
    assert not process.is_late(40)
    process.pass_time(29, stopped=True)
    assert process.is_late(40)


def test_a_short_standstill_makes_nothing_late() -> None:
    process = Standstill()
    process.pass_time(20, stopped=True)
    assert not process.is_late(40)


def test_what_was_asked_after_the_standstill_has_not_waited_in_it() -> None:
    process = Standstill()
    process.pass_time(29, stopped=True)
    process.pass_time(0.2)
    assert process.is_late(40)
    assert not process.is_late(0.2)


def test_a_standstill_is_over_some_time() -> None:
    process = Standstill()
    process.pass_time(29, stopped=True)
    process.pass_time(2)
    assert not process.is_late(40)


def test_a_busy_loop_has_not_stood_still() -> None:
    process = Standstill()
    for _ in range(1000):
        process.now += 0.09
        process.leases.note_lag(0.07)
    assert not process.is_late(80)
