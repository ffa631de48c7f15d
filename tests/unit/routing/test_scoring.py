"""Measures of several scorers add up as aibrix's scores do, seen from below."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from factories import make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import RankingRequest
from pdrouter.routing.scoring import Alone, Listed, Measures, list_names, to_costs

PODS = [make_pod(f"p{number}") for number in range(3)]
REQUEST = RankingRequest(RoutingFacts(1000, None), make_state())
NAN, INF = math.nan, math.inf


@dataclass(frozen=True, slots=True)
class Fixed:
    """A scorer that gives pods the measures it was made with."""

    values: Sequence[float | None]
    most: bool = False
    name: str = "fixed"
    unit: str = "things"
    note: str = ""

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        del request, leg
        return Measures([self.values[PODS.index(pod)] for pod in pods], self.note)


def add_up(*scorers: tuple[Fixed, int]) -> Sequence[float]:
    return Listed("x:1,y:1", scorers).rank(PODS, REQUEST, Leg.DECODE).scores


@pytest.mark.parametrize(
    ("values", "most", "costs"),
    [
        ([3.0, 1.0, 2.0], False, [3.0, 1.0, 2.0]),
        ([3.0, 1.0, 2.0], True, [0.0, 2.0, 1.0]),
        ([3.0, None, 2.0], False, [3.0, 3.0, 2.0]),
        ([3.0, NAN, 2.0], True, [0.0, 1.0, 1.0]),
        ([3.0, INF, 2.0], False, [3.0, 3.0, 2.0]),
        ([3.0, -INF, 2.0], True, [0.0, 1.0, 1.0]),
        ([3.0, None, 3.0], False, [3.0, 4.0, 3.0]),
        ([3.0, None, 3.0], True, [0.0, 1.0, 0.0]),
        ([None, None, NAN], False, [0.0, 0.0, 0.0]),
    ],
)
def test_what_nothing_is_known_of_is_never_the_best(
    values: list[float | None], most: bool, costs: list[float]
) -> None:
    assert to_costs(values, most=most) == costs


@pytest.mark.parametrize(
    ("first", "second", "weights", "scores"),
    [
        # aibrix: least (M - s)/(M - m), most (s - m)/(M - m), weighted by weight / all weights.
        ([0, 5, 10], {"values": [0, 50, 100], "most": True}, (1, 1), [0.5, 0.5, 0.5]),
        ([0, 5, 10], {"values": [0, 50, 100], "most": True}, (1, 3), [0.25, 0.5, 0.75]),
        ([0, 5, 10], {"values": [100, 0, 50], "most": True}, (2, 1), [1.0, 1 / 3, 1 / 6]),
        # One value for all scored pods: each of them has 1, those without a score 0.
        ([4, 4, 4], {"values": [1, 2, 3]}, (1, 1), [1.0, 0.75, 0.5]),
        ([4, None, 4], {"values": [1, 2, 3]}, (1, 1), [1.0, 0.25, 0.5]),
        ([1, None, 3], {"values": [2, 2, 2]}, (1, 1), [1.0, 0.5, 0.5]),
        ([NAN, 1, 3], {"values": [2, 2, 2]}, (9, 1), [0.1, 1.0, 0.1]),
    ],
)
def test_lists_give_what_aibrix_gives(
    first: list[float | None],
    second: dict[str, Any],
    weights: tuple[int, int],
    scores: list[float],
) -> None:
    costs = add_up((Fixed(first), weights[0]), (Fixed(**second), weights[1]))
    assert [1.0 - cost for cost in costs] == pytest.approx(scores)


def test_a_scorer_that_knows_nothing_of_any_pod_makes_no_difference() -> None:
    costs = add_up((Fixed([None] * 3), 1), (Fixed([1, 2, 3]), 1))
    assert costs == [0.0, 0.25, 0.5]


def test_sums_that_differ_by_rounding_only_are_the_same() -> None:
    third = Fixed([0.1, 0.1 + 1e-13, 5.0])
    costs = add_up((third, 1), (Fixed([7.0, 7.0, 8.0]), 2))
    assert costs[0] == costs[1]


def test_a_list_tells_the_measures_and_the_notes_of_all_its_scorers() -> None:
    first = Fixed([1, None, 3], unit="requests", name="a", note="half of it is known")
    second = Fixed([0.5, 0.25, 0], unit="share", name="b")
    ranking = Listed("a:1,b:1", [(first, 1), (second, 1)]).rank(PODS, REQUEST, Leg.DECODE)
    assert ranking.note == "a: half of it is known"
    assert ranking.parts is not None
    assert ranking.parts.describe(0, "uid-p0", 0) == {"requests": 1, "share": 0.5}
    assert ranking.parts.describe(1, "uid-p1", 0) == {"share": 0.25}


def test_alone_the_best_pod_is_that_of_the_scorer() -> None:
    ranking = Alone(Fixed([10, 90, None], most=True)).rank(PODS, REQUEST, Leg.DECODE)
    assert ranking.scores == [80.0, 0.0, 80.0]
    assert ranking.parts is not None
    assert ranking.parts.describe(1, "uid-p1", 0) == {"things": 90}


def test_the_names_in_a_list_are_known() -> None:
    assert list_names("least-request") == {"least-request"}
    assert list_names("prefix-cache:2,least-request:1") == {"least-request", "prefix-cache"}


_VALUES = st.lists(
    st.none() | st.floats(0, 1e6).map(lambda value: round(value, 3)), min_size=3, max_size=3
)


@given(_VALUES, st.booleans())
def test_costs_keep_the_order_of_measures(values: list[float | None], most: bool) -> None:
    costs = to_costs(values, most=most)
    known = [index for index, value in enumerate(values) if value is not None]
    for one in known:
        for other in known:
            better = values[one] > values[other] if most else values[one] < values[other]  # type: ignore[operator]
            assert not better or costs[one] < costs[other]
    best = min(costs)
    assert (
        not known
        or all(costs[index] > best for index in range(3) if index not in known)
        or (len({values[index] for index in known}) > 1)
    )


@given(st.lists(st.tuples(_VALUES, st.integers(1, 10)), min_size=1, max_size=4))
def test_sums_lie_between_the_best_and_the_worst(
    all_values: list[tuple[list[float | None], int]],
) -> None:
    costs = add_up(*((Fixed(values), weight) for values, weight in all_values))
    assert all(-1e-9 <= cost <= 1 + 1e-9 for cost in costs)
