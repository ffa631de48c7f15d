"""How routers part the pods among them."""

from collections import Counter
from hashlib import blake2b
from random import Random
from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Role
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.routing import homes as module
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.homes import Homes, find_homes, part_evenly
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.policy import PolicyOptions, RankingRequest
from pdrouter.routing.strategies import create_strategies
from pdrouter.routing.ttft import TimeToFirstToken

NAMES = st.lists(st.text("abcxyz0123456789-", min_size=1), min_size=1, max_size=24, unique=True)


@given(NAMES, NAMES)
@settings(deadline=None)
def test_every_pod_is_somebodys_home_and_nobody_has_much_more(
    pods: list[str], routers: list[str]
) -> None:
    homes = {router: find_homes(router, routers, pods) for router in routers}
    assert frozenset().union(*homes.values()) == set(pods)
    assert all(homes.values())
    sizes = [len(home) for home in homes.values()]
    assert max(sizes) - min(sizes) <= 1
    guests = Counter(pod for home in homes.values() for pod in home)
    assert max(guests.values()) - min(guests.values()) <= 1
    if len(pods) >= len(routers):
        assert set(guests.values()) == {1}


@given(NAMES, NAMES, st.randoms())
@settings(deadline=None)
def test_all_routers_see_the_same_parts(
    pods: list[str], routers: list[str], random: Random
) -> None:
    mixed_pods, mixed_routers = random.sample(pods, len(pods)), random.sample(routers, len(routers))
    for router in routers:
        assert find_homes(router, routers, pods) == find_homes(router, mixed_routers, mixed_pods)


@pytest.mark.parametrize("routers", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("pods", [8, 16, 64, 200])
def test_one_more_router_moves_few(pods: int, routers: int) -> None:
    """Little more than what it gets itself must move."""
    if routers >= pods:
        pytest.skip("each has one pod then")
    uids = [f"pod-{number}" for number in range(pods)]
    names = [f"router-{number}/0" for number in range(routers + 1)]
    before, after = part_evenly(uids, names[:-1]), part_evenly(uids, names)
    moved = [uid for uid in uids if before[uid] != after[uid]]
    gets = sum(owner == names[-1] for owner in after.values())
    assert gets <= len(moved) <= 1.5 * gets + 3


@pytest.mark.parametrize("routers", [2, 4, 8])
def test_a_pod_that_goes_moves_few(routers: int) -> None:
    uids = [f"pod-{number}" for number in range(64)]
    names = [f"router-{number}/0" for number in range(routers)]
    before = part_evenly(uids, names)
    for gone in uids:
        after = part_evenly([uid for uid in uids if uid != gone], names)
        assert sum(before[uid] != owner for uid, owner in after.items()) <= routers


def test_one_router_is_at_home_everywhere() -> None:
    assert Homes().find(("a", "b")) == frozenset()
    assert Homes(RouterGroup("r")).find(("a", "b")) == frozenset()


def test_homes_follow_the_replicas_that_there_are() -> None:
    pods = tuple(f"pod-{number}" for number in range(8))
    group = RouterGroup("r-0")
    homes = Homes(group)
    assert homes.find(pods) == frozenset()
    # It is not ready yet, and so not among those that Kubernetes names.
    group.take_replicas(["r-1"], starting=["r-0"])
    assert len(homes.find(pods)) == 4
    group.take_replicas(["r-0", "r-1", "r-2", "r-3"])
    assert len(homes.find(pods)) == 2
    group.take_replicas([])
    assert homes.find(pods) == frozenset()


def test_a_pod_that_is_the_home_of_all_costs_nobody_more() -> None:
    group = RouterGroup("0", replicas=("0", "1", "2"))
    assert Homes(group).find(("only",)) == frozenset()


def test_others_homes_cost_more_and_are_taken_when_the_own_are_busy() -> None:
    pods = [make_pod(str(number)) for number in range(4)]
    uids = tuple(pod.uid for pod in pods)
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    group = RouterGroup("0", replicas=("0", "1"))
    state = make_state(ledger, homes=Homes(group))
    own = state.homes.find(uids)
    assert len(own) == 2
    request = RankingRequest(RoutingFacts(1000, None), state, uids)
    policy = TimeToFirstToken(PolicyOptions(compute_weight=1.0, away_cost=0.5))
    assert policy.score(pods, request) == [1.0 if uid in own else 1.5 for uid in uids]
    parts = policy.explain(pods, request)
    assert parts is not None
    for index, (uid, score) in enumerate(zip(uids, policy.score(pods, request), strict=True)):
        described = parts.describe(index, uid, score)
        assert described["away_factor"] == (1.0 if uid in own else 1.5)
        assert (described["wait_s"], described["compute_s"]) == (0.0, 1.0)
    for uid in own:
        ledger.start(Leg.PREFILL, uid, 2000)
    scores = policy.score(pods, request)
    assert uids[scores.index(min(scores))] not in own


def make_labelled() -> ModelPods:
    pods = [
        make_pod(f"{role}-{number}", role, labels={"number": str(number), "odd": str(number % 2)})
        for role in (Role.PREFILL, Role.DECODE)
        for number in range(8)
    ]
    return make_model_pods(*pods)


def test_whatever_a_request_may_not_go_to_the_parts_are_worked_out_once() -> None:
    """A client names labels, and by its deadline leaves pods out: that must not cost anything."""
    pods = make_labelled()
    group = RouterGroup("0", replicas=("0", "1", "2"))
    state = make_state(Ledger(PrefillRates(1000), lambda: 0.0), homes=Homes(group))
    strategy = create_strategies()["pd"]
    for text in ("number=1", "number!=1", "odd=1", "number in (1,2,3)"):
        facts = RoutingFacts(1000, None, selector=parse_selector(text))
        decision = strategy.decide(facts, pods, state)
        choose_other_pair(
            decision, strategy, facts, pods, state, avoided={decision.legs[0].pod.uid}
        )
    assert len(state.homes._found) == 1


def test_a_home_is_one_among_fewer_pods_too() -> None:
    pods = make_labelled()
    group = RouterGroup("0", replicas=("0", "1"))
    state = make_state(Ledger(PrefillRates(1000), lambda: 0.0), homes=Homes(group))
    own = state.homes.find(pods.prefill_uids)
    assert len(own) == 4
    policy = TimeToFirstToken(PolicyOptions(compute_weight=1.0, away_cost=0.5))
    request = RankingRequest(RoutingFacts(1000, None), state, pods.prefill_uids)
    some = pods.prefill[:5]
    assert own & {pod.uid for pod in some}
    scores = policy.score(some, request)
    assert scores == [1.0 if pod.uid in own else 1.5 for pod in some]
    away = [pod for pod in pods.prefill if pod.uid not in own]
    assert policy.score(away, request) == [1.0] * len(away)
    parts = policy.explain(away, request)
    assert parts is not None
    assert parts.describe(0, away[0].uid, 1.0)["away_factor"] == 1.0


def test_weights_are_worked_out_once_for_each_pod_and_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[bytes] = []

    def count(names: bytes, *, digest_size: int) -> Any:
        hashed.append(names)
        return blake2b(names, digest_size=digest_size)

    monkeypatch.setattr(module, "blake2b", count)
    homes = Homes(RouterGroup("once-0", replicas=("once-0", "once-1", "once-2")))
    uids = tuple(f"once-{number}" for number in range(100))
    homes.find(uids)
    assert len(hashed) == 300
    homes.find(uids[:-1])
    homes.find((*uids[1:], "new"))
    assert len(hashed) == 303


def test_what_changes_nothing_leaves_the_parts_as_they_are() -> None:
    group = RouterGroup("0", replicas=("0", "1"))
    homes = Homes(group)
    homes.find(("a", "b", "c", "d"))
    group.take_replicas(["1", "0"])
    homes.find(("a", "b"))
    assert len(homes._found) == 2
