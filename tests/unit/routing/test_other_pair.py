"""The pair that a prefill leg is tried on next: within the roleset first, then another one."""

from collections.abc import Collection, Sequence

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.settings.choices import STRATEGY_NAMES

FACTS = RoutingFacts(1000, None)
STRATEGIES = create_strategies()
PD = STRATEGIES["pd"]


def make_roleset(name: str, prefill: int = 2, decode: int = 1) -> list[Pod]:
    """Ready pods `a-p0`, `a-p1`, ..., `a-d0`, ... of a roleset `a`."""
    return [
        make_pod(f"{name}-{role.value[0]}{number}", role, roleset=name, labels={"set": name})
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        for number in range(count)
    ]


PODS = make_model_pods(*make_roleset("a"), *make_roleset("b"))
NAMED = {pod.name: pod for pod in PODS.pods}


def start(prefill: str, decode: str, pods: ModelPods = PODS) -> Decision:
    """What was chosen first."""
    only = [pod for pod in pods.pods if pod.name in (prefill, decode)]
    return PD.decide(FACTS, make_model_pods(*only), make_state())


def choose(
    decision: Decision,
    tried: Collection[str],
    failed: Collection[str] = (),
    *,
    pods: ModelPods = PODS,
    state: RoutingState | None = None,
    facts: RoutingFacts = FACTS,
    strategy: str = "pd",
    max_wait_s: float | None = None,
) -> tuple[str, str] | None:
    """Return the names of the next pair."""
    router = Router(STRATEGIES, state or make_state(), RoutingRules(max_wait_s=max_wait_s))
    named = {pod.name: pod for pod in pods.pods} | NAMED
    other = router.choose_other(
        STRATEGIES[strategy],
        facts,
        decision,
        pods,
        tried=[named[name] for name in tried],
        failed=[named[name] for name in failed],
    )
    return None if other is None else (other.side[0].pod.name, other.last.pod.name)


def eject(state: RoutingState, *pods: Pod) -> RoutingState:
    for pod in pods:
        leg = Leg.PREFILL if pod.role is Role.PREFILL else Leg.DECODE
        for _ in range(state.failures.rules.after):
            state.failures.note_failure(pod.uid, leg, "connect", 0.0)
    return state


@pytest.mark.parametrize(
    ("tried", "failed", "expected"),
    [
        (["a-p0"], ["a-p0"], {("a-p1", "a-d0")}),
        (["a-p0"], [], {("a-p1", "a-d0")}),
        (["a-p0", "a-p1"], ["a-p0"], {("b-p0", "b-d0"), ("b-p1", "b-d0")}),
        (["a-p0", "a-p1"], ["a-p0", "a-p1"], {("b-p0", "b-d0"), ("b-p1", "b-d0")}),
        (["a-p0", "a-p1", "b-p0"], ["a-p0", "a-p1", "b-p0"], {("b-p1", "b-d0")}),
        (["a-p0", "a-p1", "b-p0", "b-p1"], [], {None}),
    ],
)
def test_it_stays_in_the_roleset_as_long_as_that_has_another_prefill_pod(
    tried: Sequence[str], failed: Sequence[str], expected: set[tuple[str, str] | None]
) -> None:
    chosen = {
        choose(start("a-p0", "a-d0"), tried, failed, state=make_state(seed=seed))
        for seed in range(20)
    }
    assert chosen == expected


def test_a_roleset_in_which_two_pods_have_failed_is_left_while_there_is_another() -> None:
    pods = make_model_pods(*make_roleset("a", prefill=4), *make_roleset("b", prefill=1))
    first, failed = start("a-p0", "a-d0", pods), ["a-p0", "a-p1"]
    assert choose(first, failed, failed, pods=pods) == ("b-p0", "b-d0")
    failed = [*failed, "b-p0"]
    chosen = choose(start("b-p0", "b-d0", pods), failed, failed, pods=pods)
    assert chosen in {("a-p2", "a-d0"), ("a-p3", "a-d0")}


def test_it_goes_where_the_queue_is_shortest() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    ledger.start(Leg.PREFILL, "uid-b-p0", 5)
    chosen = choose(start("a-p0", "a-d0"), ["a-p0", "a-p1"], state=make_state(ledger))
    assert chosen == ("b-p1", "b-d0")


def test_the_decode_pod_stays_what_it_is_within_the_roleset() -> None:
    pods = make_model_pods(*make_roleset("a", decode=3))
    ledger = Ledger(clock=lambda: 0.0)
    ledger.start(Leg.DECODE, "uid-a-d1", 1000)
    first = start("a-p0", "a-d1", pods)
    router = Router(STRATEGIES, make_state(ledger))
    other = router.choose_other(PD, FACTS, first, pods, tried=[first.side[0].pod], failed=[])
    assert other is not None
    assert other.last is first.last
    assert other.side[0].pod.name == "a-p1"
    assert other.notes == ("not carried out by a-p0: tried again on a-p1 of the same roleset",)


@pytest.mark.parametrize("change", [{"ready": False}, {"ip": "10.0.0.9"}], ids=str)
def test_unless_it_has_gone_meanwhile(change: dict[str, object]) -> None:
    first = start("a-p0", "a-d0")
    changed = make_pod("a-d0", Role.DECODE, **{"roleset": "a", **change})
    others = [pod for pod in make_roleset("a", decode=2) if pod.name != "a-d0"]
    pods = make_model_pods(*others, changed)
    chosen = {choose(first, ["a-p0"], pods=pods, state=make_state(seed=n)) for n in range(20)}
    assert ("a-p1", "a-d1") in chosen
    assert (("a-p1", "a-d0") in chosen) is changed.ready


def test_a_prefill_pod_that_has_failed_others_is_the_last_to_be_tried() -> None:
    pods = make_model_pods(*make_roleset("a"), *make_roleset("b", prefill=1))
    state = eject(make_state(), NAMED["a-p1"])
    first = start("a-p0", "a-d0", pods)
    assert choose(first, ["a-p0"], pods=pods, state=state) == ("b-p0", "b-d0")
    assert choose(first, ["a-p0", "b-p0"], pods=pods, state=state) == ("a-p1", "a-d0")


def test_a_roleset_whose_decode_pods_have_failed_is_left() -> None:
    state = eject(make_state(), NAMED["a-d0"])
    chosen = choose(start("a-p0", "a-d0"), ["a-p0"], state=state)
    assert chosen is not None
    assert chosen[1] == "b-d0"


def test_what_the_client_selects_holds_for_further_tries() -> None:
    facts = structs.replace(FACTS, selector=parse_selector("set=a"))
    first = start("a-p0", "a-d0")
    assert choose(first, ["a-p0"], facts=facts) == ("a-p1", "a-d0")
    assert choose(first, ["a-p0", "a-p1"], facts=facts) is None


def test_a_queue_that_is_too_long_is_joined_by_nobody() -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for name in ("a-p1", "b-p0"):
        ledger.start(Leg.PREFILL, f"uid-{name}", 3000)
    first, state = start("a-p0", "a-d0"), make_state(ledger)
    assert choose(first, ["a-p0"], state=state, max_wait_s=2.0) == ("b-p1", "b-d0")
    assert choose(first, ["a-p0", "b-p1"], state=state, max_wait_s=2.0) is None
    assert choose(first, ["a-p0", "b-p1"], state=state, max_wait_s=3.0) == ("a-p1", "a-d0")


@pytest.mark.parametrize("prefill", PREFILL_POLICIES)
@pytest.mark.parametrize("decode", DECODE_POLICIES)
def test_a_model_s_own_policies_choose_the_other_pair(prefill: str, decode: str) -> None:
    facts = RoutingFacts(1000, None, prefill_policy=prefill, decode_policy=decode)
    router = Router(STRATEGIES, make_state())
    tried = [NAMED["a-p0"], NAMED["a-p1"]]
    other = router.choose_other(PD, facts, start("a-p0", "a-d0"), PODS, tried=tried, failed=tried)
    assert other is not None
    assert [choice.policy for choice in other.legs] == [prefill, decode]
    assert other.last.pod.name == "b-d0"


@pytest.mark.parametrize("name", [name for name in STRATEGY_NAMES if name != "pd"])
def test_strategies_of_one_pod_have_no_other_pair(name: str) -> None:
    assert choose(start("a-p0", "a-d0"), ["a-p0"], strategy=name) is None


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ModelPods, RoutingState, list[bool]]:
    """Rolesets, some of whose pods have failed others, and whether each next one fails."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
    pods = make_model_pods(
        *(pod for n, (p, d) in enumerate(shapes) for pod in make_roleset(f"r{n}", p, d))
    )
    state = make_state(seed=draw(st.integers(0, 9)))
    eject(state, *(pod for pod in pods.pods if draw(st.integers(0, 3)) == 0))
    fails = draw(st.lists(st.booleans(), min_size=len(pods.prefill), max_size=len(pods.prefill)))
    return pods, state, fails


@given(clusters())
def test_every_pair_is_tried_once_and_no_roleset_is_left_while_it_is_sound(
    found: tuple[ModelPods, RoutingState, list[bool]],
) -> None:
    pods, state, fails = found
    router = Router(STRATEGIES, state)
    troubles = state.failures.look(pods.model)
    decision: Decision | None = router.decide(PD, FACTS, pods)
    tried: list[Pod] = []
    failed: list[Pod] = []
    while decision is not None:
        prefill, last = decision.side[0].pod, decision.last.pod
        assert prefill not in tried
        assert prefill.pairing == last.pairing
        if tried and tried[-1].pairing != last.pairing:
            left = [
                pod
                for pod in pods.prefill
                if pod.pairing == tried[-1].pairing
                and pod not in tried
                and pod.uid not in troubles[Leg.PREFILL]
                and any(d.uid not in troubles[Leg.DECODE] for d in pods.decode[pod.pairing])
            ]
            assert not left or sum(pod.pairing == tried[-1].pairing for pod in failed) >= 2
        if fails[len(tried)]:
            failed.append(prefill)
        tried.append(prefill)
        decision = router.choose_other(PD, FACTS, decision, pods, tried=tried, failed=failed)
    assert set(tried) == set(pods.prefill)


def test_another_address_is_tried_before_another_rank_behind_the_same() -> None:
    ranks = Ranks(size=2).split(make_pod("p", ip="10.0.0.1"))
    other = make_pod("o", ip="10.0.0.2")
    decode = make_pod("d", Role.DECODE, ip="10.0.0.3")
    router = Router(STRATEGIES, make_state(), RoutingRules())
    pods = make_model_pods(*ranks, other, decode)
    first = PD.decide(FACTS, make_model_pods(ranks[0], decode), make_state())

    def choose_next(pods: ModelPods) -> Pod:
        found = router.choose_other(PD, FACTS, first, pods, tried=[ranks[0]], failed=[ranks[0]])
        assert found is not None
        return found.side[0].pod

    assert choose_next(pods) is other
    assert choose_next(make_model_pods(*ranks, decode)) is ranks[1]
