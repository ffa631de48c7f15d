"""Prompt-length buckets and combined pods: only pods that are for a prompt get it."""

import json
import math
from collections import Counter
from typing import Any

import pytest
from factories import MODEL, make_model_pods, make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pod_config import PodConfig, parse_config
from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample
from pdrouter.routing.aibrix.bucketing import measure_pressure
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts, Strategy
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.router import Router
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies
from pdrouter.routing.strategy_book import StrategyBook

P, D, BOTH, OTHER = Role.PREFILL, Role.DECODE, Role.BOTH, Role.OTHER


def make_strategy(*, bucketing: bool = True, **options: Any) -> Strategy:
    return create_strategies(options=PolicyOptions(bucketing=bucketing, **options))["pd"]


PD = make_strategy()


def make_config(low: int, high: int, *, combined: bool = False, **others: Any) -> PodConfig:
    routing = {"promptLenBucketMinLength": low, "promptLenBucketMaxLength": high}
    profiles = {"default": {"routingConfig": {**routing, "combined": combined}}, **others}
    return parse_config(json.dumps({"profiles": profiles}))


def make_sized(name: str, role: Role, low: int, high: int, **changes: Any) -> Pod:
    combined = role in (BOTH, OTHER)
    config = make_config(low, high, combined=combined)
    return make_pod(name, role, **{"roleset": "r", "config": config, **changes})


def decide(
    *pods: Pod,
    tokens: int = 100,
    state: RoutingState | None = None,
    strategy: Strategy = PD,
    **facts: Any,
) -> Decision:
    facts = {"whole": None, **facts}
    return strategy.decide(
        RoutingFacts(tokens, **facts), make_model_pods(*pods), state or make_state()
    )


def names_of(decision: Decision) -> tuple[str | None, str]:
    return (decision.prefill.pod.name if decision.prefill else None, decision.last.pod.name)


# --- Buckets ---


@pytest.mark.parametrize(
    ("tokens", "pair"),
    [
        (0, ("p-short", "d-short")),
        (100, ("p-short", "d-short")),
        (101, ("p-long", "d-long")),
        (10_000, ("p-long", "d-long")),
    ],
)
def test_a_prompt_goes_to_the_pair_whose_bucket_holds_it(
    tokens: int, pair: tuple[str, str]
) -> None:
    pods = [
        make_sized("p-short", P, 0, 100),
        make_sized("d-short", D, 0, 100),
        make_sized("p-long", P, 101, 10_000),
        make_sized("d-long", D, 101, 10_000),
    ]
    for seed in range(5):
        assert names_of(decide(*pods, tokens=tokens, state=make_state(seed=seed))) == pair


def test_a_roleset_counts_only_if_both_of_its_sides_hold_the_prompt() -> None:
    pods = [
        make_sized("p-a", P, 0, 100, roleset="a"),
        make_sized("d-a", D, 0, 99, roleset="a"),
        make_sized("p-b", P, 0, 100, roleset="b"),
        make_sized("d-b", D, 0, 100, roleset="b"),
    ]
    for seed in range(5):
        assert names_of(decide(*pods, state=make_state(seed=seed))) == ("p-b", "d-b")


@pytest.mark.parametrize(("low", "high"), [(100, 99), (99, 100)])
def test_half_of_a_roleset_is_of_no_use(low: int, high: int) -> None:
    with pytest.raises(NoReadyPod, match="prompts of about 100 tokens"):
        decide(make_sized("p", P, 0, low), make_sized("d", D, 0, high))


def test_pods_that_say_nothing_take_any_prompt() -> None:
    pods = [make_pod("p", P, roleset="r"), make_sized("d", D, 0, 100)]
    assert names_of(decide(*pods)) == ("p", "d")
    unresolved = parse_config('{"defaultProfile": "gone", "profiles": {"a": {}}}')
    pods[0] = make_pod("p", P, roleset="r", config=unresolved)
    assert names_of(decide(*pods)) == ("p", "d")


def test_a_prompt_that_nothing_is_for_has_no_pod() -> None:
    pods = [make_sized("p", P, 0, 99), make_sized("d", D, 0, 99)]
    message = f"for model '{MODEL}' and prompts of about 100 tokens"
    with pytest.raises(NoReadyPod, match=message) as caught:
        decide(*pods)
    assert caught.value.role is P


@pytest.mark.parametrize(
    ("pods", "role"), [([make_sized("p", P, 0, 0)], D), ([make_sized("d", D, 0, 0)], P)]
)
def test_without_a_pair_the_missing_role_is_named(pods: list[Pod], role: Role) -> None:
    with pytest.raises(NoReadyPod) as caught:
        decide(*pods)
    assert caught.value.role is role


def test_buckets_follow_the_profile_of_the_request() -> None:
    def make_both(name: str, role: Role, low: int) -> Pod:
        other = {"routingConfig": {"promptLenBucketMinLength": 100 - low}}
        return make_pod(name, role, roleset=name[-1], config=make_config(low, 0, night=other))

    pods = [make_both(f"{r.value[0]}-{low}", r, low) for r in (P, D) for low in (99, 9)]
    assert names_of(decide(*pods, tokens=50)) == ("p-9", "d-9")


def test_without_bucketing_configurations_do_not_matter() -> None:
    pods = [make_sized("p", P, 0, 99), make_sized("d", D, 0, 99), make_sized("c", OTHER, 0, 0)]
    assert names_of(decide(*pods, strategy=make_strategy(bucketing=False))) == ("p", "d")


def test_another_try_stays_within_the_bucket_and_never_goes_to_a_combined_pod() -> None:
    pods = make_model_pods(
        make_sized("p0", P, 0, 100),
        make_sized("p1", P, 0, 99),
        make_sized("p2", P, 0, 100),
        make_sized("d", D, 0, 100),
        make_sized("c", BOTH, 0, 100),
    )
    state = make_waiting({"p2": 9.0, "c": 0.0}, {"p2": 1})
    router, facts = Router(StrategyBook({}), state), RoutingFacts(100, None)
    tried = [pod for pod in pods.prefill if pod.name != "p2"]
    decision = PD.decide(facts, make_model_pods(*tried, pods.partners[0]), state)
    other = router.choose_other(PD, facts, decision, pods, tried=tried[:1], failed=[])
    assert other is not None
    assert names_of(other) == ("p2", "d")
    all_tried = pods.prefill
    assert router.choose_other(PD, facts, other, pods, tried=all_tried, failed=[]) is None


# --- Combined pods ---

SHORT = [make_sized("p", P, 0, 99), make_sized("d", D, 0, 99)]


@pytest.mark.parametrize("role", [BOTH, OTHER])
def test_a_prompt_that_no_pair_is_for_goes_to_a_combined_pod(role: Role) -> None:
    pods = [*SHORT, make_sized("c", role, 100, 100)]
    decision = decide(*pods, output_tokens=7)
    assert names_of(decision) == (None, "c")
    assert decision.reason == "no-bucket"
    assert (decision.last.policy, decision.last.tokens) == ("combined", 107)


def test_without_any_pair_a_combined_pod_takes_the_prompt() -> None:
    pods = [make_pod("p", P), make_sized("c", OTHER, 0, 0)]
    assert names_of(decide(*pods)) == (None, "c")


def test_of_several_combined_pods_any_takes_it() -> None:
    pods = [*SHORT, *(make_sized(f"c{n}", OTHER, 0, 0) for n in range(3))]
    state = make_state()
    taken = Counter(decide(*pods, state=state).last.pod.name for _ in range(600))
    assert all(150 < taken[f"c{n}"] < 250 for n in range(3))


@pytest.mark.parametrize(
    "pod",
    [
        make_sized("c", OTHER, 0, 99),
        make_sized("c", OTHER, 101, 0),
        make_sized("c", OTHER, 0, 0, ready=False),
        make_sized("c", OTHER, 0, 0, roleset=""),
        make_sized("c", OTHER, 0, 0, config=None),
        make_sized("c", OTHER, 0, 0, config=make_config(0, 0)),
        make_sized("c", P, 0, 0, config=make_config(0, 0, combined=True), roleset="alone"),
        make_sized("c", D, 0, 0, config=make_config(0, 0, combined=True), roleset="alone"),
    ],
)
def test_pods_that_are_not_combined_do_not_help(pod: Pod) -> None:
    with pytest.raises(NoReadyPod):
        decide(*SHORT, pod)


def test_a_pair_is_preferred_to_a_combined_pod() -> None:
    assert names_of(decide(*SHORT, make_sized("c", OTHER, 0, 0), tokens=99)) == ("p", "d")


@pytest.mark.parametrize(
    ("pods", "taken"),
    [
        ([*SHORT, make_sized("c", OTHER, 0, 0)], "c"),
        ([make_sized("d0", D, 0, 99), make_sized("d1", D, 0, 100)], "d1"),
        ([make_sized("b", BOTH, 0, 100), make_sized("d", D, 0, 99)], "b"),
        ([make_sized("b", BOTH, 100, 100)], "b"),
        ([make_sized("c", OTHER, 100, 100)], "c"),
    ],
)
def test_a_request_that_is_served_whole_keeps_to_buckets_too(pods: list[Pod], taken: str) -> None:
    assert names_of(decide(*pods, whole="n")) == (None, taken)


def test_a_whole_request_that_nothing_is_for_has_no_pod() -> None:
    with pytest.raises(NoReadyPod, match="prompts of about 100 tokens"):
        decide(*SHORT, whole="n")
    with pytest.raises(NoReadyPod, match=f"no ready decode pod for model '{MODEL}'$"):
        decide(make_pod("p", P), whole="n")


# --- Overload ---


def make_waiting(
    waiting: dict[str, float | None], completed: dict[str, int] | None = None
) -> RoutingState:
    """So many requests wait on the pods, which completed so many in the last ten seconds."""
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    for name, count in (completed or {}).items():
        ledger.start(Leg.DECODE, f"uid-{name}")
        for _ in range(count):
            ledger.start(Leg.DECODE, f"uid-{name}").release()
    now = 10.0
    samples = {f"uid-{name}": EngineSample(0.0, waiting=each) for name, each in waiting.items()}
    return make_state(ledger, samples=samples)


@pytest.mark.parametrize(
    ("waiting", "completed", "pressure"),
    [
        ({"p": 10.0}, {"p": 10}, 10.0),
        ({"p": 10.0}, {"p": 40}, 2.5),
        ({"p": 0.0}, {"p": 10}, 0.0),
        # aibrix: 0 / 0, which is no number, and no rule applies any more.
        ({"p": 0.0}, {}, 0.0),
        ({"p": 0.0}, {"p": 0}, 0.0),
        ({"p": 1.0}, {"p": 0}, math.inf),
        ({"p": 1.0}, {}, None),
        ({"p": None}, {"p": 10}, None),
        ({"p": math.nan}, {"p": 10}, None),
        ({}, {"p": 10}, None),
    ],
)
def test_pressure_is_what_waits_by_the_rate_of_late(
    waiting: dict[str, float | None], completed: dict[str, int], pressure: float | None
) -> None:
    assert measure_pressure("uid-p", make_waiting(waiting, completed)) == pressure


@pytest.mark.parametrize(
    ("waiting", "completed", "taken"),
    [
        # One prefill or decode pod with more than a second of queue, a combined one with less
        # than a quarter.
        ({"p": 2.0, "c0": 0.0}, {"p": 10}, "c0"),
        ({"p": 1.0, "c0": 0.0}, {"p": 10}, "d"),
        ({"d": 2.0, "c0": 0.0}, {"d": 10}, "c0"),
        ({"p": 2.0, "c0": 1.0}, {"p": 10, "c0": 50}, "c0"),
        ({"p": 2.0, "c0": 1.0}, {"p": 10, "c0": 40}, "d"),
        ({"p": 2.0, "c0": 1.0, "c1": 1.0}, {"p": 10, "c0": 50, "c1": 60}, "c1"),
        ({"p": 1.0, "c0": 0.0}, {"p": 0}, "c0"),
        # Who does not tell its queue neither needs help nor gives it.
        ({"p": 2.0}, {"p": 10}, "d"),
        ({"c0": 0.0}, {}, "d"),
        ({"p": 2.0, "c0": 0.0}, {}, "d"),
        ({"p": 2.0, "c0": 1.0}, {"p": 10}, "d"),
    ],
)
def test_an_idle_combined_pod_relieves_a_pair_with_long_queues(
    waiting: dict[str, float | None], completed: dict[str, int], taken: str
) -> None:
    pods = [*SHORT, make_sized("c0", OTHER, 0, 0), make_sized("c1", OTHER, 0, 0)]
    decision = decide(*pods, tokens=50, state=make_waiting(waiting, completed))
    assert decision.last.pod.name == taken
    assert decision.reason == ("pair-overloaded" if taken != "d" else "")
    assert all(math.isfinite(each) for each in decision.last.scores)


# --- Invariants ---

_PODS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(Role),
            "roleset": st.sampled_from(["", "a", "b"]),
            "ready": st.booleans(),
            "labels": st.sampled_from([{}, {"tier": "gold"}]),
            "config": st.none()
            | st.builds(
                lambda low, high, combined: make_config(low, high, combined=combined),
                st.integers(0, 12),
                st.integers(0, 12),
                st.booleans(),
            ),
        }
    ),
    max_size=9,
)


@settings(max_examples=300, deadline=None)
@given(
    _PODS,
    st.integers(1, 12),
    st.sampled_from([None, "n"]),
    st.booleans(),
    st.sampled_from([("ttft", "kv_capacity"), ("prefix_cache", "load_balancing")]),
    st.dictionaries(st.sampled_from("012345678"), st.floats(0, 5)),
    st.data(),
)
def test_whatever_the_cluster_only_pods_that_are_for_the_request_get_it(
    described: list[dict[str, Any]],
    tokens: int,
    whole: str | None,
    selecting: bool,
    policies: tuple[str, str],
    waiting: dict[str, float],
    data: st.DataObject,
) -> None:
    pods = [make_pod(str(number), **each) for number, each in enumerate(described)]
    strategy = create_strategies(*policies, PolicyOptions(bucketing=True))["pd"]
    selector = parse_selector("tier=gold") if selecting else None
    completed = data.draw(st.dictionaries(st.sampled_from("012345678"), st.integers(0, 9)))
    facts = RoutingFacts(tokens, whole, selector=selector)
    state = make_waiting({**waiting}, completed)

    def is_eligible(pod: Pod) -> bool:
        profile = pod.config.profiles["default"] if pod.config else None
        return (
            pod.ready
            and (not selecting or pod.labels == {"tier": "gold"})
            and (profile is None or profile.holds(tokens))
        )

    def is_combined(pod: Pod) -> bool:
        config = pod.config
        return bool(config and config.profiles["default"].combined and pod.roleset)

    eligible = [pod for pod in pods if is_eligible(pod)]
    try:
        decision = strategy.decide(facts, make_model_pods(*pods), state)
    except NoReadyPod:
        assert not any(pod.role in (BOTH, OTHER) and is_combined(pod) for pod in eligible)
        if whole is None:
            keys = [{pod.pairing for pod in eligible if pod.role is role} for role in (P, D)]
            assert not keys[0] & keys[1]
        return
    decode, prefill = decision.last.pod, decision.prefill
    assert decode in eligible
    assert decode in decision.last.candidates
    assert all(math.isfinite(each) for each in decision.last.scores)
    if prefill is None:
        assert decision.reason
        assert decode.role in (D, BOTH) or is_combined(decode)
        return
    assert prefill.pod in eligible
    assert prefill.pod in prefill.candidates
    assert all(math.isfinite(each) for each in prefill.scores)
    assert (prefill.pod.role, decode.role) == (P, D)
    assert prefill.pod.pairing == decode.pairing
