"""`prefix-cache` chooses what aibrix's does, for whole requests and for either leg of `pd`."""

from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies

PREFIX = PromptPrefix((1, 2, 3), (300, 600, 900), 1000)
FACTS = RoutingFacts(250, None, PREFIX)


def make_loaded_state(counts: list[int], cached: list[int], leg: Leg = Leg.DECODE) -> RoutingState:
    """Pods `p0` and so on with so many requests each, and so many blocks of the prompt."""
    ledger = Ledger(clock=lambda: 0.0)
    state = make_state(ledger)
    for number, (count, blocks) in enumerate(zip(counts, cached, strict=True)):
        for _ in range(count):
            ledger.start(leg, f"uid-p{number}")
        if leg is Leg.DECODE:
            state.decoded.expect(PREFIX.hashes[:blocks], f"uid-p{number}", 100)
        else:
            state.prefixes.add(PREFIX.hashes[:blocks], f"uid-p{number}")
    return state


def choose(state: RoutingState, pods: int, name: str = "prefix-cache", **options: Any) -> Decision:
    strategy = create_strategies(options=PolicyOptions(**options)).find(name)
    whole = make_model_pods(*(make_pod(f"p{number}", Role.BOTH) for number in range(pods)))
    return strategy.decide(FACTS, whole, state)


@pytest.mark.parametrize(
    ("counts", "cached", "chosen"),
    [
        # The most of the prompt, whatever the load within the limits.
        ([0, 1, 2], [1, 3, 2], {"p1"}),
        # The same percent: the fewer requests.
        ([2, 1, 1], [3, 3, 0], {"p1"}),
        ([1, 1, 1], [3, 3, 0], {"p0", "p1"}),
        # mean 5/3, deviation 2.89: 5 is above 4.55.
        ([5, 0, 0], [3, 1, 0], {"p1"}),
        # mean 2, deviation 1: 3 is at the limit, and not above it.
        ([3, 2, 1], [3, 1, 0], {"p0"}),
        # They differ by 8: not yet too much. Mean 4, deviation 4: 8 is at the limit.
        ([8, 4, 0], [3, 1, 0], {"p0"}),
        # By 9: only those with the fewest are looked at.
        ([9, 9, 0, 0], [3, 3, 0, 1], {"p3"}),
        ([9, 9, 0, 0], [3, 3, 0, 0], {"p2", "p3"}),
        # Nothing is cached anywhere, or only where it is too busy: the fewest requests of all.
        ([2, 1, 1], [0, 0, 0], {"p1", "p2"}),
        ([5, 0, 0], [3, 0, 0], {"p1", "p2"}),
    ],
)
def test_the_pod_is_one_that_aibrix_takes(
    counts: list[int], cached: list[int], chosen: set[str]
) -> None:
    seen = set()
    for _ in range(30):
        state = make_loaded_state(counts, cached)
        state.random.seed(_)
        seen.add(choose(state, len(counts)).last.pod.name)
    assert seen == chosen


def test_the_thresholds_are_aibrixs_settings() -> None:
    state = make_loaded_state([2, 0, 0], [3, 1, 0])
    assert choose(state, 3, standard_deviation_factor=2.0).last.pod.name == "p0"
    assert choose(state, 3).last.pod.name == "p1"
    assert choose(state, 3, request_imbalance_spread=1, standard_deviation_factor=9).notes == (
        "prefix-cache: pods differ by 2 requests, one with the fewest it is",
    )


def test_in_a_list_there_are_no_rules_against_imbalance() -> None:
    state = make_loaded_state([20, 0, 0], [3, 0, 0])
    assert choose(state, 3, "prefix-cache:2,least-request").last.pod.name == "p0"
    assert choose(state, 3, "prefix-cache,least-request:2").last.pod.name in {"p1", "p2"}


def test_others_requests_count() -> None:
    state = make_loaded_state([0, 0, 0], [3, 1, 0])
    samples = {"uid-p0": EngineSample(0.0, running=5.0)}
    busy = make_state(samples=samples)
    busy.decoded.expect(PREFIX.hashes, "uid-p0", 100)
    assert choose(state, 3).last.pod.name == "p0"
    assert choose(busy, 3).last.pod.name != "p0"


def test_what_was_measured_is_told() -> None:
    last = choose(make_loaded_state([1, 0, 0], [2, 1, 0]), 3).last
    assert [pod.name for pod in last.candidates] == ["p1"]
    assert last.parts is not None
    assert last.parts.describe(0, "uid-p1", last.score) == {"match_percent": 33, "requests": 0}


@pytest.mark.parametrize("policy", ["prefix-cache", "prefix-cache:3,kv_capacity"])
def test_it_may_rank_the_decode_pods_of_pd(policy: str) -> None:
    pods = make_model_pods(
        make_pod("prefill"), *(make_pod(f"p{number}", Role.DECODE) for number in range(3))
    )
    state = make_loaded_state([1, 1, 0], [0, 3, 1])
    decision = create_strategies(decode_policy=policy)["pd"].decide(FACTS, pods, state)
    assert decision.last.pod.name == "p1"
    assert decision.last.parts is not None
    index = list(decision.last.candidates).index(decision.last.pod)
    parts = decision.last.parts.describe(index, "uid-p1", decision.last.score)
    assert parts["match_percent"] == 100


def test_of_prefill_pods_it_knows_what_they_have_computed() -> None:
    pods = make_model_pods(
        make_pod("d", Role.DECODE), *(make_pod(f"p{number}") for number in range(3))
    )
    state = make_loaded_state([1, 1, 0], [0, 3, 1], Leg.PREFILL)
    strategy = create_strategies()["pd"]
    for policy in ("prefix-cache", "ttft,prefix-cache:9"):
        facts = RoutingFacts(250, None, PREFIX, prefill_policy=policy)
        decision = strategy.decide(facts, pods, state)
        assert decision.prefill is not None
        assert decision.prefill.pod.name == "p1"
