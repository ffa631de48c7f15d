"""Which pods go together: of one version, by what each can take, and near rather than far."""

from collections import Counter, deque
from collections.abc import Sequence
from random import Random

import pytest
from factories import MODEL, make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.places import are_placed, measure_distance
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.pairs import PickedPair, pick_pair
from pdrouter.routing.policy import PolicyOptions, Ranking
from pdrouter.routing.router import Router
from pdrouter.routing.strategies import create_strategies
from pdrouter.routing.strategy_book import StrategyBook

PD = create_strategies(options=PolicyOptions(locality_weight=0.02))["pd"]
FACTS = RoutingFacts(1000, None, output_tokens=100)


def make_version(name: str, prefill: int, decode: int) -> list[Pod]:
    return [
        *(make_pod(f"p-{name}-{n}", revision=name) for n in range(prefill)),
        *(make_pod(f"d-{name}-{n}", Role.DECODE, revision=name) for n in range(decode)),
    ]


def serve(pods: ModelPods, number: int, at_once: int) -> list[Decision]:
    """Decide so many requests, so many of which are in flight at any time."""
    ledger = Ledger(PrefillRates(10_000), lambda: 0.0)
    router = Router(StrategyBook({"pd": PD}), make_state(ledger))
    flying: deque[list[Scope]] = deque()
    decisions = []
    for _ in range(number):
        decision = router.decide(PD, FACTS, pods)
        decisions.append(decision)
        flying.append([ledger.start(leg.leg, leg.pod.uid, leg.tokens) for leg in decision.legs])
        if len(flying) > at_once:
            for scope in flying.popleft():
                scope.release()
    return decisions


@pytest.mark.parametrize("at_once", [0, 1, 4, 16, 64])
@pytest.mark.parametrize(
    ("old", "new", "share"),
    [((7, 7), (1, 1), 1 / 8), ((1, 3), (1, 1), 1 / 3), ((4, 4), (4, 4), 1 / 2)],
    ids=["one of eight", "1P3D beside 1P1D", "half way"],
)
def test_each_version_gets_what_it_can_take(
    old: tuple[int, int], new: tuple[int, int], share: float, at_once: int
) -> None:
    pods = make_model_pods(*make_version("old", *old), *make_version("new", *new))
    decisions = serve(pods, 2000, at_once)
    taken = Counter(decision.last.pod.revision for decision in decisions)
    assert taken["new"] / 2000 == pytest.approx(share, abs=0.05 if old != (1, 3) else 0.18)
    assert all(
        decision.prefill and decision.prefill.pod.revision == decision.last.pod.revision
        for decision in decisions
    )


def test_another_pair_is_of_one_version_too() -> None:
    pods = make_model_pods(*make_version("old", 2, 2), *make_version("new", 1, 1))
    state = make_state()
    first = PD.decide(FACTS, pods, state)
    assert first.prefill is not None
    tried = {first.prefill.pod.uid}
    while (other := choose_other_pair(first, PD, FACTS, pods, state, avoided=tried)) is not None:
        assert other.prefill is not None
        assert other.prefill.pod.pairing == other.last.pod.pairing
        tried.add(other.prefill.pod.uid)
    assert len(tried) == 3


def test_the_reason_says_that_a_version_is_missing() -> None:
    pods = make_model_pods(
        make_pod("p", revision="new"), make_pod("d", Role.DECODE, revision="old")
    )
    with pytest.raises(NoReadyPod, match="no ready prefill pod with a ready decode pod of its ver"):
        PD.decide(FACTS, pods, make_state())


NODE, RACK, ZONE = 0, 1, 2


def place(node: str = "", rack: str = "", zone: str = "") -> tuple[str, ...]:
    return node, rack, zone


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (place("n", "r", "z"), place("n", "r", "z"), 0),
        (place("n", "r", "z"), place("m", "r", "z"), 1 / 3),
        (place("n", "r", "z"), place("m", "s", "z"), 2 / 3),
        (place("n", "r", "z"), place("m", "s", "y"), 1),
        (place("n", "", "z"), place("m", "", "z"), 2 / 3),
        (place(), place(), 1),
        ((), (), 1),
        (("a",), ("a",), 0),
        (("a",), (), 1),
    ],
)
def test_the_nearest_place_in_common_says_how_far_pods_are_apart(
    one: tuple[str, ...], other: tuple[str, ...], distance: float
) -> None:
    assert measure_distance(one, other) == measure_distance(other, one) == pytest.approx(distance)


@pytest.mark.parametrize(
    ("prefill", "decode", "placed"),
    [
        ([place()], [place(), place()], False),
        ([()], [()], False),
        ([place("a"), place("b")], [place("c"), place("d")], False),
        ([place("a"), place("b")], [place("a"), place("c")], True),
        ([place("a", zone="z")], [place("b", zone="z"), place("c", zone="z")], False),
        ([place("a", zone="z")], [place("b", zone="z"), place("c", zone="y")], True),
        ([place("a", zone="z")], [place("b", zone="z"), place("c")], True),
    ],
)
def test_places_matter_if_some_pods_are_nearer_than_others(
    prefill: Sequence[tuple[str, ...]], decode: Sequence[tuple[str, ...]], placed: bool
) -> None:
    pods = [make_pod(f"p{n}", places=each) for n, each in enumerate(prefill)]
    others = [make_pod(f"d{n}", Role.DECODE, places=each) for n, each in enumerate(decode)]
    assert are_placed(pods, others) is placed
    assert make_model_pods(*pods, *others).placed is placed


def make_zones() -> list[Pod]:
    return [
        make_pod(f"{role[0]}-{zone}-{n}", role, places=place(f"{role}{zone}{n}", zone=zone))
        for role in (Role.PREFILL, Role.DECODE)
        for zone in "ab"
        for n in range(2)
    ]


def zone_of(pod: Pod) -> str:
    return pod.places[ZONE]


def test_among_equals_the_near_are_taken() -> None:
    decisions = serve(make_model_pods(*make_zones()), 200, 0)
    taken: Counter[str] = Counter()
    for decision in decisions:
        assert decision.prefill is not None
        assert zone_of(decision.prefill.pod) == zone_of(decision.last.pod)
        taken[zone_of(decision.last.pod)] += 1
        assert not decision.notes
    assert min(taken["a"], taken["b"]) > 60


def test_load_counts_more_than_distance() -> None:
    pods = make_zones()
    ledger = Ledger(PrefillRates(10_000), lambda: 0.0)
    state = make_state(ledger)
    for pod in pods:
        busy = 4 if pod.role is Role.DECODE and zone_of(pod) == "a" else 0
        for _ in range(busy):
            ledger.start(Leg.DECODE, pod.uid, 100)
    only_a = [pod for pod in pods if pod.role is Role.DECODE or zone_of(pod) == "a"]
    decision = PD.decide(FACTS, make_model_pods(*only_a), state)
    assert zone_of(decision.last.pod) == "b"


def test_a_near_pod_that_scores_a_little_worse_is_taken_and_said() -> None:
    prefill = make_pod("p", places=place("n", zone="a"))
    near = make_pod("near", Role.DECODE, places=place("m", zone="a"))
    far = make_pod("far", Role.DECODE, places=place("o", zone="b"))
    pods = make_model_pods(prefill, near, far)
    args = Ranking([prefill], [0.0]), Ranking([near, far], [1.0, 0.995]), pods, Random(0)
    pair = pick_pair(*args, 0.02)
    assert (pair.prefill, pair.decode) == (0, 0)
    assert pair.note == "locality: pods with better scores are farther from each other"
    assert pick_pair(*args, 0.0) == PickedPair(0, 1)
    args = Ranking([prefill], [0.0]), Ranking([near, far], [1.0, 0.9]), pods, Random(0)
    assert pick_pair(*args, 0.02) == PickedPair(0, 1)


def test_on_many_nodes_not_all_pairs_are_compared() -> None:
    pods = [
        make_pod(f"{role[0]}{n}", role, places=place(f"n{n}"))
        for role in (Role.PREFILL, Role.DECODE)
        for n in range(60)
    ]
    for decision in serve(make_model_pods(*pods), 50, 0):
        assert decision.prefill is not None
        assert decision.prefill.pod.places == decision.last.pod.places


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=6),
    st.lists(st.floats(0, 100), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_where_no_label_says_anything_locality_changes_nothing(
    ours: list[float], theirs: list[float], rolesets: int, seed: int
) -> None:
    prefill = [make_pod(f"p{n}", roleset=str(n % rolesets)) for n in range(len(ours))]
    decode = [make_pod(f"d{n}", Role.DECODE, roleset=str(n % rolesets)) for n in range(len(theirs))]
    pods = ModelPods.group(MODEL, (*prefill, *decode))
    scores = {pod.uid: score for pod, score in zip(prefill + decode, ours + theirs, strict=True)}
    prefills = Ranking(pods.prefill, [scores[pod.uid] for pod in pods.prefill])
    decodes = Ranking(pods.partners, [scores[pod.uid] for pod in pods.partners])
    plain, near = (
        pick_pair(prefills, decodes, pods, Random(seed), locality) for locality in (0.0, 10.0)
    )
    assert plain == near


def test_of_equal_pods_of_several_rolesets_any_may_be_taken() -> None:
    pods = make_model_pods(
        *(
            make_pod(f"{role}-{name}-{number}", role, roleset=name)
            for role in (Role.PREFILL, Role.DECODE)
            for name in "ab"
            for number in range(3)
        )
    )
    decisions = serve(pods, 400, 0)
    for leg in range(2):
        taken = Counter(decision.legs[leg].pod.name for decision in decisions)
        assert len(taken) == 6
        assert min(taken.values()) > 30
