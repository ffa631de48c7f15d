"""Which share of its time, of late, a pod has had something to do."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.busy_shares import BusyShares
from pdrouter.load.ledger import Ledger


def test_a_pod_is_busy_from_its_first_request_to_the_end_of_its_last() -> None:
    shares = BusyShares()
    assert shares.measure("a", 0.0) == 0.0
    shares.begin("a", 0.0)
    shares.begin("a", 2.0)
    shares.end("a", 3.0)
    assert shares.measure("a", 5.0) == pytest.approx(1 - exp(-0.5))
    shares.end("a", 5.0)
    busy = 1 - exp(-0.5)
    assert shares.measure("a", 5.0) == pytest.approx(busy)
    assert shares.measure("a", 15.0) == pytest.approx(busy * exp(-1))
    assert shares.measure("b", 15.0) == 0.0


def test_others_requests_make_a_pod_busy_too() -> None:
    shares = BusyShares()
    shares.note_others("a", 0.0, busy=False)
    shares.note_others("a", 0.0, busy=True)
    shares.note_others("a", 5.0, busy=True)
    shares.begin("a", 7.0)
    shares.note_others("a", 8.0, busy=False)
    shares.end("a", 10.0)
    assert shares.measure("a", 10.0) == pytest.approx(1 - exp(-1))


def test_the_ledger_knows_and_forgets_pods() -> None:
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    with ledger.start(Leg.DECODE, "a"):
        ledger.note_others("b", 3)
        now = 10.0
        assert ledger.measure_busy(["a", "b", "c"]) == pytest.approx([1 - exp(-1)] * 2 + [0.0])
        ledger.forget("a")
    ledger.forget("b")
    assert ledger.measure_busy(["a", "b"]) == [0.0, 0.0]


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=40))
def test_it_is_a_share(events: list[tuple[bool, float]]) -> None:
    shares, now, running = BusyShares(), 0.0, 0
    for begins, seconds in events:
        now += seconds
        if begins:
            shares.begin("a", now)
            running += 1
        elif running:
            shares.end("a", now)
            running -= 1
        assert 0.0 <= shares.measure("a", now) <= 1.0
