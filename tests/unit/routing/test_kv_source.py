"""From which pod the one that computes a prompt has its beginning."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.engines.split import Leg
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.kv_source import find_kv_source
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategy_book import StrategyBook

BLOCKS = 10
PREFIX = PromptPrefix(tuple(range(BLOCKS)), tuple(range(100, 1100, 100)), 1000)
FACTS = RoutingFacts(1000, None, PREFIX)
"""A prompt of ten blocks of 100 tokens."""


def make_pods(**changes: Mapping[str, Any]) -> list[Pod]:
    """Three prefill pods, `a` to `c`, and a decode pod, some of which are made otherwise."""
    roles = {"a": Role.PREFILL, "b": Role.PREFILL, "c": Role.PREFILL, "d": Role.DECODE}
    return [make_pod(name, role, **changes.get(name, {})) for name, role in roles.items()]


def cache(**blocks: int) -> RoutingState:
    """The state in which pods have cached so many blocks of the prompt."""
    state = make_state()
    for name, count in blocks.items():
        state.prefixes.add(PREFIX.hashes[:count], f"uid-{name}")
    return state


def find(
    state: RoutingState,
    pods: Sequence[Pod] | None = None,
    *,
    facts: RoutingFacts = FACTS,
    failed: Sequence[Pod] = (),
    least: int = 1,
) -> str | None:
    """The name of the source of a prompt that the first pod computes."""
    pods = pods or make_pods()
    router = Router(StrategyBook({}), state, RoutingRules(source_tokens=least))
    source = router.find_kv_source(pods[0], facts, make_model_pods(*pods), failed)
    return None if source is None else source.name


@pytest.mark.parametrize(
    ("cached", "source"),
    [
        ({}, None),
        ({"b": 3}, "b"),
        ({"b": 3, "c": 5}, "c"),
        ({"a": 2, "b": 3}, "b"),
        ({"a": 3, "b": 3, "c": 2}, None),
        ({"a": 10}, None),
        # Decode pods are not asked.
        ({"d": 10}, None),
    ],
)
def test_the_source_has_more_of_the_prompt_than_any_other(
    cached: dict[str, int], source: str | None
) -> None:
    assert find(cache(**cached)) == source


@pytest.mark.parametrize(("least", "source"), [(1, "b"), (200, "b"), (201, None)])
def test_what_saves_too_little_is_not_fetched(least: int, source: str | None) -> None:
    assert find(cache(a=1, b=3), least=least) == source


@pytest.mark.parametrize(
    "change",
    [
        {"ready": False},
        {"roleset": "other"},
        {"revision": "v2"},
        {"namespace": "other"},
        {"engine": "trtllm"},
        {"kv_connector": "nixl"},
        {"role": Role.BOTH},
    ],
)
def test_a_source_is_as_the_chosen_pod_is(change: dict[str, Any]) -> None:
    pods = make_pods()
    role = change.pop("role", Role.PREFILL)
    others = [make_pod("b", role, **change), make_pod("e", Role.DECODE, **change)]
    assert find(cache(b=9, c=2), [pods[0], *others, *pods[2:]]) == "c"


def test_pods_that_fail_are_no_sources() -> None:
    state, pods = cache(b=9, c=2), make_pods()
    for _ in range(state.failures.rules.after):
        assert find(state, pods) == "b"
        state.failures.note_failure("uid-b", Leg.PREFILL, "connect", 0.0)
    assert find(state, pods) == "c"


def test_a_pod_that_has_failed_this_request_is_no_source() -> None:
    state, pods = cache(b=9, c=2), make_pods()
    assert find(state, pods, failed=[pods[1]]) == "c"
    assert find(state, pods, failed=pods[1:3]) is None


def test_the_client_says_which_pods_may_know_of_it() -> None:
    pods = make_pods(a={"labels": {"tier": "x"}}, c={"labels": {"tier": "x"}})
    facts = RoutingFacts(1000, None, PREFIX, selector=parse_selector("tier=x"))
    assert find(cache(b=9, c=2), pods, facts=facts) == "c"


def test_another_rank_of_the_same_pod_may_be_the_source() -> None:
    ranks = Ranks(size=2).split(make_pod("a"))
    state = make_state()
    state.prefixes.add(PREFIX.hashes, "uid-a#1")
    assert find(state, [*ranks, make_pod("d", Role.DECODE)]) == "a#1"


def test_those_that_have_as_much_are_all_asked_at_times() -> None:
    state, pods = cache(b=5, c=5), make_pods()
    assert {find(state, pods) for _ in range(50)} == {"b", "c"}


@given(
    cached=st.dictionaries(st.sampled_from("abc"), st.integers(0, BLOCKS)),
    least=st.integers(1, 1200),
)
def test_a_source_always_has_what_is_asked_of_it(cached: dict[str, int], least: int) -> None:
    pods = make_pods()
    state = cache(**cached)
    source = find_kv_source(
        pods[0], FACTS, make_model_pods(*pods), state, least_tokens=least, avoided=()
    )
    # One token of a prompt is computed in any case.
    computed = {name: max(1, 1000 - 100 * cached.get(name, 0)) for name in "abc"}
    best = min(computed["b"], computed["c"])
    if source is None:
        assert computed["a"] - best < least
    else:
        assert computed[source.name] == best <= computed["a"] - least
