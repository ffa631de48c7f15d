"""The choice of pods: always eligible ones, the least loaded, ties at random."""

from collections import Counter
from random import Random

import pytest
from factories import MODEL, make_model_pods, make_pod, make_state
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import (
    Decision,
    DecisionKind,
    NoReadyPod,
    RoutingFacts,
    Strategy,
)
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings.choices import STRATEGY_NAMES

P, D, BOTH, OTHER = Role.PREFILL, Role.DECODE, Role.BOTH, Role.OTHER
SERVES_WHOLE = (D, BOTH)
STRATEGIES = create_strategies()
PD = STRATEGIES["pd"]
SPLIT = RoutingFacts(100, None)
WHOLE = RoutingFacts(100, "n")


def decide(
    strategy: Strategy,
    *pods: Pod,
    facts: RoutingFacts = SPLIT,
    ledger: Ledger | None = None,
    seed: int = 0,
) -> Decision:
    return strategy.decide(facts, make_model_pods(*pods), make_state(ledger, seed=seed))


def names_of(decision: Decision) -> tuple[str | None, str]:
    prefill = decision.prefill
    return (prefill.pod.name if prefill else None, decision.last.pod.name)


_CLUSTERS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(Role),
            "roleset": st.sampled_from(["", "a", "b"]),
            "engine": st.sampled_from(["vllm", "sglang"]),
            "ready": st.booleans(),
        }
    ),
    max_size=8,
).map(lambda all_changes: [make_pod(f"pod-{n}", **each) for n, each in enumerate(all_changes)])
_LOADS = st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(1, 1000)), max_size=12)


def load_pods(pods: list[Pod], loads: list[tuple[int, bool, int]]) -> Ledger:
    ledger = Ledger(clock=lambda: 0.0)
    for index, is_prefill, tokens in loads:
        if index < len(pods):
            uid = pods[index].uid
            ledger.start(Leg.PREFILL, uid, tokens) if is_prefill else ledger.start(Leg.DECODE, uid)
    return ledger


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(STRATEGIES)),
    _CLUSTERS,
    _LOADS,
    st.sampled_from([SPLIT, WHOLE]),
    st.integers(0, 100),
)
def test_whatever_the_cluster_the_pods_chosen_are_eligible_and_the_least_loaded(
    name: str, pods: list[Pod], loads: list[tuple[int, bool, int]], facts: RoutingFacts, seed: int
) -> None:
    ledger = load_pods(pods, loads)
    before = ledger.snapshot()
    decided = True
    try:
        decision = decide(STRATEGIES[name], *pods, facts=facts, ledger=ledger, seed=seed)
    except NoReadyPod:
        decided = False
    else:
        _check_decision(name, decision, pods, facts, ledger)
    assert ledger.snapshot() == before
    ready = [pod for pod in pods if pod.ready]
    split = name == "pd" and not facts.whole and any(pod.role in (P, D) for pod in pods)
    possible = (
        any(p.role is P and d.role is D and p.pairing == d.pairing for p in ready for d in ready)
        if split
        else any(pod.role in SERVES_WHOLE and pod.serves_whole for pod in ready)
    )
    assert possible == decided


def _check_decision(
    name: str, decision: Decision, pods: list[Pod], facts: RoutingFacts, ledger: Ledger
) -> None:
    decode = decision.last.pod
    assert decode in pods
    assert decode.ready
    assert decode.role in SERVES_WHOLE
    if decision.prefill is None:
        assert decision.kind is DecisionKind.AGGREGATED
        assert decision.reason
        candidates = [
            pod for pod in pods if pod.ready and pod.role in SERVES_WHOLE and pod.serves_whole
        ]
    else:
        assert (name, facts.whole, decision.reason) == ("pd", None, "")
        assert decision.kind is DecisionKind.DISAGGREGATED
        prefill = decision.prefill.pod
        assert prefill in pods
        assert prefill.ready
        assert (prefill.role, decode.role) == (P, D)
        assert prefill.pairing == decode.pairing
        candidates = [p for p in pods if p.ready and p.role is D and p.pairing == decode.pairing]
        mates = [p for p in pods if p.ready and p.role is P and p.pairing == prefill.pairing]
        least_tokens = min(ledger.load(Leg.PREFILL, pod.uid).tokens for pod in mates)
        assert ledger.load(Leg.PREFILL, prefill.uid).tokens == least_tokens
    if name in {"pd", "least-request", "session-affinity"}:
        least = min(ledger.load(Leg.DECODE, pod.uid).requests for pod in candidates)
        assert decision.last.score == least == ledger.load(Leg.DECODE, decode.uid).requests


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=5),
    st.data(),
    st.sampled_from([P, D]),
    st.integers(0, 50),
)
def test_adding_load_to_a_pod_never_makes_it_more_attractive(
    loads: list[int], data: st.DataObject, role: Role, seed: int
) -> None:
    """A pod that loses with some load still loses with more; one that wins, wins with less."""
    many = [make_pod(f"{role}-{n}", role) for n in range(len(loads))]
    one = make_pod("one", D if role is P else P)
    ledger = Ledger(clock=lambda: 0.0)

    def add_load(pod: Pod) -> None:
        ledger.start(Leg.PREFILL, pod.uid, 100) if role is P else ledger.start(Leg.DECODE, pod.uid)

    for pod, load in zip(many, loads, strict=True):
        for _ in range(load):
            add_load(pod)

    def choose() -> Pod:
        decision = decide(PD, *many, one, ledger=ledger, seed=seed)
        assert decision.prefill is not None
        return decision.prefill.pod if role is P else decision.last.pod

    chosen = choose()
    other = data.draw(st.sampled_from(many))
    assume(other is not chosen)
    # With the same randomness, a tie may fall to another pod, but not to one that got more load.
    add_load(other)
    assert choose() is not other


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_ties_fall_to_every_pod_about_as_often(name: str) -> None:
    pods = [make_pod(f"p{n}", P) for n in range(3)] + [make_pod(f"d{n}", D) for n in range(3)]
    state = make_state(seed=7)
    chosen: Counter[str | None] = Counter()
    for _ in range(600):
        chosen.update(names_of(STRATEGIES[name].decide(SPLIT, make_model_pods(*pods), state)))
    assert all(150 < chosen[f"d{n}"] < 250 for n in range(3))
    if name == "pd":
        assert all(150 < chosen[f"p{n}"] < 250 for n in range(3))


def test_the_same_randomness_gives_the_same_choice() -> None:
    pods = [make_pod(f"p{n}", P) for n in range(4)] + [make_pod(f"d{n}", D) for n in range(4)]
    assert decide(PD, *pods, seed=3) == decide(PD, *pods, seed=3)


def test_prefill_goes_to_the_pod_with_fewest_tokens_not_fewest_requests() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    for _ in range(5):
        ledger.start(Leg.PREFILL, "uid-many-short", 10)
    ledger.start(Leg.PREFILL, "uid-one-long", 1000)
    pods = make_pod("many-short", P), make_pod("one-long", P), make_pod("d", D)
    decision = decide(PD, *pods, ledger=ledger)
    assert names_of(decision) == ("many-short", "d")


def test_of_two_rolesets_the_pair_with_the_lower_sum_wins() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    pods = [make_pod(f"{r.value[0]}-{s}", r, roleset=s) for r in (P, D) for s in ("a", "b")]
    ledger.start(Leg.PREFILL, "uid-p-b", 800)
    ledger.start(Leg.DECODE, "uid-d-a")
    # Prefill in b would wait for a tenth of a second, decode in a shares its pod.
    assert names_of(decide(PD, *pods, ledger=ledger)) == ("p-b", "d-b")
    ledger.start(Leg.PREFILL, "uid-p-b", 80_000)
    ledger.start(Leg.DECODE, "uid-d-b")
    assert names_of(decide(PD, *pods, ledger=ledger)) == ("p-a", "d-a")


def test_load_of_the_other_leg_does_not_matter() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    ledger.start(Leg.DECODE, "uid-p0")
    ledger.start(Leg.PREFILL, "uid-p1", 1)
    ledger.start(Leg.PREFILL, "uid-d0", 10**9)
    ledger.start(Leg.DECODE, "uid-d1")
    pods = make_pod("p0", P), make_pod("p1", P), make_pod("d0", D), make_pod("d1", D)
    assert names_of(decide(PD, *pods, ledger=ledger)) == ("p0", "d0")


@pytest.mark.parametrize(
    ("name", "facts", "pods", "reason"),
    [
        ("pd", WHOLE, [make_pod("p", P), make_pod("x", D)], "n"),
        ("pd", SPLIT, [make_pod("x", BOTH)], "not-disaggregated"),
        ("pd", WHOLE, [make_pod("x", BOTH)], "n"),
        ("random", SPLIT, [make_pod("p", P), make_pod("x", D)], "strategy-random"),
        ("random", WHOLE, [make_pod("p", P), make_pod("x", D)], "n"),
        ("least-request", SPLIT, [make_pod("x", BOTH), make_pod("p", P)], "strategy-least-request"),
    ],
)
def test_a_request_that_is_served_whole_says_why_and_avoids_prefill_pods(
    name: str, facts: RoutingFacts, pods: list[Pod], reason: str
) -> None:
    decision = decide(STRATEGIES[name], *pods, facts=facts)
    assert decision.prefill is None
    assert decision.last.pod.name == "x"
    assert decision.reason == reason


@pytest.mark.parametrize(
    ("name", "facts", "pods", "role"),
    [
        ("pd", SPLIT, [make_pod("p", P)], D),
        ("pd", SPLIT, [make_pod("d", D)], P),
        ("pd", SPLIT, [make_pod("p", P, ready=False), make_pod("d", D)], P),
        ("pd", SPLIT, [make_pod("p", P), make_pod("d", D, ready=False)], D),
        ("pd", SPLIT, [make_pod("p", P, roleset="a"), make_pod("d", D, roleset="b")], P),
        ("pd", SPLIT, [], D),
        ("pd", SPLIT, [make_pod("b", BOTH, ready=False)], D),
        ("pd", WHOLE, [make_pod("p", P)], D),
        ("pd", SPLIT, [make_pod("o", OTHER)], D),
        ("random", SPLIT, [make_pod("p", P)], D),
        ("random", SPLIT, [make_pod("o", OTHER)], BOTH),
        ("random", SPLIT, [make_pod("b", BOTH, ready=False)], BOTH),
        ("least-request", WHOLE, [make_pod("d", D, ready=False)], D),
    ],
)
def test_a_missing_pod_is_an_error_that_names_model_and_role(
    name: str, facts: RoutingFacts, pods: list[Pod], role: Role
) -> None:
    with pytest.raises(NoReadyPod, match=f"no ready {role} pod.* for model .{MODEL}.") as caught:
        decide(STRATEGIES[name], *pods, facts=facts)
    assert caught.value.role is role


# --- Parts ---


def test_the_picker_takes_the_lowest_and_any_of_several() -> None:
    assert pick_lowest([2.0, 1.0, 3.0], Random(0)) == 1
    assert {pick_lowest([1.0, 2.0, 1.0], Random(seed)) for seed in range(20)} == {0, 2}


def test_strategies_are_known_by_their_names() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    assert all(strategy.name == name for name, strategy in STRATEGIES.items())


def test_a_profile_may_combine_policies() -> None:
    """The pod that has the prompt cached wins alone, and loses against one with fewer requests."""
    pods = make_model_pods(make_pod("hot"), make_pod("cold"), make_pod("d", Role.DECODE))
    ledger = Ledger(clock=lambda: 0.0)
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    prefix = PromptPrefix((1, 2), (500, 1000), 1000)
    prefixes.add(prefix.hashes, "uid-hot")
    ledger.start(Leg.PREFILL, "uid-hot", 10)
    state = make_state(ledger, prefixes=prefixes)
    chosen = {}
    for policy in ("", "ttft:1,least_request:9", "ttft:9,least_request"):
        facts = RoutingFacts(1000, None, prefix, prefill_policy=policy)
        decision = create_strategies()["pd"].decide(facts, pods, state)
        assert decision.prefill is not None
        assert decision.notes == ()
        chosen[policy] = (decision.prefill.pod.name, decision.prefill.policy)
    assert chosen == {
        "": ("hot", "ttft"),
        "ttft:1,least_request:9": ("cold", "ttft:1,least_request:9"),
        "ttft:9,least_request": ("hot", "ttft:9,least_request:1"),
    }
