"""The rate at which a pod completes requests, of late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.drain_rates import DrainRate
from pdrouter.load.ledger import Ledger


class Time:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("start", [0.0, 3.7, 1_000_003.2])
@pytest.mark.parametrize(("after", "known"), [(0, False), (9.99, False), (10.01, True)])
def test_a_rate_needs_ten_seconds_of_history(start: float, after: float, known: bool) -> None:
    drain = DrainRate()
    drain.since = start
    drain.note(start)
    assert (drain.measure(start + after) is not None) is known


@pytest.mark.parametrize(
    ("per_second", "seconds"), [(1, 10), (2, 30), (4, 59), (4, 61), (1, 300), (8, 1000)]
)
def test_an_even_rate_is_found(per_second: int, seconds: int) -> None:
    drain = DrainRate()
    drain.since = 0.0
    for number in range(per_second * seconds):
        drain.note(number / per_second)
    assert drain.measure(seconds) == pytest.approx(per_second, rel=0.03)


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    drain = DrainRate()
    drain.since = 0.0
    for _ in range(100):
        drain.note(1.0)
    assert drain.measure(55.0) == pytest.approx(100 / 55)
    assert drain.measure(60.0) == 0.0
    assert drain.measure(3600.0) == 0.0


def test_a_pod_that_is_gone_leaves_nothing_behind_even_if_requests_end_later() -> None:
    time = Time()
    ledger = Ledger(clock=time)
    with ledger.start(Leg.PREFILL, "a", 5) as scope:
        ledger.forget("a")
        scope.complete()
    ledger.forget("never there")
    time.now = 100.0
    assert ledger.drain_rate("a") is None
    assert not ledger.knows("a")


@given(st.lists(st.floats(0, 30), max_size=60), st.floats(10, 80))
def test_the_rate_is_what_the_last_minute_or_so_had(gaps: list[float], last: float) -> None:
    drain = DrainRate()
    drain.since = 0.0
    moments = []
    now = 0.0
    for gap in gaps:
        now += gap
        drain.note(now)
        moments.append(now)
        drain.measure(now)  # Reading in between changes nothing.
    now += last
    rate = drain.measure(now)
    assert rate is not None
    lower = sum(moment > now - 55 for moment in moments)
    upper = sum(moment >= now - 60 for moment in moments)
    assert lower / min(now, 60) - 1e-9 <= rate <= upper / min(now, 55) + 1e-9


def test_the_ledger_counts_what_was_carried_out() -> None:
    time = Time()
    ledger = Ledger(clock=time)
    for _ in range(10):
        ledger.start(Leg.DECODE, "d").release()
        with ledger.start(Leg.PREFILL, "p", 5) as scope:
            scope.complete()
        ledger.start(Leg.PREFILL, "failing", 5).release()
    time.now = 20.0
    assert ledger.drain_rate("d") == ledger.drain_rate("p") == 0.5
    assert ledger.drain_rate("failing") == 0.0
    assert ledger.drain_rate("unknown") is None
