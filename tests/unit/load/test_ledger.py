"""The ledger: no order of starts and releases makes it wrong."""

from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from pdrouter.load.ledger import Ledger, PodLoad, Scope


class LedgerAgainstAList(RuleBasedStateMachine):
    """Any starts and releases, double ones too, compared with a list of what is open."""

    scopes = Bundle("scopes")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.open: dict[Scope, tuple[str, PodLoad]] = {}

    def _note(self, scope: Scope, uid: str, amount: PodLoad) -> Scope:
        self.open[scope] = (uid, amount)
        return scope

    @rule(target=scopes, uid=st.sampled_from("abc"), tokens=st.integers(0, 2**40))
    def start_prefill(self, uid: str, tokens: int) -> Scope:
        return self._note(self.ledger.start_prefill(uid, tokens), uid, PodLoad(1, tokens))

    @rule(target=scopes, uid=st.sampled_from("abc"))
    def start_decode(self, uid: str) -> Scope:
        return self._note(self.ledger.start_decode(uid), uid, PodLoad(decode_requests=1))

    @rule(scope=scopes)
    def release(self, scope: Scope) -> None:
        scope.release()
        self.open.pop(scope, None)

    @rule(scope=scopes)
    def leave_with_an_error(self, scope: Scope) -> None:
        with suppress(RuntimeError), scope:
            raise RuntimeError
        self.open.pop(scope, None)

    @invariant()
    def counts_are_the_sums_of_what_is_open(self) -> None:
        sums: dict[str, PodLoad] = {}
        for uid, amount in self.open.values():
            load = sums.setdefault(uid, PodLoad())
            load.prefill_requests += amount.prefill_requests
            load.prefill_tokens += amount.prefill_tokens
            load.decode_requests += amount.decode_requests
        assert self.ledger.snapshot() == sums
        assert all(self.ledger.load(uid) == sums.get(uid, PodLoad()) for uid in "abc")

    def teardown(self) -> None:
        for scope in self.open:
            scope.release()
        assert self.ledger.snapshot() == {}


TestLedger = LedgerAgainstAList.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_an_unknown_pod_is_idle_and_leaves_no_entry() -> None:
    ledger = Ledger()
    assert ledger.load("nobody") == PodLoad(0, 0, 0)
    assert ledger.snapshot() == {}


def test_a_scope_counts_from_its_start_and_not_from_being_entered() -> None:
    ledger = Ledger()
    scope = ledger.start_prefill("a", 100)
    assert ledger.load("a") == PodLoad(1, 100, 0)
    with scope as entered:
        assert entered is scope
        assert ledger.load("a") == PodLoad(1, 100, 0)
    assert ledger.snapshot() == {}


def test_an_error_inside_a_scope_is_not_swallowed() -> None:
    ledger = Ledger()
    with pytest.raises(RuntimeError, match="inside"), ledger.start_decode("a"):
        raise RuntimeError("inside")
    assert ledger.snapshot() == {}


def test_a_snapshot_stays_as_it_was() -> None:
    ledger = Ledger()
    scope = ledger.start_decode("a")
    snapshot = ledger.snapshot()
    ledger.start_decode("a")
    assert snapshot == {"a": PodLoad(decode_requests=1)}
    scope.release()
    assert ledger.load("a") == PodLoad(decode_requests=1)


def test_a_leg_on_a_pod_that_is_gone_teaches_nothing() -> None:
    ledger = Ledger()
    before = ledger.rates.predict("p", 1000)
    with ledger.start_prefill("p", 1000) as scope:
        ledger.forget("p")
        scope.complete(100_000)
    assert ledger.rates.predict("p", 1000) == before
    assert ledger.snapshot() == {}
