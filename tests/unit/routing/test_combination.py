"""Policies that add up: what users may write, and what becomes of the scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from factories import make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.load.ledger import Ledger
from pdrouter.routing.combination import CombinedDecode, CombinedPrefill, PolicyBook
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import (
    DEFAULT_OPTIONS,
    DecodePolicy,
    PrefillPolicy,
    Ranking,
    RankingRequest,
)
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES
from pdrouter.settings.combination import CombinationInvalid, parse_combination

KNOWN = ("ttft", "least_request")
REQUEST = RankingRequest(RoutingFacts(1000, None), make_state(Ledger()))
PODS = [make_pod(f"p{number}") for number in range(3)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A policy of both legs that gives pods the scores it was made with."""

    scores: Sequence[float]
    name: str = "fixed"
    note: str = ""

    def narrow(self, pods: Sequence[Pod], request: RankingRequest) -> tuple[Sequence[Pod], str]:
        del request
        return pods, self.note

    def score(self, pods: Sequence[Pod], request: RankingRequest) -> Sequence[float]:
        del request
        return [self.scores[PODS.index(pod)] for pod in pods]

    def count_tokens(self, uid: str, request: RankingRequest) -> int:
        del uid, request
        return 7

    def explain(self, pods: Sequence[Pod], request: RankingRequest) -> None:
        del pods, request

    def rank(self, pods: Sequence[Pod], request: RankingRequest) -> Ranking:
        kept = [pod for pod in pods if self.scores[PODS.index(pod)] < math.inf]
        return Ranking(kept, self.score(kept, request), self.note)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("ttft", [("ttft", 1)]),
        ("ttft:5", [("ttft", 5)]),
        ("ttft,least_request", [("ttft", 1), ("least_request", 1)]),
        (" least_request : 3 , ttft ", [("least_request", 3), ("ttft", 1)]),
        ("ttft:0,least_request", [("least_request", 1)]),
        ("ttft:2,ttft", [("ttft", 3)]),
        ("ttft:1000000", [("ttft", 1_000_000)]),
    ],
)
def test_lists_have_names_and_weights(text: str, weights: list[tuple[str, int]]) -> None:
    assert parse_combination(text, KNOWN) == weights


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "policy '' is none of ttft, least_request"),
        ("tftt", "policy 'tftt' is none of"),
        ("ttft,", "policy '' is none of"),
        ("ttft:", "the weight of ttft"),
        ("ttft:-1", "the weight of ttft"),
        ("ttft:1:2", "the weight of ttft"),
        ("ttft:1000001", "the weight of ttft"),
        ("ttft:" + "9" * 5000, "the weight of ttft"),
        ("ttft:0", "all weights are 0"),
    ],
)
def test_anything_else_is_said_to_be_wrong(text: str, complaint: str) -> None:
    with pytest.raises(CombinationInvalid, match=complaint):
        parse_combination(text, KNOWN)


def test_scores_are_brought_to_one_range_and_added_up_by_weight() -> None:
    seconds, requests = Fixed([0.1, 0.2, 0.3]), Fixed([100.0, 50.0, 0.0])
    even = CombinedPrefill("", [(seconds, 1), (requests, 1)])
    assert even.score(PODS, REQUEST) == pytest.approx([0.5, 0.5, 0.5])
    heavy = CombinedPrefill("", [(seconds, 3), (requests, 1)])
    assert heavy.score(PODS, REQUEST) == pytest.approx([0.25, 0.5, 0.75])


def test_a_policy_that_sees_no_difference_does_not_count() -> None:
    policy = CombinedPrefill("", [(Fixed([4.0] * 3), 9), (Fixed([2.0, 1.0, 3.0]), 1)])
    assert policy.score(PODS, REQUEST) == pytest.approx([0.05, 0.0, 0.1])


def test_what_one_policy_takes_out_is_out() -> None:
    policy = CombinedPrefill("", [(Fixed([1.0, math.inf, 3.0]), 1), (Fixed([1.0, 0.0, 0.0]), 1)])
    assert policy.score(PODS, REQUEST) == pytest.approx([0.5, math.inf, 0.5])


def test_one_pod_is_left_where_each_would_take_out_another() -> None:
    out = math.inf
    policy = CombinedPrefill("", [(Fixed([1.0, out, out]), 1), (Fixed([out, 1.0, 1.0]), 1)])
    assert policy.score(PODS, REQUEST) == [0.0, out, out]


def test_decode_policies_look_at_what_those_before_have_left_in() -> None:
    first, second = Fixed([math.inf, 1.0, 2.0], note="one is full"), Fixed([0.0, 5.0, 5.0])
    ranking = CombinedDecode("", [(first, 1), (second, 1)]).rank(PODS, REQUEST)
    assert (ranking.pods, ranking.scores, ranking.note) == (PODS[1:], [0.0, 0.5], "one is full")


def test_the_first_policy_says_what_a_request_costs_and_all_say_whom_they_drop() -> None:
    policy = CombinedPrefill("a:1,b:1", [(Fixed([1.0], note="x"), 1), (Fixed([1.0], note="y"), 1)])
    assert policy.count_tokens("uid-p0", REQUEST) == 7
    assert policy.narrow(PODS, REQUEST) == (PODS, "x; y")


@given(
    st.lists(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), min_size=1, max_size=4),
    st.lists(st.integers(1, 100), min_size=4, max_size=4),
)
def test_a_pod_that_all_like_best_is_best(columns: list[list[float]], weights: list[int]) -> None:
    parts = [
        (Fixed([min(column), *column[1:]]), weight)
        for column, weight in zip(columns, weights, strict=False)
    ]
    scores = CombinedPrefill("", parts).score(PODS, REQUEST)
    assert scores[0] == min(scores) == 0.0
    assert max(scores) <= 1.0 + 1e-9


def make_book() -> PolicyBook[PrefillPolicy]:
    known = {name: create(DEFAULT_OPTIONS) for name, create in PREFILL_POLICIES.items()}
    return PolicyBook(known, "ttft", CombinedPrefill)


def test_a_single_policy_is_itself() -> None:
    book = make_book()
    assert book.find("")[0] is book.default
    assert book.find("ttft:5")[0] is book.find("ttft")[0] is book.default
    assert book.default.name == "ttft"


def test_a_combination_is_made_once_and_named_in_full() -> None:
    book = make_book()
    policy, complaint = book.find("ttft, least_request:2")
    assert (policy.name, complaint) == ("ttft:1,least_request:2", "")
    assert book.find("ttft, least_request:2")[0] is policy


def test_what_is_not_there_gets_the_default_and_a_word() -> None:
    book = make_book()
    assert book.find("tftt") == (
        book.default,
        "policy 'tftt' is none of ttft, prefix_cache, least_request, conductor",
    )


def test_endless_combinations_do_not_fill_the_memory() -> None:
    book = make_book()
    for weight in range(1, 1000):
        book.find(f"ttft:{weight},least_request")
    assert len(book._combined) <= 64


@pytest.mark.parametrize("other", list(DECODE_POLICIES))
def test_every_decode_policy_combines(other: str) -> None:
    known: dict[str, DecodePolicy] = {
        name: create(DEFAULT_OPTIONS) for name, create in DECODE_POLICIES.items()
    }
    book = PolicyBook(known, "kv_capacity", CombinedDecode)
    pods = [make_pod(f"d{number}", Role.DECODE) for number in range(3)]
    ranking = book.find(f"kv_capacity,{other}")[0].rank(pods, REQUEST)
    assert set(ranking.pods) <= set(pods)
    assert len(ranking.pods) == len(ranking.scores) >= 1


@pytest.mark.parametrize("other", list(PREFILL_POLICIES))
def test_every_prefill_policy_combines(other: str) -> None:
    policy, _ = make_book().find(f"ttft,{other}")
    pods, _ = policy.narrow(PODS, REQUEST)
    assert min(policy.score(pods, REQUEST)) < math.inf
    assert policy.count_tokens("uid-p0", REQUEST) == 1000
