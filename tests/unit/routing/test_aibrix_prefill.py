"""aibrix's policies for prefill pods: formulas, thresholds on both sides, ties at random."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from factories import make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import PolicyOptions, PrefillPolicy, RankingRequest
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import PREFILL_POLICIES

NAMES = ("prefix_cache", "least_request", "conductor")


def make_policy(name: str, **options: Any) -> PrefillPolicy:
    return PREFILL_POLICIES[name](PolicyOptions(**options))


def make_loaded_state(
    counts: Sequence[int],
    matches: Sequence[int] = (),
    *,
    blocks: int = 0,
    seconds: Sequence[float | None] = (),
    seed: int = 0,
) -> RoutingState:
    """Pods p0, p1, …: so many legs, blocks of the prompt cached, and seconds for a prefill."""
    ledger = Ledger(clock=lambda: 0.0)
    for number, count in enumerate(counts):
        for _ in range(count):
            ledger.start(Leg.PREFILL, f"uid-p{number}", 100)
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    for number, match in enumerate(matches):
        prefixes.add(range(1, blocks + 1)[:match], f"uid-p{number}")
    samples = {
        f"uid-p{number}": EngineSample(0.0, prefill_seconds=each)
        for number, each in enumerate(seconds)
    }
    return make_state(ledger, prefixes=prefixes, samples=samples, seed=seed)


def make_routed(state: RoutingState, *, tokens: int = 1000, blocks: int = 0) -> RankingRequest:
    hashes = tuple(range(1, blocks + 1))
    ends = tuple(256 * number for number in hashes)
    prefix = PromptPrefix(hashes, ends, max(ends, default=1))
    return RankingRequest(RoutingFacts(tokens, None, prefix), state)


def make_pods(count: int) -> list[Pod]:
    return [make_pod(f"p{number}") for number in range(count)]


def score(
    name: str,
    counts: Sequence[int],
    matches: Sequence[int] = (),
    *,
    blocks: int = 0,
    tokens: int = 1000,
    seconds: Sequence[float | None] = (),
    **options: Any,
) -> list[float]:
    state = make_loaded_state(counts, matches, blocks=blocks, seconds=seconds)
    request = make_routed(state, tokens=tokens, blocks=blocks)
    return list(make_policy(name, **options).score(make_pods(len(counts)), request))


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_says_the_name_that_it_is_known_by(name: str) -> None:
    assert make_policy(name).name == name


# --- Formulas ---


@pytest.mark.parametrize(
    ("counts", "matches", "blocks", "expected"),
    [
        ([0], [], 0, [10.0]),
        ([0, 0], [], 4, [10.0, 10.0]),
        ([0, 0], [4, 2], 4, [0.0, 5.0]),
        ([1, 2], [0, 0], 4, [10.5, 11.0]),
        # Whole percent: one of three blocks is 33, two are 66.
        ([0, 0, 0], [1, 2, 3], 3, [6.7, 3.4, 0.0]),
        # The cache outweighs the load: one block in a hundred makes up for a tenth of it.
        ([1, 0], [1, 0], 100, [10.9, 10.0]),
        ([1, 0], [10, 0], 100, [10.0, 10.0]),
        ([1, 0], [11, 0], 100, [9.9, 10.0]),
    ],
)
def test_prefix_cache_adds_what_is_missing_and_the_load(
    counts: list[int], matches: list[int], blocks: int, expected: list[float]
) -> None:
    got = score("prefix_cache", counts, matches, blocks=blocks, standard_deviation_factor=9)
    assert got == pytest.approx(expected)


def test_least_request_counts_legs() -> None:
    assert score("least_request", [3, 0, 7], [0, 9, 9], blocks=9) == [3.0, 0.0, math.inf]


USUAL_MS = 0.001 * 512**1.5 + 5


@pytest.mark.parametrize(
    ("counts", "matches", "seconds", "expected"),
    [
        ([0], [0], [], [0.001 * 1000**1.5 + 5]),
        ([0], [4], [], [0.005 * 1000 + 1]),
        ([0], [1], [], [0.005 * 250 + 1 + 0.001 * 750**1.5 + 5]),
        ([2], [4], [0.25], [2 * 250 + 6]),
        ([2], [4], [None], [2 * USUAL_MS + 6]),
        ([2], [4], [math.nan], [2 * USUAL_MS + 6]),
        ([2], [4], [math.inf], [2 * USUAL_MS + 6]),
        ([2], [4], [-1.0], [2 * USUAL_MS + 6]),
        ([2], [4], [], [2 * USUAL_MS + 6]),
    ],
)
def test_conductor_estimates_queue_reuse_and_computation(
    counts: list[int], matches: list[int], seconds: list[float | None], expected: list[float]
) -> None:
    got = score("conductor", counts, matches, blocks=4, seconds=seconds)
    assert got == pytest.approx(expected)


def test_conductor_expects_nothing_of_an_empty_prompt() -> None:
    assert score("conductor", [0], tokens=0) == [0.0]


# --- The standard deviation ---


@pytest.mark.parametrize(
    ("counts", "factor", "left"),
    [
        ([5], 1, [5]),
        ([5, 5, 5], 1, [5, 5, 5]),
        # Mean 1, deviation sqrt(2): the limit is 2.41.
        ([0, 2], 1, [0, 2]),
        # Mean 2, deviation 2: the limit is 4, which itself is left in.
        ([0, 2, 4], 1, [0, 2, 4]),
        # Mean 2, deviation 3.46: the limit is 5.46.
        ([0, 0, 6], 1, [0, 0]),
        ([0, 0, 6], 2, [0, 0, 6]),
        ([0, 0, 6], 1.2, [0, 0, 6]),
        ([0, 0, 6], 1.1, [0, 0]),
        ([1, 2, 3, 4], 0, [1, 2]),
        ([7, 7], 0, [7, 7]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_pods_above_mean_and_deviation_are_left_out(
    name: str, counts: list[int], factor: float, left: list[int]
) -> None:
    scores = score(name, counts, standard_deviation_factor=factor)
    kept = [count for count, each in zip(counts, scores, strict=True) if each < math.inf]
    assert kept == left


def test_the_load_is_measured_by_the_busiest_pod_even_if_that_is_left_out() -> None:
    # As in aibrix: 5 of 20 is a quarter, though the pod with 20 takes no part.
    scores = score("prefix_cache", [5, 0, 0, 20], [5, 0, 0, 0], blocks=100)
    assert scores == pytest.approx([9.75, 10.0, 10.0, math.inf])


# --- The spread ---


@pytest.mark.parametrize(
    ("counts", "spread", "left"),
    [
        ([0, 16], 16, [0, 1]),
        ([0, 17], 16, [0]),
        ([3, 19], 16, [0, 1]),
        ([20, 3], 16, [1]),
        ([0, 1], 0, [0]),
        ([1, 1], 0, [0, 1]),
        ([9], 0, [0]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_spread_above_the_threshold_takes_the_pod_with_the_fewest_legs(
    name: str, counts: list[int], spread: int, left: list[int]
) -> None:
    pods = make_pods(len(counts))
    request = make_routed(make_loaded_state(counts))
    policy = make_policy(name, prefill_imbalance_spread=spread)
    narrowed, note = policy.narrow(pods, request)
    assert narrowed == [pods[index] for index in left]
    assert bool(note) is (len(left) < len(pods))


def test_the_default_threshold_is_aibrixs() -> None:
    policy = make_policy("prefix_cache")
    pods = make_pods(2)
    narrowed, note = policy.narrow(pods, make_routed(make_loaded_state([16, 0])))
    assert (narrowed, note) == (pods, "")
    narrowed, note = policy.narrow(pods, make_routed(make_loaded_state([17, 0])))
    assert narrowed == [pods[1]]
    assert note == "prefix_cache: prefill pods differ by 17 requests, one with the fewest it is"


def test_of_several_with_the_fewest_any_is_taken() -> None:
    pods = make_pods(4)
    policy = make_policy("prefix_cache")
    request = make_routed(make_loaded_state([20, 1, 1, 1]))
    taken = Counter(policy.narrow(pods, request)[0][0].name for _ in range(600))
    assert set(taken) == {"p1", "p2", "p3"}
    assert all(150 < count < 250 for count in taken.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_of_a_leg_are_those_that_are_not_cached(name: str) -> None:
    request = make_routed(make_loaded_state([0], [3], blocks=4), tokens=1000, blocks=4)
    assert make_policy(name).count_tokens("uid-p0", request) == 250
    assert make_policy(name).count_tokens("uid-other", request) == 1000


# --- Invariants ---

_PODS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9), st.none() | st.floats(0, 100)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=150, deadline=None)
@given(_PODS, st.sampled_from(NAMES), st.floats(0, 3), st.integers(0, 100_000))
def test_one_pod_at_least_has_a_score_and_scores_are_numbers(
    described: list[tuple[int, int, float | None]], name: str, factor: float, tokens: int
) -> None:
    counts, matches, seconds = zip(*described, strict=True)
    scores = score(
        name,
        counts,
        matches,
        blocks=9,
        tokens=tokens,
        seconds=seconds,
        standard_deviation_factor=factor,
    )
    assert min(scores) < math.inf
    assert all(each >= 0 for each in scores)


@settings(max_examples=150, deadline=None)
@given(_PODS, st.sampled_from(NAMES), st.data())
def test_more_load_never_makes_a_pod_more_attractive(
    described: list[tuple[int, int, float | None]], name: str, data: st.DataObject
) -> None:
    """Compared with pods that are left in both times: load on an idle pod lowers the deviation,
    so that aibrix's rule may leave out a busy one that was left in before.
    """
    counts, matches, seconds = zip(*described, strict=True)
    busier = data.draw(st.integers(0, len(counts) - 1))
    more = [*counts[:busier], counts[busier] + 1, *counts[busier + 1 :]]
    before, after = (
        score(name, each, matches, blocks=9, seconds=seconds) for each in (counts, more)
    )
    for other in range(len(counts)):
        if max(before[other], after[other]) < math.inf and before[busier] >= before[other]:
            # Sums of decimals differ in the last digit.
            assert after[busier] >= after[other] - 1e-9
