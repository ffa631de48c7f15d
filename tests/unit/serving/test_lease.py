"""A handle whose blocks may be freed before they are fetched is not sent."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.serving.lease import Leases

LEASE_S = 30.0
WRITTEN = 1_790_000_000
"""When the engine has written the answer, by its own clock."""


def is_late(
    waited_s: float, expiry: float | None = None, date: str = formatdate(WRITTEN, usegmt=True)
) -> bool:
    """Return whether an answer is late that has waited since it was asked for."""
    leases = Leases(LEASE_S, lambda: 1000.0)
    leases.note_lag(waited_s)
    return leases.is_late(waited_s, date, expiry)


@pytest.mark.parametrize(("waited_s", "late"), [(0, False), (26.9, False), (27.1, True)])
def test_nine_tenths_of_the_lease_are_used(waited_s: float, late: bool) -> None:
    assert is_late(waited_s) is late


@pytest.mark.parametrize(("waited_s", "late"), [(0, False), (8.9, False), (9.1, True)])
def test_an_expiry_counts_from_when_the_answer_was_written(waited_s: float, late: bool) -> None:
    assert is_late(waited_s, WRITTEN + 10.0) is late


def test_a_longer_lease_than_usual_counts_too() -> None:
    assert not is_late(300, WRITTEN + 480.0)


@pytest.mark.parametrize("waited_s", [0, 0.1])
def test_blocks_that_are_freed_already_are_late(waited_s: float) -> None:
    assert is_late(waited_s, WRITTEN - 5.0)


@given(skew=st.floats(-1e6, 1e6))
def test_the_clocks_of_pods_may_differ(skew: float) -> None:
    date = formatdate(WRITTEN + skew, usegmt=True)
    written = int(WRITTEN + skew)
    assert not is_late(10, written + 20.0, date)
    assert is_late(20, written + 20.0, date)


@pytest.mark.parametrize("expiry", [0.0, 12_345.678, 1e14])
def test_an_expiry_by_another_clock_is_not_taken_for_one(expiry: float) -> None:
    assert not is_late(10, expiry)
    assert is_late(30, expiry)


@pytest.mark.parametrize("date", ["", "soon", "Thu, 99 Foo 2026", "Mon, 01 Jan 0000 00:00:00 GMT"])
def test_without_a_date_the_usual_lease_counts(date: str) -> None:
    assert not is_late(10, WRITTEN + 1.0, date)
    assert is_late(30, WRITTEN + 1.0, date)


class Standstill:
    """A process that is stopped for a while, as its event loop sees it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.leases = Leases(LEASE_S, lambda: self.now)

    def pass_time(self, seconds: float, *, stopped: bool = False) -> None:
        self.now += seconds
        self.leases.note_lag(seconds if stopped else 0.005)

    def is_late(self, asked_s_ago: float) -> bool:
        return self.leases.is_late(asked_s_ago, "", None)


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
