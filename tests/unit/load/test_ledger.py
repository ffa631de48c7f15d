"""The ledger: no order of starts and releases makes it wrong."""

from contextlib import suppress
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import LegLoad, Scope
from pdrouter.load.prefill_rates import PrefillRates


class LedgerAgainstAList(RuleBasedStateMachine):
    """Any starts and releases, double ones too, compared with a list of what is open."""

    scopes = Bundle("scopes")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.open: set[Scope] = set()

    def _note(self, scope: Scope) -> Scope:
        self.open.add(scope)
        return scope

    @rule(target=scopes, uid=st.sampled_from("abc"), tokens=st.integers(0, 2**40))
    def start_prefill(self, uid: str, tokens: int) -> Scope:
        return self._note(self.ledger.start(Leg.PREFILL, uid, tokens))

    @rule(target=scopes, uid=st.sampled_from("abc"))
    def start_decode(self, uid: str) -> Scope:
        return self._note(self.ledger.start(Leg.DECODE, uid))

    @rule(scope=scopes)
    def release(self, scope: Scope) -> None:
        scope.release()
        self.open.discard(scope)

    @rule(scope=scopes)
    def leave_with_an_error(self, scope: Scope) -> None:
        with suppress(RuntimeError), scope:
            raise RuntimeError
        self.open.discard(scope)

    @invariant()
    def counts_are_the_sums_of_what_is_open(self) -> None:
        sums: dict[str, dict[Leg, LegLoad]] = {}
        for scope in self.open:
            load = sums.setdefault(scope.uid, {}).setdefault(scope.leg, LegLoad())
            load.requests += 1
            load.tokens += scope.tokens
        assert self.ledger.snapshot() == sums
        for leg, uid in product(Leg, "abc"):
            assert self.ledger.load(leg, uid) == sums.get(uid, {}).get(leg, LegLoad())
        for uid in "abc":
            assert self.ledger.count_requests(uid) == [s.uid for s in self.open].count(uid)

    def teardown(self) -> None:
        for scope in self.open:
            scope.release()
        assert self.ledger.snapshot() == {}


TestLedger = LedgerAgainstAList.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_an_unknown_pod_is_idle_and_leaves_no_entry() -> None:
    ledger = Ledger()
    assert [ledger.load(leg, "nobody") for leg in Leg] == [LegLoad()] * len(Leg)
    assert ledger.snapshot() == {}


def test_a_scope_counts_from_its_start_and_not_from_being_entered() -> None:
    ledger = Ledger()
    scope = ledger.start(Leg.PREFILL, "a", 100)
    assert ledger.load(Leg.PREFILL, "a") == LegLoad(1, 100)
    with scope as entered:
        assert entered is scope
        assert ledger.load(Leg.PREFILL, "a") == LegLoad(1, 100)
    assert ledger.snapshot() == {}


def test_an_error_inside_a_scope_is_not_swallowed() -> None:
    ledger = Ledger()
    with pytest.raises(RuntimeError, match="inside"), ledger.start(Leg.DECODE, "a"):
        raise RuntimeError("inside")
    assert ledger.snapshot() == {}


def test_a_snapshot_stays_as_it_was() -> None:
    ledger = Ledger()
    scope = ledger.start(Leg.DECODE, "a")
    snapshot = ledger.snapshot()
    ledger.start(Leg.DECODE, "a")
    assert snapshot == {"a": {Leg.DECODE: LegLoad(1)}}
    scope.release()
    assert ledger.load(Leg.DECODE, "a") == LegLoad(1)


def test_a_leg_on_a_pod_that_is_gone_teaches_nothing() -> None:
    ledger = Ledger()
    before = ledger.rates.predict("p", 1000)
    with ledger.start(Leg.PREFILL, "p", 1000) as scope:
        ledger.forget("p")
        scope.complete(100_000)
    assert ledger.rates.predict("p", 1000) == before
    assert ledger.snapshot() == {}


def test_a_pod_that_takes_first_what_is_due_first_does_only_that_before() -> None:
    now = 0.0
    ledger = Ledger(PrefillRates(1000), lambda: now)
    assert ledger.predict_prefill("p", 0.5, due=9.0) == pytest.approx(1.0)
    for tokens, due in ((1000, 99.0), (2000, 3.0), (4000, 50.0), (8000, None)):
        ledger.start(Leg.PREFILL, "p", tokens, due)
    # The first is under way, whenever it is due; what has no such time is not passed.
    assert ledger.predict_prefill("p", 0.0, due=2.0) == pytest.approx(9.0)
    assert ledger.predict_prefill("p", 0.0, due=3.0) == pytest.approx(11.0)
    assert ledger.predict_prefill("p", 0.0, due=99.0) == pytest.approx(15.0)
    now = 0.4
    assert ledger.predict_prefill("p", 0.0, due=2.0) == pytest.approx(8.6)
    assert ledger.predict_prefill_wait("p") == pytest.approx(14.6)


def test_how_fast_a_pod_is_is_known_for_a_minute_after_a_leg() -> None:
    now = 0.0
    ledger = Ledger(PrefillRates(1000), lambda: now)
    assert not ledger.knows("p")
    with ledger.start(Leg.PREFILL, "p", 1000):
        now = 1.0
    assert not ledger.knows("p")
    with ledger.start(Leg.PREFILL, "p", 1000) as scope:
        now = 2.0
        scope.complete()
    now = 62.0
    assert ledger.knows("p")
    now = 62.1
    assert not ledger.knows("p")
    now = 2.0
    ledger.forget("p")
    assert not ledger.knows("p")
