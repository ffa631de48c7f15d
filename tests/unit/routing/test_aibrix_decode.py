"""aibrix's policies for decode pods: formulas, thresholds on both sides, ties at random."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from factories import make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample
from pdrouter.routing.aibrix.decode import (
    DecodeCondition,
    find_fewest_requests,
    find_lowest_throughput,
    find_soonest_drained,
)
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import DecodePolicy, PolicyOptions, RankingRequest
from pdrouter.routing.strategies import DECODE_POLICIES

NAMES = ("load_balancing", "least_request", "conductor")
_SPREADS = ("decode_imbalance_spread", "decode_throughput_spread", "decode_score_ratio")
"""Thresholds of the rules against imbalance."""
Described = tuple[int, float | None, float | None]
"""Requests, throughput, and share of the KV memory in use."""


def make_policy(name: str, **options: Any) -> DecodePolicy:
    return DECODE_POLICIES[name](PolicyOptions(**options))


def make_pods(count: int) -> list[Pod]:
    return [make_pod(f"d{number}", Role.DECODE) for number in range(count)]


def make_routed(described: Sequence[Described]) -> RankingRequest:
    """Pods d0, d1, …, in these conditions."""
    ledger = Ledger(clock=lambda: 0.0)
    samples = {}
    for number, (requests, throughput, usage) in enumerate(described):
        for _ in range(requests):
            ledger.start(Leg.DECODE, f"uid-d{number}")
        samples[f"uid-d{number}"] = EngineSample(
            0.0, generated_tokens_per_s=throughput, kv_usage=usage
        )
    return RankingRequest(RoutingFacts(100, None), make_state(ledger, samples=samples))


def score(name: str, *described: Described, **options: Any) -> list[float]:
    """What the formula says, whatever the rules against imbalance would say."""
    pods = make_pods(len(described))
    options |= dict.fromkeys(_SPREADS, math.inf)
    ranking = make_policy(name, **options).rank(pods, make_routed(described))
    assert (ranking.pods, ranking.note) == (pods, "")
    return list(ranking.scores)


def make_conditions(counts: Sequence[int], throughputs: Sequence[float | None] = ()) -> Any:
    rates = throughputs or [None] * len(counts)
    return [DecodeCondition(*each, 100.0) for each in zip(counts, rates, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_says_the_name_that_it_is_known_by(name: str) -> None:
    assert make_policy(name).name == name


# --- Conditions ---


@pytest.mark.parametrize(
    ("usage", "free"),
    [
        (None, 100.0),
        (0.0, 100.0),
        (0.004, 100.0),
        (0.005, 100.0),
        (0.0051, 99.0),
        (0.5, 50.0),
        (0.994, 1.0),
        (0.996, 0.1),
        (1.0, 0.1),
        (1.2, 0.1),
        (math.nan, 100.0),
        (math.inf, 100.0),
    ],
)
def test_free_memory_is_rounded_to_percent_and_never_nothing(
    usage: float | None, free: float
) -> None:
    condition = DecodeCondition.observe("uid-d0", make_routed([(0, None, usage)]))
    assert condition.free == free


@pytest.mark.parametrize("throughput", [None, math.nan, math.inf, -1.0])
def test_a_throughput_that_is_no_number_is_not_known(throughput: float | None) -> None:
    assert DecodeCondition.observe("uid-d0", make_routed([(3, throughput, None)])) == (
        DecodeCondition(3, None, 100.0)
    )


def test_a_pod_that_says_nothing_is_judged_by_what_was_sent_there() -> None:
    request = make_routed([(3, 7.0, 0.5)])
    assert DecodeCondition.observe("uid-d9", request) == DecodeCondition(0, None, 100.0)


# --- Formulas ---


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ([(0, None, None)], [1.0]),
        ([(0, 100.0, 0.0)], [0.0]),
        ([(4, 100.0, 0.0), (2, 50.0, 0.0)], [1.0, 1.0]),
        ([(4, 100.0, 0.0), (2, 100.0, 0.0)], [1.0, 0.5]),
        ([(4, 100.0, 0.5), (4, 100.0, 0.0)], [2.0, 1.0]),
        ([(4, 100.0, 0.5), (4, 100.0, 0.5)], [1.0, 1.0]),
        ([(1, 100.0, 1.0), (1, 100.0, 0.0)], [1000.0, 1.0]),
        ([(1, None, 0.0), (1, 100.0, 0.0)], [2.0, 1.0]),
        # The highest count as one at least.
        ([(0, 0.5, 0.0), (0, 0.25, 0.0)], [0.5, 0.75]),
        ([(0, None, 1.0), (0, None, 1.0)], [10.0, 10.0]),
    ],
)
def test_load_balancing_weighs_requests_and_idle_throughput_by_free_memory(
    described: list[Described], expected: list[float]
) -> None:
    assert score("load_balancing", *described) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("running", "throughput", "expected"),
    [(1.0, 1.0, [1.0, 1.0]), (3.0, 1.0, [3.0, 2.0]), (1.0, 0.0, [1.0, 0.5]), (0.0, 2.0, [0, 1])],
)
def test_load_balancing_has_weights(
    running: float, throughput: float, expected: list[float]
) -> None:
    described: list[Described] = [(4, 100.0, 0.0), (2, 50.0, 0.0)]
    got = score("load_balancing", *described, weight_running=running, weight_throughput=throughput)
    assert got == pytest.approx(expected)


def test_least_request_counts_requests() -> None:
    assert score("least_request", (3, 9.0, 0.9), (0, None, None)) == [3.0, 0.0]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ((0, None, None), 40.0),
        ((1, None, None), 40.0),
        ((2, None, None), 30.0),
        ((4, 100.0, 0.0), 12.5),
        ((4, 0.0, 0.0), 25.0),
        ((4, 100.0, 0.9), 12.5),
        # Free memory is rounded: 9.6 percent are ten, 9.4 are nine.
        ((4, 100.0, 0.904), 12.5),
        ((4, 100.0, 0.906), 18.75),
        ((4, 100.0, 1.0), 18.75),
    ],
)
def test_conductor_estimates_the_time_between_tokens(described: Described, expected: float) -> None:
    assert score("conductor", described) == pytest.approx([expected])


# --- Rules against imbalance ---


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([0, 15], []),
        ([0, 16], [0]),
        ([0, 17], [0]),
        ([20, 3, 4, 3], [1, 3]),
        ([5], []),
    ],
)
def test_a_spread_of_requests_that_reaches_the_threshold_takes_the_fewest(
    counts: list[int], found: list[int]
) -> None:
    assert find_fewest_requests(make_conditions(counts), 16) == found


@pytest.mark.parametrize(
    ("counts", "throughputs", "found"),
    [
        ([1, 1], [0.0, 2048.0], []),
        ([1, 1], [0.0, 2048.5], [0]),
        ([1, 1, 1], [5000.0, 10.0, 10.0], [1, 2]),
        # Who says nothing neither counts nor is taken.
        ([1, 1, 1], [5000.0, None, 10.0], [2]),
        ([1, 1], [5000.0, None], []),
        ([1, 1], [None, None], []),
        ([1], [5000.0], []),
        # Little throughput with more requests than the fastest pod has: that is a slow pod.
        ([2, 1], [10.0, 5000.0], []),
        ([2, 2], [10.0, 5000.0], [0]),
        ([2, 1, 1], [10.0, 10.0, 5000.0], [1]),
        ([2, 1, 3], [10.0, 5000.0, 5000.0], []),
    ],
)
def test_a_spread_of_throughput_above_the_threshold_takes_the_idlest(
    counts: list[int], throughputs: list[float | None], found: list[int]
) -> None:
    assert find_lowest_throughput(make_conditions(counts, throughputs), 2048) == found


@pytest.mark.parametrize(
    ("counts", "rates", "found"),
    [
        ([3, 2], [1.0, 1.0], []),
        ([31, 20], [1.0, 1.0], [1]),
        ([4, 4], [1.0, 2.0], [1]),
        ([4, 4], [1.0, 1.5], []),
        ([8, 2, 2], [1.0, 1.0, 1.0], [1, 2]),
        # All must complete requests, and have some.
        ([8, 2], [1.0, None], []),
        ([8, 2], [1.0, 0.0], []),
        ([8, 0], [1.0, 1.0], []),
        # Rates count as 0.1 at least.
        ([4, 4], [0.1, 0.01], []),
        ([4, 4], [0.16, 0.01], [0]),
        ([5], [1.0], []),
    ],
)
def test_a_ratio_of_drain_times_above_the_threshold_takes_the_shortest(
    counts: list[int], rates: list[float | None], found: list[int]
) -> None:
    assert find_soonest_drained(make_conditions(counts), rates, 1.5) == found


@pytest.mark.parametrize(
    ("described", "drained", "taken", "why"),
    [
        ([(16, 0.0, None), (0, 5000.0, None)], [0, 0], "d1", "the fewest requests"),
        ([(2, 0.0, None), (2, 5000.0, None)], [0, 0], "d0", "the lowest throughput"),
        (
            [(2, 10.0, None), (2, 500.0, None)],
            [100, 200],
            "d1",
            "the fewest requests for the rate at which it completes them",
        ),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_rule_that_applies_takes_one_pod(
    name: str, described: list[Described], drained: list[int], taken: str, why: str
) -> None:
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    samples = {}
    for number, (each, completed) in enumerate(zip(described, drained, strict=True)):
        uid = f"uid-d{number}"
        for _ in range(completed):
            ledger.start(Leg.DECODE, uid).release()
        for _ in range(each[0]):
            ledger.start(Leg.DECODE, uid)
        samples[uid] = EngineSample(0.0, generated_tokens_per_s=each[1])
    now = 20.0
    request = RankingRequest(RoutingFacts(1, None), make_state(ledger, samples=samples))
    ranking = make_policy(name).rank(make_pods(len(described)), request)
    assert [pod.name for pod in ranking.pods] == [taken]
    assert len(ranking.scores) == 1
    assert ranking.note == f"{name}: decode pods differ, one with {why} it is"


@pytest.mark.parametrize("name", NAMES)
def test_pods_that_differ_little_are_all_left(name: str) -> None:
    pods = make_pods(3)
    request = make_routed([(15, 2000.0, None), (0, 1.0, 0.9), (3, None, None)])
    ranking = make_policy(name).rank(pods, request)
    assert (ranking.pods, ranking.note) == (pods, "")


def test_of_several_with_the_fewest_any_is_taken() -> None:
    pods = make_pods(4)
    policy = make_policy("load_balancing")
    request = make_routed([(20, None, None), *[(1, None, None)] * 3])
    taken = Counter(policy.rank(pods, request).pods[0].name for _ in range(600))
    assert set(taken) == {"d1", "d2", "d3"}
    assert all(150 < count < 250 for count in taken.values())


# --- Invariants ---

_THROUGHPUTS = st.none() | st.just(0.0) | st.floats(0.01, 100_000) | st.just(math.nan)
_PODS = st.lists(
    st.tuples(st.integers(0, 30), _THROUGHPUTS, st.none() | st.floats(0, 1.1) | st.just(math.nan)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(_PODS, st.sampled_from(NAMES))
def test_scores_are_finite_and_what_is_left_was_there(
    described: list[Described], name: str
) -> None:
    assert all(0 <= each < math.inf for each in score(name, *described))
    pods = make_pods(len(described))
    ranking = make_policy(name).rank(pods, make_routed(described))
    assert ranking.pods
    assert all(pod in pods for pod in ranking.pods)
    assert len(ranking.scores) == len(ranking.pods)
    assert bool(ranking.note) == (len(ranking.pods) < len(pods))


@settings(max_examples=150, deadline=None)
@given(_PODS, st.sampled_from(["load_balancing", "least_request"]), st.data())
def test_more_load_never_makes_a_pod_more_attractive(
    described: list[Described], name: str, data: st.DataObject
) -> None:
    """A pod that was taken with its load may be any; one that was not is not for having more."""
    busier = data.draw(st.integers(0, len(described) - 1))
    requests, *rest = described[busier]
    after = [*described]
    after[busier] = (requests + 1, rest[0], rest[1])
    pods = make_pods(len(described))
    policy = make_policy(name)

    def find_best(described: list[Described]) -> set[str]:
        """Names of all pods that may be taken."""
        best = set()
        request = make_routed(described)
        for _ in range(12):
            ranking = policy.rank(pods, request)
            lowest = min(ranking.scores)
            best |= {
                pod.name
                for pod, each in zip(ranking.pods, ranking.scores, strict=True)
                if each <= lowest + 1e-9
            }
        return best

    if f"d{busier}" not in find_best(described):
        assert f"d{busier}" not in find_best(after)
