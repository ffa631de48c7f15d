"""Which share of its time, of late, a pod has had something to do."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.busy_shares import BusyShare
from pdrouter.load.ledger import Ledger


def test_a_pod_is_busy_as_long_as_it_has_requests() -> None:
    share = BusyShare()
    assert share.measure(0.0) == 0.0
    share.begin(0.0)
    assert share.measure(5.0) == pytest.approx(1 - exp(-0.5))
    share.end(5.0)
    busy = 1 - exp(-0.5)
    assert share.measure(5.0) == pytest.approx(busy)
    assert share.measure(15.0) == pytest.approx(busy * exp(-1))


def test_others_requests_make_a_pod_busy_too() -> None:
    share = BusyShare()
    share.note_others(0.0, busy=False)
    share.note_others(0.0, busy=True)
    share.note_others(5.0, busy=True)
    share.begin(7.0)
    share.note_others(8.0, busy=False)
    share.end(10.0)
    assert share.measure(10.0) == pytest.approx(1 - exp(-1))


def test_a_pod_is_busy_from_its_first_leg_to_the_end_of_its_last() -> None:
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    first = ledger.start(Leg.DECODE, "a")
    now = 2.0
    second = ledger.start(Leg.PREFILL, "a")
    now = 3.0
    first.release()
    now = 5.0
    second.release()
    now = 15.0
    assert ledger.measure_busy(["a"]) == pytest.approx([(1 - exp(-0.5)) * exp(-1)])


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
    share, now = BusyShare(), 0.0
    for begins, seconds in events:
        now += seconds
        if begins:
            share.begin(now)
        else:
            share.end(now)
        assert 0.0 <= share.measure(now) <= 1.0
