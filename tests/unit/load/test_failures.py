"""The memory of failures: who is left out, for how long, and who is let in again."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdrouter.engines.split import Leg
from pdrouter.load.failures import EjectionRules, FailureMemory, Trial

RULES = EjectionRules(after=3, backoff_s=10, longest_s=40, share=0.5)
PREFILL, DECODE = Leg.PREFILL, Leg.DECODE


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A memory with a clock of its own."""

    def __init__(self, **rules: Any) -> None:
        self.clock = Clock()
        chosen = EjectionRules(
            **{"after": 3, "backoff_s": 10, "longest_s": 40, "asks": False, **rules}
        )
        self.memory = FailureMemory(chosen, self.clock, Random(1))

    def fail(self, times: int = 1, uid: str = "a", cause: str = "status-500", **of: Any) -> bool:
        leg = of.pop("leg", DECODE)
        began = of.pop("began", self.clock.now)
        return [self.memory.note_failure(uid, leg, cause, began, **of) for _ in range(times)][-1]

    def succeed(self, uid: str = "a", leg: Leg = DECODE, **of: Any) -> bool:
        return self.memory.note_success(uid, leg, of.pop("began", self.clock.now), **of)

    @contextmanager
    def try_once(self) -> Iterator[None]:
        """Let a request be under way."""
        trial = self.memory.start_trial("a", DECODE)
        try:
            yield
        finally:
            trial.release()

    def is_out(self, uid: str = "a", leg: Leg = DECODE, model: str = "m") -> bool:
        return uid in self.memory.look(model)[leg]

    def ask(self, cause: str | None) -> list[bool]:
        """Let all who are due be asked, with that outcome."""
        return [self.memory.note_asked(part, cause) for part, _ in self.memory.take_due()]

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds


def test_a_pod_is_ejected_after_failures_in_a_row_and_said_to_be_so_once() -> None:
    bench = Bench()
    assert not bench.fail(2)
    assert not bench.is_out()
    assert bench.fail()
    assert bench.is_out()
    assert not bench.fail()
    assert "a" in bench.memory.list_ejected()
    assert not bench.is_out("b")
    assert not bench.is_out("a", PREFILL)


def test_a_success_in_between_starts_the_count_anew() -> None:
    bench = Bench()
    for _ in range(4):
        bench.fail(2)
        bench.succeed()
        bench.succeed()
        bench.succeed()
    assert bench.memory.calm


def test_a_bad_share_of_the_recent_ones_is_as_bad_once_there_are_enough() -> None:
    bench = Bench()
    for _ in range(4):
        assert not bench.fail()
        bench.succeed()
    assert not bench.fail()
    bench.succeed()
    assert bench.fail()
    assert bench.is_out()


def test_zero_never_ejects() -> None:
    bench = Bench(after=0)
    bench.fail(50)
    bench.memory.hold("a", DECODE, 30)
    for _ in range(5):
        bench.memory.note_scrape("a", connected=False)
    assert bench.memory.calm


def test_the_back_off_doubles_with_jitter_up_to_its_bound() -> None:
    bench = Bench()
    bench.fail(3)
    for expected in (10, 20, 40, 40, 40):
        bench.wait(0.79 * expected)
        assert bench.is_out()
        bench.wait(0.21 * expected)
        assert not bench.is_out()
        with bench.try_once():
            bench.fail()


def test_one_request_at_a_time_tries_a_pod_and_its_success_lets_it_in_again() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(10)
    trial = bench.memory.start_trial("a", DECODE)
    assert bench.is_out()
    with bench.try_once():
        pass
    assert bench.is_out()
    assert bench.succeed()
    assert bench.memory.calm
    trial.release()
    assert not bench.succeed()


def test_a_trial_that_says_nothing_makes_room_for_another() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(10)
    for _ in range(3):
        assert not bench.is_out()
        with bench.try_once():
            assert bench.is_out()


def test_what_was_under_way_before_proves_nothing() -> None:
    bench = Bench()
    before = bench.clock.now
    bench.wait(1)
    bench.fail(3)
    assert not bench.succeed(began=before)
    assert bench.is_out()
    bench.fail(20, began=before)
    bench.wait(10)
    assert not bench.is_out()


def test_a_pod_that_fails_again_soon_waits_longer_and_one_that_held_does_not() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(10)
    bench.succeed()
    bench.fail(3)
    bench.wait(15)
    assert bench.is_out()
    bench.wait(5)
    bench.succeed()
    bench.wait(41)
    bench.fail(3)
    bench.wait(10)
    assert not bench.is_out()


def test_what_an_engine_asks_for_is_waited_within_the_bound() -> None:
    bench = Bench()
    bench.memory.hold("a", PREFILL, 25)
    bench.wait(24)
    assert bench.is_out("a", PREFILL)
    bench.wait(1)
    assert not bench.is_out("a", PREFILL)
    bench.memory.hold("b", PREFILL, 1e9)
    bench.wait(40)
    assert not bench.is_out("b", PREFILL)


def test_it_is_waited_even_where_too_many_have_failed_or_the_pod_takes_connections_again() -> None:
    bench = Bench()
    bench.fail(3, cause="connect")
    bench.memory.hold("a", DECODE, 25)
    bench.memory.note_scrape("a", connected=False)
    bench.memory.note_scrape("a", connected=True)
    bench.wait(24)
    assert bench.memory.look("m")[DECODE]["a"].patient
    bench.wait(1)
    assert not bench.is_out()


def test_what_a_suspected_pod_asks_for_is_waited_too() -> None:
    bench = Bench()
    for _ in range(2):
        bench.memory.note_scrape("a", connected=False)
    bench.memory.hold("a", DECODE, 25)
    bench.memory.note_scrape("a", connected=True)
    assert bench.is_out()


def test_an_answer_that_is_of_no_use_is_a_failure_although_it_came() -> None:
    bench = Bench()
    ejected = []
    for _ in range(3):
        bench.succeed()
        ejected.append(bench.memory.note_worthless("a", DECODE, "handoff", bench.clock.now))
    assert ejected == [False, False, True]
    bench.wait(10)
    bench.succeed()
    assert not bench.is_out()
    assert bench.memory.note_worthless("a", DECODE, "handoff", bench.clock.now)
    bench.wait(15)
    assert bench.is_out()


def test_one_that_is_of_use_starts_the_count_anew() -> None:
    bench = Bench()
    for _ in range(3):
        for _ in range(2):
            bench.succeed()
            bench.memory.note_worthless("a", DECODE, "handoff", bench.clock.now)
        for _ in range(3):
            bench.succeed()
    assert bench.memory.calm


def test_useless_answers_of_before_an_ejection_neither_lengthen_it_nor_excuse_the_pod() -> None:
    bench = Bench()
    began = bench.clock.now
    bench.wait(1)
    bench.fail(3)
    before = bench.memory.look("m")[DECODE]["a"]
    for _ in range(5):
        bench.wait(0.1)
        bench.succeed(began=began)
        assert not bench.memory.note_worthless("a", DECODE, "handoff", bench.clock.now)
    assert bench.memory.look("m")[DECODE]["a"] == before
    bench.wait(10)
    assert not bench.is_out()


def test_what_a_pod_lacks_for_one_adapter_leaves_it_in_for_others() -> None:
    bench = Bench()
    bench.fail(3, model="adapter")
    assert bench.is_out(model="adapter")
    assert not bench.is_out(model="base")
    bench.succeed(model="base")
    assert bench.is_out(model="adapter")
    bench.succeed(model="adapter")
    assert bench.memory.calm


class TestTimeouts:
    def test_a_pod_that_answers_nobody_hangs(self) -> None:
        bench = Bench()
        bench.succeed()
        bench.wait(1)
        began = bench.clock.now
        bench.wait(60)
        assert [bench.memory.note_timeout("a", DECODE, "timeout", began) for _ in range(3)] == [
            *(False, False, True)
        ]

    def test_a_pod_that_answers_others_meanwhile_is_slow(self) -> None:
        bench = Bench()
        began = bench.clock.now
        bench.wait(59)
        bench.succeed()
        bench.wait(1)
        for _ in range(30):
            bench.memory.note_timeout("a", DECODE, "timeout", began)
        assert bench.memory.calm


class TestSilence:
    """Requests that their clients give up before the pod has answered."""

    @staticmethod
    def give_up(bench: Bench, after_s: float, *, leg: Leg = DECODE) -> bool:
        began = bench.clock.now
        bench.wait(after_s)
        return bench.memory.note_silence("a", leg, "silence", began)

    @pytest.mark.parametrize(
        ("patience_s", "requests"), [(1.0, 10), (3.0, 4), (5.0, 3), (10.0, 3), (60.0, 3)]
    )
    def test_a_pod_that_answers_nobody_is_ejected_however_impatient_they_are(
        self, patience_s: float, requests: int
    ) -> None:
        bench = Bench()
        bench.succeed()
        bench.wait(1)
        ejected = [self.give_up(bench, patience_s) for _ in range(requests)]
        assert ejected == [*[False] * (requests - 1), True]
        assert bench.is_out()

    def test_one_answer_says_that_it_serves(self) -> None:
        bench = Bench()
        for _ in range(20):
            self.give_up(bench, 4)
            self.give_up(bench, 4)
            bench.succeed()
        assert bench.memory.calm

    def test_the_other_leg_is_none_of_its_business(self) -> None:
        bench = Bench()
        for _ in range(9):
            self.give_up(bench, 1)
            self.give_up(bench, 1, leg=PREFILL)
        assert bench.memory.calm

    def test_what_was_waited_for_at_once_counts_once(self) -> None:
        bench = Bench()
        began = bench.clock.now
        bench.wait(9)
        assert not any(bench.memory.note_silence("a", DECODE, "s", began) for _ in range(30))
        assert bench.memory.calm

    def test_the_one_who_waits_long_tells_more_than_those_who_come_and_go_meanwhile(self) -> None:
        bench = Bench(after=1)
        began = bench.clock.now
        bench.wait(8)
        self.give_up(bench, 1)
        assert bench.memory.calm
        bench.wait(1)
        assert bench.memory.note_silence("a", DECODE, "silence", began)

    def test_a_trial_without_an_answer_has_failed(self) -> None:
        bench = Bench()
        for _ in range(4):
            self.give_up(bench, 3)
        assert bench.is_out()
        bench.wait(10)
        assert not bench.is_out()
        with bench.try_once():
            self.give_up(bench, 2)
        assert bench.is_out()

    def test_a_pod_that_is_gone_is_forgotten(self) -> None:
        bench = Bench(after=1)
        self.give_up(bench, 9)
        bench.memory.forget("a")
        assert not self.give_up(bench, 2)


class TestScrapes:
    def test_one_that_cannot_connect_changes_nothing(self) -> None:
        bench = Bench()
        bench.memory.note_scrape("a", connected=False)
        assert bench.memory.calm

    def test_several_make_a_pod_get_one_request_at_a_time_and_eject_nobody(self) -> None:
        bench = Bench()
        for _ in range(20):
            bench.memory.note_scrape("a", connected=False)
        assert "a" not in bench.memory.list_ejected()
        assert not bench.is_out()
        with bench.try_once():
            assert bench.is_out()

    def test_the_first_failure_of_a_pod_that_cannot_be_reached_ejects_it(self) -> None:
        bench = Bench()
        for _ in range(2):
            bench.memory.note_scrape("a", connected=False)
        assert bench.fail(cause="connect")
        assert "a" in bench.memory.list_ejected()

    def test_a_pod_that_serves_is_not_doubted_again_until_scrapes_succeed(self) -> None:
        bench = Bench()
        for _ in range(3):
            bench.memory.note_scrape("a", connected=False)
        bench.succeed()
        assert not bench.is_out()
        for _ in range(30):
            bench.memory.note_scrape("a", connected=False)
        bench.fail(2)
        assert not bench.is_out()

    def test_a_pod_that_serves_between_two_is_not_doubted(self) -> None:
        bench = Bench()
        for _ in range(5):
            bench.memory.note_scrape("a", connected=False)
            bench.succeed()
        assert bench.memory.calm

    def test_a_connection_made_again_ends_the_doubt_but_not_an_ejection(self) -> None:
        bench = Bench()
        for uid in ("a", "b"):
            for _ in range(2):
                bench.memory.note_scrape(uid, connected=False)
        bench.fail(uid="b", cause="status-500")
        for uid in ("a", "b"):
            bench.memory.note_scrape(uid, connected=True)
        assert "a" not in bench.memory.list_ejected()
        assert bench.is_out("b")

    def test_a_pod_that_refused_is_tried_when_it_takes_connections_and_not_before(self) -> None:
        bench = Bench()
        for _ in range(2):
            bench.memory.note_scrape("a", connected=False)
        bench.fail(cause="connect")
        bench.wait(39)
        assert bench.is_out()
        bench.memory.note_scrape("a", connected=True)
        assert not bench.is_out()
        assert "a" in bench.memory.list_ejected()

    def test_metrics_that_stay_away_do_not_keep_a_pod_out_for_ever(self) -> None:
        bench = Bench()
        bench.fail(3, cause="connect")
        for _ in range(40):
            bench.wait(1)
            bench.memory.note_scrape("a", connected=False)
        assert not bench.is_out()


class TestAsking:
    """A pod that is out is asked by the router itself before a client's request tries it."""

    def test_a_pod_that_does_not_answer_is_asked_again_and_no_client_pays_for_it(self) -> None:
        bench = Bench(asks=True)
        bench.fail(3)
        assert bench.ask("status-500") == []
        for _ in range(20):
            bench.wait(10)
            assert bench.is_out()
            assert bench.ask("status-500") == [False]
            assert bench.ask("status-500") == []
            assert bench.is_out()
        assert bench.memory.asked == {"failed": 20}

    def test_one_that_answers_may_be_tried_when_its_back_off_is_over(self) -> None:
        bench = Bench(asks=True)
        bench.fail(3)
        bench.wait(10)
        bench.ask("")
        with bench.try_once():
            bench.fail()
        bench.wait(10)
        bench.ask("")
        assert bench.is_out()
        bench.wait(10)
        assert not bench.is_out()
        assert bench.succeed()
        assert bench.memory.calm

    def test_what_it_answered_counts_until_it_is_asked_again(self) -> None:
        bench = Bench(asks=True)
        bench.fail(3)
        bench.wait(10)
        bench.ask("")
        bench.wait(10)
        bench.ask("connect")
        assert bench.is_out()

    def test_who_wants_to_be_left_alone_is_not_asked(self) -> None:
        bench = Bench(asks=True)
        bench.memory.hold("a", DECODE, 25)
        bench.wait(24)
        assert bench.ask("") == []
        bench.wait(1)
        assert bench.is_out()
        assert bench.ask("") == [False]
        assert not bench.is_out()

    def test_where_the_pod_takes_connections_again_it_is_asked_at_once(self) -> None:
        bench = Bench(asks=True)
        bench.fail(3, cause="connect")
        bench.memory.note_scrape("a", connected=False)
        bench.memory.note_scrape("a", connected=True)
        assert bench.is_out()
        bench.ask("")
        assert not bench.is_out()

    def test_the_first_failure_of_a_pod_that_answers_nobody_raises_a_doubt(self) -> None:
        bench, doubts = Bench(asks=True), []
        bench.memory.on_doubt = lambda: doubts.append(bench.clock.now)
        bench.succeed()
        bench.wait(1)
        assert not bench.fail(path="/v1/completions")
        assert bench.is_out()
        assert "a" not in bench.memory.list_ejected()
        assert doubts == [bench.clock.now]
        assert [path for _, path in bench.memory.take_due()] == ["/v1/completions"]

    @pytest.mark.parametrize(("cause", "out"), [("status-500", True), ("", False), (None, False)])
    def test_the_answer_ends_it_one_way_or_the_other(self, cause: str | None, out: bool) -> None:
        bench = Bench(asks=True)
        bench.fail(path="/p")
        assert bench.ask(cause) == [out]
        assert bench.is_out() == out
        assert ("a" in bench.memory.list_ejected()) == out

    def test_a_doubt_forgets_no_failure_and_no_back_off(self) -> None:
        bench = Bench(asks=True)
        for _ in range(2):
            bench.fail(path="/p")
            bench.ask("")
        assert bench.fail(path="/p")
        bench.wait(10)
        bench.ask("")
        bench.succeed()
        bench.wait(1)
        bench.fail(path="/p")
        bench.ask("connect")
        bench.wait(10)
        bench.ask("")
        assert bench.is_out()
        bench.wait(10)
        assert not bench.is_out()

    def test_there_is_none_of_a_pod_that_has_answered_others_meanwhile(self) -> None:
        bench = Bench(asks=True)
        began = bench.clock.now
        bench.wait(1)
        bench.succeed()
        bench.fail(began=began, path="/p")
        assert bench.memory.calm

    def test_a_pod_that_cannot_be_reached_is_asked_instead_of_tried(self) -> None:
        bench = Bench(asks=True)
        for _ in range(2):
            bench.memory.note_scrape("a", connected=False)
        assert bench.is_out()
        assert bench.ask("") == [False]
        assert not bench.is_out("a", PREFILL)
        for leg in (PREFILL, Leg.ENCODE):
            bench.memory.note_success("a", leg, bench.clock.now)
        assert bench.memory.calm
        for _ in range(9):
            bench.memory.note_scrape("a", connected=False)
        assert bench.memory.calm

    def test_a_pod_that_is_gone_has_no_answer(self) -> None:
        bench = Bench(asks=True)
        bench.fail(path="/p")
        ((part, _),) = bench.memory.take_due()
        bench.memory.forget("a")
        assert not bench.memory.note_asked(part, "connect")
        assert bench.memory.calm

    def test_a_side_leg_is_tried_elsewhere_instead(self) -> None:
        bench = Bench(asks=True)
        bench.fail(leg=PREFILL, path="/p")
        assert bench.memory.calm
        bench.fail(2, leg=PREFILL, path="/p")
        bench.wait(10)
        assert bench.ask("") == []
        assert not bench.is_out(leg=PREFILL)


class TestKinds:
    def test_failures_of_one_kind_can_be_forgiven(self) -> None:
        bench = Bench()
        bench.fail(3, subject="kind")
        assert bench.memory.is_well_but_for("a", DECODE, "kind")
        bench.memory.forgive("a", DECODE, "kind")
        assert bench.memory.calm
        assert not bench.memory.describe("a")

    def test_a_failure_of_long_ago_is_no_reason_where_nothing_else_is_sent(self) -> None:
        bench = Bench()
        bench.fail()
        bench.fail(subject="kind")
        assert not bench.memory.is_well_but_for("a", DECODE, "kind")
        bench.wait(61)
        bench.fail(subject="kind")
        assert bench.memory.is_well_but_for("a", DECODE, "kind")

    def test_others_cannot(self) -> None:
        bench = Bench()
        bench.fail(3, subject="kind")
        bench.fail()
        assert not bench.memory.is_well_but_for("a", DECODE, "kind")
        bench.memory.forgive("a", DECODE, "kind")
        assert bench.is_out()


def test_a_pod_that_is_gone_is_forgotten() -> None:
    bench = Bench()
    bench.fail(3)
    bench.fail(3, leg=PREFILL, model="adapter")
    bench.memory.note_scrape("a", connected=False)
    bench.memory.forget("a")
    assert bench.memory.calm
    assert not bench.memory.describe("a")
    assert bench.memory.look("adapter") == {leg: {} for leg in Leg}


def test_a_pod_that_has_recovered_leaves_nothing() -> None:
    bench = Bench()
    bench.fail(3)
    bench.wait(10)
    for _ in range(30):
        bench.succeed()
        bench.wait(5)
    assert not bench.memory.describe("a")


def test_what_is_remembered_is_said() -> None:
    bench = Bench()
    bench.fail(3, cause="connect")
    bench.wait(2)
    (said,) = bench.memory.describe("a")
    wait = said.pop("seconds_until_trial")
    assert isinstance(wait, float)
    assert 6 <= wait <= 8
    assert said == {
        "leg": "decode",
        "model": "",
        "ejected": True,
        "suspected": False,
        "on_trial": False,
        "failures_in_a_row": 3,
        "recent_failures": "3/3",
        "last_cause": "connect",
        "seconds_since_failure": 2.0,
    }


def test_the_memory_is_bounded() -> None:
    bench = Bench()
    for number in range(20_000):
        bench.fail(uid=str(number))
        bench.succeed(uid=str(number))
        bench.memory.note_scrape(str(number), connected=False)
        bench.memory.note_silence(f"silent-{number}", DECODE, "silence", bench.clock.now)
    memory = bench.memory
    assert len(memory._records) <= 4096
    assert len(memory._out) <= 4096
    assert len(memory._reaches.pods) <= 4096
    assert len(memory._silences._answered) <= 4096
    assert len(memory._silences._silences) <= 4096


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["fail", "succeed", "useless", "hold", "trial"]), st.just(0.0)),
        st.tuples(st.just("wait"), st.floats(0, 50)),
        st.tuples(st.sampled_from(["scrape", "no-scrape", "answer", "no-answer"]), st.just(0.0)),
    ),
    max_size=30,
)


def replay(events: list[tuple[str, float]], *, asks: bool) -> Bench:
    bench = Bench(asks=asks)
    for event, value in events:
        match event:
            case "fail":
                bench.fail(path="/p")
            case "succeed":
                bench.succeed()
            case "useless":
                bench.succeed()
                bench.memory.note_worthless("a", DECODE, "handoff", bench.clock.now)
            case "hold":
                bench.memory.hold("a", DECODE, 5)
            case "trial":
                bench.memory.start_trial("a", DECODE).release()
            case "wait":
                bench.wait(value)
            case "answer" | "no-answer":
                bench.ask("" if event == "answer" else "timeout")
            case _:
                bench.memory.note_scrape("a", connected=event == "scrape")
    return bench


@given(EVENTS, st.booleans())
def test_a_failure_more_never_makes_a_pod_more_attractive(
    events: list[tuple[str, float]], asks: bool
) -> None:
    before, after = replay(events, asks=asks), replay(events, asks=asks)
    after.fail(path="/p")
    was, now = (bench.memory.look("m")[DECODE].get("a") for bench in (before, after))
    assert was is None or (now is not None and now.badness >= was.badness)


@given(EVENTS, st.booleans())
def test_a_pod_that_answers_is_let_in_again(events: list[tuple[str, float]], asks: bool) -> None:
    bench = replay(events, asks=asks)
    bench.wait(41)
    bench.ask("")
    assert not bench.is_out()
    bench.succeed()
    assert not bench.is_out()
    assert not bench.memory.list_ejected()


class Life(RuleBasedStateMachine):
    """Requests come, go, fail and are given up, on two pods."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench()
        self.trials: dict[str, list[Trial]] = {"a": [], "b": []}

    @rule(uid=st.sampled_from("ab"))
    def send(self, uid: str) -> None:
        ejected = uid in self.bench.memory.list_ejected()
        if not self.bench.is_out(uid):
            trial = self.bench.memory.start_trial(uid, DECODE)
            if ejected:
                self.trials[uid].append(trial)

    @rule(uid=st.sampled_from("ab"), fails=st.booleans())
    def end(self, uid: str, fails: bool) -> None:
        if fails:
            self.bench.fail(uid=uid)
        else:
            self.bench.succeed(uid=uid)
        self.give_up(uid)

    @rule(uid=st.sampled_from("ab"))
    def give_up(self, uid: str) -> None:
        for trial in self.trials[uid]:
            trial.release()
        self.trials[uid].clear()

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.bench.wait(seconds)

    @invariant()
    @precondition(lambda self: hasattr(self, "bench"))
    def one_at_a_time(self) -> None:
        assert all(len(trials) <= 1 for trials in self.trials.values())


TestLife = Life.TestCase


@pytest.mark.parametrize("leg", Leg)
def test_a_chosen_pod_that_is_ejected_meanwhile_is_found(leg: Leg) -> None:
    bench = Bench()
    chosen = bench.clock.now
    bench.wait(1)
    assert not bench.memory.was_ejected_since("a", leg, chosen)
    bench.fail(3, leg=leg)
    assert bench.memory.was_ejected_since("a", leg, chosen)
    bench.wait(10)
    assert not bench.memory.was_ejected_since("a", leg, bench.clock.now)
