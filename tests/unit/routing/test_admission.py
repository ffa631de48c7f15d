"""Which requests are refused because they would wait too long, and which get another pod."""

import pytest
from factories import make_pod, make_state

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.admission import QueueTooLong, limit_wait
from pdrouter.routing.decision import Decision, RoutingFacts
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
    pods, state = make_pods("hot", "cold"), make_queues(hot=1000, cold=2000)
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
