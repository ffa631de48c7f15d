"""What a request may ask for: pods by their labels, and policies by its profile."""

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import NoReadyPod, RoutingFacts
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.settings.choices import (
    DECODE_ALGORITHM_NAMES,
    DECODE_POLICY_NAMES,
    PREFILL_ALGORITHM_NAMES,
    PREFILL_POLICY_NAMES,
    STRATEGY_NAMES,
)

P, D = Role.PREFILL, Role.DECODE
STRATEGIES = create_strategies()
PODS = make_model_pods(
    *(
        make_pod(f"{role.value[0]}-{zone}", role, labels={"zone": zone})
        for role in (P, D)
        for zone in ("a", "b")
    )
)


@pytest.mark.parametrize("name", STRATEGY_NAMES)
@pytest.mark.parametrize("zone", ["a", "b"])
def test_only_selected_pods_are_chosen(name: str, zone: str) -> None:
    facts = RoutingFacts(1, None, selector=parse_selector(f"zone={zone}"))
    for seed in range(5):
        decision = STRATEGIES[name].decide(facts, PODS, make_state(seed=seed))
        assert decision.last.pod.name == f"d-{zone}"
        assert decision.prefill is None or decision.prefill.pod.name == f"p-{zone}"


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_a_selector_that_selects_nothing_leaves_no_pod(name: str) -> None:
    facts = RoutingFacts(1, None, selector=parse_selector("zone=c"))
    with pytest.raises(NoReadyPod):
        STRATEGIES[name].decide(facts, PODS, make_state())


@pytest.mark.parametrize("prefill", PREFILL_POLICIES)
@pytest.mark.parametrize("decode", DECODE_POLICIES)
def test_a_profile_may_ask_for_policies(prefill: str, decode: str) -> None:
    facts = RoutingFacts(1, None, prefill_policy=prefill, decode_policy=decode)
    decision = STRATEGIES["pd"].decide(facts, PODS, make_state())
    assert decision.prefill is not None
    assert (decision.prefill.policy, decision.last.policy) == (prefill, decode)
    assert decision.notes == ()


def test_policies_that_do_not_exist_are_noted_and_change_nothing() -> None:
    facts = RoutingFacts(1, None, prefill_policy="load_balancing", decode_policy="conductr")
    decision = STRATEGIES["pd"].decide(facts, PODS, make_state())
    assert decision.prefill is not None
    assert (decision.prefill.policy, decision.last.policy) == ("ttft", "kv_capacity")
    assert decision.notes == (
        "policy 'load_balancing' is none of "
        + ", ".join((*PREFILL_POLICY_NAMES, *PREFILL_ALGORITHM_NAMES)),
        "policy 'conductr' is none of "
        + ", ".join((*DECODE_POLICY_NAMES, *DECODE_ALGORITHM_NAMES)),
    )


def test_pods_that_a_policy_leaves_out_are_noted() -> None:
    state = make_state()
    for _ in range(9):
        state.ledger.start(Leg.PREFILL, "uid-p0", 1)
    pods = make_model_pods(*(make_pod(f"p{n}", P) for n in range(4)), make_pod("d", D))
    decision = create_strategies("prefix_cache")["pd"].decide(RoutingFacts(1, None), pods, state)
    assert decision.prefill is not None
    assert [pod.name for pod in decision.prefill.candidates] == ["p1", "p2", "p3"]
    assert decision.notes == ("prefix_cache: 1 prefill pods are left out",)
