"""What is remembered of decode pods that compute prompts."""

from collections.abc import Callable

import pytest

from pdrouter.engines.reading import RequestTotals
from pdrouter.load.counters import MeanMeter, RequestMeter
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import RequestMeans
from pdrouter.load.whole_serving import ENOUGH_ANSWERS, HORIZON_S, WholeServing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def whole(clock: Clock) -> WholeServing:
    return WholeServing(clock=clock)


def test_the_hand_over_is_a_mean_that_a_pause_does_not_spoil(whole: WholeServing) -> None:
    for _ in range(ENOUGH_ANSWERS):
        whole.observe_handover("m", 0.2)
    assert whole.find_handover("m") == pytest.approx(0.2)
    whole.observe_handover("m", 600.0)
    paused = whole.find_handover("m")
    assert paused is not None
    assert 0.2 < paused < 0.3
    for _ in range(200):
        whole.observe_handover("m", 0.4)
    assert whole.find_handover("m") == pytest.approx(0.4, rel=0.01)
    assert whole.find_handover("another") is None


def test_a_hand_over_that_is_set_is_not_measured() -> None:
    whole = WholeServing(0.3)
    assert whole.find_handover("m") == 0.3
    assert not whole.wants_handover("m")


def test_once_enough_is_known_few_answers_are_looked_at(whole: WholeServing, clock: Clock) -> None:
    for _ in range(ENOUGH_ANSWERS):
        assert whole.wants_handover("m")
        whole.observe_handover("m", 0.2)
    assert not whole.wants_handover("m")
    clock.now += 2.0
    assert whole.wants_handover("m")
    assert not whole.wants_handover("m")
    assert not whole.wants_whole("a"), "nothing was sent there"
    whole.begin("a", 0.1)
    assert whole.wants_whole("a")
    whole.observe("a", 0.1, 0.1)
    assert not whole.wants_whole("a")


def test_what_stays_as_it_is_is_looked_at_less_and_less_often(
    whole: WholeServing, clock: Clock
) -> None:
    whole.begin("a", 0.1)
    whole.observe("a", 0.1, 0.1)
    for _ in range(ENOUGH_ANSWERS):
        whole.observe_handover("m", 0.2)
    looks: tuple[tuple[Callable[[], bool], Callable[[float], None]], ...] = (
        (lambda: whole.wants_handover("m"), lambda s: whole.observe_handover("m", s)),
        (lambda: whole.wants_whole("a"), lambda s: whole.observe("a", 0.2, s)),
    )
    for wants, observe in looks:
        assert wants()
        for pause in (4.0, 8.0, 16.0, 32.0, 32.0):
            observe(0.22)
            clock.now += pause - 1.0
            assert not wants()
            clock.now += 1.0
            assert wants()
        observe(0.5)
        clock.now += 2.0
        assert wants(), "it is another now"


def test_a_pod_that_is_measured_anew_is_looked_at_as_often_as_at_first(
    whole: WholeServing, clock: Clock
) -> None:
    whole.begin("a", 0.1)
    for _ in range(8):
        whole.observe("a", 0.1, 0.1)
    clock.now += 100_000.0
    assert whole.wants_whole("a")
    whole.observe("a", 0.1, 0.1)
    clock.now += 2.0
    assert whole.wants_whole("a"), "one answer is all that is known of it"


def test_what_is_sent_is_waited_for_and_fades_from_the_share(
    whole: WholeServing, clock: Clock
) -> None:
    whole.begin("a", 1.0)
    whole.begin("a", 2.0)
    assert whole.predict_wait("a") == pytest.approx(3.0)
    assert whole.measure_share("a") == pytest.approx(3.0 / HORIZON_S)
    clock.now += 2.5
    assert whole.predict_wait("a") == pytest.approx(0.5)
    clock.now += 1000.0
    assert whole.predict_wait("a") == 0.0
    assert whole.measure_share("a") == pytest.approx(0.0, abs=1e-12)


def test_how_slow_a_pod_is_holds_for_a_time_that_doubles_if_it_is_so_again(
    whole: WholeServing, clock: Clock
) -> None:
    unknown = whole.find_factor("a")
    for patience in (600.0, 1200.0, 2400.0, 3600.0, 3600.0):
        whole.begin("a", 1.0)
        assert not whole.may_serve("a")
        for _ in range(100):
            whole.observe("a", 1.0, 10.0)
        assert whole.find_factor("a") == pytest.approx(10.0, rel=0.1)
        clock.now += patience - 1.0
        assert whole.find_factor("a") > unknown
        clock.now += 2.0
        assert whole.find_factor("a") == unknown
        assert whole.may_serve("a")


def test_short_prompts_say_little_of_how_fast_a_pod_is(whole: WholeServing) -> None:
    whole.begin("a", 0.0)
    whole.observe("a", 0.001, 0.01)
    assert whole.find_factor("a") == pytest.approx(1.0, abs=0.15)


def test_a_pod_that_is_gone_is_forgotten(whole: WholeServing) -> None:
    whole.begin("a", 5.0)
    whole.note_answer("a", 500)
    assert whole.describe("a") == {"refused": True}
    whole.forget("a")
    assert whole.describe("a") == {}
    # What comes of a request that was under way does not bring it back.
    whole.observe("a", 1.0, 1.0)
    whole.note_answer("a", 500)
    assert whole.describe("a") == {}


# --- Prompts that were decoded ---------------------------------------------------------------


def make_decoded(clock: Clock) -> DecodedPrompts:
    return DecodedPrompts(PrefixIndex(1 << 20, 60.0, clock))


def test_a_prompt_that_goes_on_has_its_answer_cached_too(clock: Clock) -> None:
    decoded = make_decoded(clock)
    decoded.add((1, 2), "a", rest_tokens=60, written_tokens=260)
    assert decoded.match((1, 2, 3)) == {"a": 2}
    assert decoded.count_cached("a", 2, 200, 400, None) == 260
    # The answer may have been shorter than most: something is always new.
    assert decoded.count_cached("a", 2, 200, 100, None) == 250
    # Of a prompt that only begins alike nobody knows whether the beginning is there still.
    assert decoded.count_cached("a", 1, 100, 400, None) == 0
    assert decoded.count_cached("b", 2, 200, 400, None) == 0


def test_it_is_gone_once_others_have_written_what_is_free(clock: Clock) -> None:
    decoded = make_decoded(clock)
    decoded.add((1,), "a", rest_tokens=10, written_tokens=100)
    decoded.add((), "a", rest_tokens=0, written_tokens=300)
    assert decoded.count_cached("a", 1, 90, 100, 1000) == 100
    assert decoded.count_cached("a", 1, 90, 100, 500) == 0
    decoded.add((), "b", rest_tokens=0, written_tokens=10_000)
    assert decoded.count_cached("a", 1, 90, 100, 1000) == 100
    decoded.forget("a")
    assert decoded.match((1,)) == {}


# --- Time between tokens ---------------------------------------------------------------------


def test_the_time_between_tokens_is_that_of_late() -> None:
    meter = MeanMeter()
    assert meter.read(0.0, None, None) is None
    assert meter.read(0.0, 0.0, 0.0) is None
    assert meter.read(1.0, 2.0, 100.0) == pytest.approx(0.02)
    assert meter.read(2.0, 2.0, 100.0) == pytest.approx(0.02), "nothing was generated"
    assert meter.read(3.0, 6.0, 200.0) == pytest.approx(0.031, abs=0.001)
    assert meter.read(100.0, 10.0, 300.0) == pytest.approx(0.04, abs=0.001)
    # The engine has started again.
    assert meter.read(101.0, 0.5, 50.0) == pytest.approx(0.01)


def test_a_long_past_does_not_outweigh_the_present() -> None:
    meter = MeanMeter()
    assert meter.read(0.0, 1e6, 1e7) == pytest.approx(0.1)
    assert meter.read(10.0, 1e6 + 10.0, 1e7 + 1000) == pytest.approx(0.01, abs=0.002)


def test_what_requests_take_of_late_is_known_part_by_part() -> None:
    meter = RequestMeter()
    assert meter.read(0.0, None) is None
    totals = RequestTotals(queue=(2.0, 4), prefill=(0.0, 0), output=(100, 4))
    assert meter.read(1.0, totals) == RequestMeans(queue_s=0.5, output_tokens=25)
    later = RequestTotals(queue=(2.0, 4), prefill=(3.0, 2), output=(100, 4))
    assert meter.read(500.0, later) == RequestMeans(queue_s=0.5, prefill_s=1.5, output_tokens=25)
