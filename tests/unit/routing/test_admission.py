"""Which requests are refused because they would wait too long, and which get another pod."""

import pytest
from factories import make_pod, make_state
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.admission import (
    DeadlineMissed,
    QueueTooLong,
    limit_wait,
    meet_deadline,
)
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Decision, RoutingFacts, Ways
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies

PREFIX = PromptPrefix((1, 2, 3, 4), (250, 500, 750, 1000), 1000)
FACTS = RoutingFacts(1000, None, PREFIX)
STRATEGY = create_strategies()["pd"]


def make_pods(*names: str) -> ModelPods:
    prefill = [make_pod(name, Role.PREFILL) for name in names]
    return ModelPods.group("m", [*prefill, make_pod("d", Role.DECODE)])


def make_queues(**tokens: int) -> RoutingState:
    """Pods with so much work ahead, of which `hot` has cached the prompt; 1,000 tokens a second."""
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for name, each in tokens.items():
        ledger.start(Leg.PREFILL, f"uid-{name}", each)
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    prefixes.add(PREFIX.hashes, "uid-hot")
    return make_state(ledger, prefixes=prefixes)


def decide(pods: ModelPods, state: RoutingState, limit_s: float) -> Decision:
    decision = STRATEGY.decide(FACTS, pods, state)
    return limit_wait(decision, STRATEGY, FACTS, pods, state, limit_s=limit_s)


def choose(pods: ModelPods, state: RoutingState, limit_s: float) -> Pod:
    prefill = decide(pods, state, limit_s).prefill
    assert prefill is not None
    return prefill.pod


def test_a_queue_as_long_as_it_may_be_is_no_reason() -> None:
    pods, state = make_pods("hot", "cold"), make_queues(hot=2000)
    decision = STRATEGY.decide(FACTS, pods, state)
    assert limit_wait(decision, STRATEGY, FACTS, pods, state, limit_s=2.0) is decision


def test_a_pod_with_a_shorter_queue_takes_the_place() -> None:
    pods, state = make_pods("hot", "cold", "busy"), make_queues(hot=2000, cold=500, busy=1900)
    assert choose(pods, state, 2.0).name == "hot"
    decision = decide(pods, state, 1.95)
    assert decision.prefill is not None
    assert decision.prefill.pod.name == "cold"
    assert decision.notes[-1] == "the queue of hot is 2.0 s long, another pod's is shorter"
    assert decision.last.pod.name == "d"


def test_a_pod_of_another_roleset_takes_the_place_if_there_is_none_in_this() -> None:
    names = {"a": ("hot", "busy", "d"), "b": ("cold", "other")}
    pods = ModelPods.group(
        "m",
        [
            make_pod(name, Role.DECODE if name == last else Role.PREFILL, roleset=roleset)
            for roleset, (*prefill, last) in names.items()
            for name in (*prefill, last)
        ],
    )
    with pytest.raises(QueueTooLong):
        decide(pods, make_queues(hot=2000, busy=3000, cold=2500), 1.9)
    decision = decide(pods, make_queues(hot=2000, busy=3000, cold=1500), 1.9)
    assert [choice.pod.name for choice in decision.legs] == ["cold", "other"]
    assert decision.notes == ("the queue of hot is 2.0 s long, another pod's is shorter",)


def test_that_queue_too_may_be_as_long_as_any() -> None:
    pods, state = make_pods("hot", "cold"), make_queues(hot=3000, cold=2000)
    assert choose(pods, state, 3.0).name == "hot"
    assert choose(pods, state, 2.0).name == "cold"
    with pytest.raises(QueueTooLong):
        decide(pods, state, 1.99)


def test_if_all_queues_are_too_long_the_request_is_refused() -> None:
    pods, state = make_pods("hot", "cold"), make_queues(hot=2000, cold=3000)
    with pytest.raises(QueueTooLong) as refused:
        decide(pods, state, 1.5)
    assert refused.value.wait_s == pytest.approx(2.0)


def test_work_of_others_counts_in_full() -> None:
    pods, state = make_pods("hot", "cold"), make_queues(hot=1000, cold=6000)
    state.ledger.note_others("uid-hot", 2)
    wait = state.ledger.predict_prefill_wait("uid-hot")
    assert choose(pods, state, wait).name == "hot"
    with pytest.raises(QueueTooLong):
        decide(pods, state, wait - 0.01)


def test_a_request_that_is_served_whole_waits_in_no_queue() -> None:
    pods = ModelPods.group("m", [make_pod("d", Role.DECODE)])
    facts = RoutingFacts(1000, "not-disaggregated")
    state = make_queues()
    decision = STRATEGY.decide(facts, pods, state)
    assert limit_wait(decision, STRATEGY, facts, pods, state, limit_s=0.001) is decision


# --- Deadlines --------------------------------------------------------------------------------


def make_known_queues(**tokens: int) -> RoutingState:
    """Queues as `make_queues` makes them, on pods that have shown how fast they are."""
    state = make_queues()
    for name in tokens:
        with state.ledger.start(Leg.PREFILL, f"uid-{name}", 1) as scope:
            scope.complete()
    rates = PrefillRates(1000)
    state.ledger.rates = rates
    for name, each in tokens.items():
        state.ledger.start(Leg.PREFILL, f"uid-{name}", each)
    return state


def due_in(seconds: float, source: str = "x-slo-ttft-ms") -> RoutingFacts:
    return structs.replace(FACTS, deadline=Deadline(seconds, seconds, source))


def meet(pods: ModelPods, state: RoutingState, facts: RoutingFacts) -> Decision:
    decision = STRATEGY.decide(facts, pods, state)
    return meet_deadline(decision, STRATEGY, facts, pods, state, handover_s=0.1)


def test_a_request_that_is_in_time_where_it_was_sent_stays_there() -> None:
    pods, state = make_pods("hot", "cold"), make_known_queues(hot=2000, cold=1)
    facts = due_in(2.2)
    decision = STRATEGY.decide(facts, pods, state)
    assert decision.legs[0].pod.name == "hot"
    assert meet_deadline(decision, STRATEGY, facts, pods, state, handover_s=0.1) is decision


def test_a_pod_that_is_in_time_takes_the_place_of_one_that_is_not() -> None:
    pods, state = make_pods("hot", "cold"), make_known_queues(hot=2000, cold=500)
    decision = meet(pods, state, due_in(1.7))
    assert decision.legs[0].pod.name == "cold"
    assert decision.notes[-1] == "hot would be too late, another pod is not"


def test_what_no_pod_has_in_time_is_refused_with_the_time_that_is_missing() -> None:
    pods, state = make_pods("hot", "cold"), make_known_queues(hot=2000, cold=500)
    with pytest.raises(DeadlineMissed) as caught:
        meet(pods, state, due_in(1.0))
    assert caught.value.late_s == pytest.approx(0.6)
    assert str(caught.value) == (
        "the first token is due in 1 s (x-slo-ttft-ms), and predicted to come 0.6 s later"
    )


def test_little_that_is_missing_is_not_told_as_nothing() -> None:
    pods, state = make_pods("hot"), make_known_queues(hot=2000)
    with pytest.raises(DeadlineMissed, match=r"predicted to come 0\.030 s later"):
        meet(pods, state, due_in(2.071))


@pytest.mark.parametrize("facts", [FACTS, due_in(0.1, source="")])
def test_what_nobody_has_asked_for_is_not_refused(facts: RoutingFacts) -> None:
    pods, state = make_pods("hot"), make_known_queues(hot=9000)
    decision = STRATEGY.decide(facts, pods, state)
    assert meet_deadline(decision, STRATEGY, facts, pods, state, handover_s=0.1) is decision


def test_a_pod_that_has_shown_nothing_of_late_gets_the_request_and_shows_it() -> None:
    pods, state = make_pods("hot", "cold"), make_queues(hot=9000, cold=9000)
    assert meet(pods, state, due_in(0.1)).legs[0].pod.name == "hot"


def test_where_engines_take_first_what_is_due_first_only_that_is_waited_for() -> None:
    pods, state = make_pods("hot"), make_known_queues(hot=500)
    for due in (1.0, 60.0):
        state.ledger.start(Leg.PREFILL, "uid-hot", 1000, due)
    facts = due_in(2.0)
    with pytest.raises(DeadlineMissed):
        meet(pods, state, facts)
    (hot,) = pods.prefill
    state.priorities.note(hot, takes=True)
    assert meet(pods, state, facts).legs[0].pod is hot
    with pytest.raises(DeadlineMissed):
        meet(pods, state, due_in(1.5))


def test_a_pod_whose_queue_is_too_long_takes_nobodys_place() -> None:
    pods, state, facts = (
        make_pods("hot", "cold"),
        make_known_queues(hot=3000, cold=1500),
        due_in(2.7),
    )
    assert meet(pods, state, facts).legs[0].pod.name == "cold"
    decision = STRATEGY.decide(facts, pods, state)
    with pytest.raises(DeadlineMissed) as caught:
        meet_deadline(decision, STRATEGY, facts, pods, state, handover_s=0.1, limit_s=1.0)
    # What keeps it from being in time is the limit, and so that is what the client is told.
    assert caught.value.late_s == pytest.approx(0.5)
    assert str(caught.value) == (
        "the first token is due in 2.7 s (x-slo-ttft-ms), and where it would be met, "
        "the prefill queue is 1.5 s long, and may be 1 s"
    )


def test_a_queue_of_which_nothing_is_known_but_its_length_is_told_as_what_it_is() -> None:
    pods, facts = make_pods("hot", "new"), due_in(2.0)
    state = make_known_queues(hot=3000)
    state.ledger.start(Leg.PREFILL, "uid-new", 4000)
    decision = STRATEGY.decide(facts, pods, state)
    with pytest.raises(DeadlineMissed, match=r"queue is 4\.0 s long, and may be 3\.5 s") as caught:
        meet_deadline(decision, STRATEGY, facts, pods, state, handover_s=0.1, limit_s=3.5)
    assert caught.value.late_s == pytest.approx(0.5)


def test_pods_that_the_request_does_not_want_are_not_told_of() -> None:
    labels = {"hot": "a", "cold": "b", "d": "a"}
    roles = {"d": Role.DECODE}
    pods = ModelPods.group(
        "m",
        [
            make_pod(name, roles.get(name, Role.PREFILL), labels={"zone": zone})
            for name, zone in labels.items()
        ],
    )
    state = make_known_queues(hot=3000, cold=1500)
    facts = structs.replace(due_in(1.1), selector=parse_selector("zone=a"))
    with pytest.raises(DeadlineMissed) as caught:
        meet(pods, state, facts)
    assert caught.value.late_s == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "known", "refused"), [(0.9, True, True), (1.1, True, False), (0.9, False, False)]
)
def test_what_goes_to_one_pod_as_the_faster_way_has_to_be_in_time_too(
    seconds: float, known: bool, refused: bool
) -> None:
    pods = make_pods("hot")
    state = make_known_queues(hot=9000) if known else make_queues(hot=9000)
    facts = due_in(seconds)
    decision = STRATEGY.decide(facts, pods, state)
    ways = Ways(9.0, 0.1, 1.0, pod="d")
    whole = structs.replace(decision, side=(), reason="faster", ways=ways)
    if refused:
        with pytest.raises(DeadlineMissed):
            meet_deadline(whole, STRATEGY, facts, pods, state, handover_s=0.1)
    else:
        assert meet_deadline(whole, STRATEGY, facts, pods, state, handover_s=0.1) is whole
