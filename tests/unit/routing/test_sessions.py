"""Which pod the requests of a session go to, whoever asks and however often."""

from collections import Counter
from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.openai.sessions import Session
from pdrouter.routing.admission import QueueTooLong
from pdrouter.routing.decision import Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.explanation import describe_in_detail
from pdrouter.routing.label_selector import parse_selector
from pdrouter.routing.other_pair import choose_other_pair
from pdrouter.routing.policy import PolicyOptions
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.runner_up import find_runner_up
from pdrouter.routing.session_affinity import (
    AffinityRules,
    SessionOutcome,
    order_pods,
    place_session,
)
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings.choices import SessionAffinity

STRATEGIES = create_strategies()
SOFT = AffinityRules(SessionAffinity.SOFT, factor=1.25, slack=0)
STRICT = AffinityRules(SessionAffinity.STRICT)
OFF = AffinityRules()
SESSION = Session("session-1", "x-session-id")


def make_decoders(count: int, **changes: Any) -> list[Pod]:
    return [
        make_pod(f"d{number}", Role.DECODE, ip=f"10.0.0.{number + 1}", **changes)
        for number in range(count)
    ]


DECODERS = make_decoders(4)
PREFILL = make_pod("p", ip="10.0.1.1")
PAIRS = make_model_pods(PREFILL, *DECODERS)
OWN, NEXT, *_ = order_pods(SESSION.key, DECODERS)


def decide(
    session: Session | None = SESSION,
    pods: Any = PAIRS,
    rules: AffinityRules = SOFT,
    *,
    strategy: str = "pd",
    busy: dict[str, int] | None = None,
    seed: int = 0,
    **facts: Any,
) -> Decision:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for uid, requests in (busy or {}).items():
        for _ in range(requests):
            ledger.start(Leg.DECODE, uid, 10)
    router = Router(STRATEGIES, make_state(ledger, seed=seed), RoutingRules(affinity=rules))
    request = RoutingFacts(1000, facts.pop("whole", None), session=session, **facts)
    return router.decide(STRATEGIES[strategy], request, pods)


@pytest.mark.parametrize(
    ("key", "order"),
    [("session-1", (2, 3, 4, 1)), ("käse", (2, 3, 4, 1)), ("", (4, 2, 3, 1))],
)
def test_the_order_is_the_same_for_all_routers_of_all_versions(
    key: str, order: tuple[int, ...]
) -> None:
    """During an update, routers of two versions serve the same sessions."""
    assert [pod.ip for pod in order_pods(key, DECODERS)] == [f"10.0.0.{host}" for host in order]


@given(st.lists(st.integers(1, 250), min_size=1, max_size=30, unique=True), st.randoms())
@settings(deadline=None, max_examples=40)
def test_a_pod_that_goes_moves_its_own_sessions_and_no_others(
    hosts: list[int], random: Any
) -> None:
    pods = [make_pod(f"d{host}", Role.DECODE, ip=f"10.0.0.{host}") for host in hosts]
    gone = random.choice(pods)
    left = [pod for pod in random.sample(pods, len(pods)) if pod is not gone]
    for number in range(20):
        before, after = order_pods(f"s-{number}", pods), order_pods(f"s-{number}", left)
        assert after == [pod for pod in before if pod is not gone]


NEIGHBOURS = {
    "hosts": [make_pod(f"d{n}", Role.DECODE, ip=f"10.0.0.{n}") for n in range(1, 21)],
    "few hosts": [make_pod(f"d{n}", Role.DECODE, ip=f"10.0.0.{n}") for n in range(1, 4)],
    "ports": [make_pod(f"d{n}", Role.DECODE, port=8000 + n) for n in range(8)],
    "ranks of one address": [*Ranks(size=8).split(make_pod("d", Role.DECODE))],
    "ranks of two ports": [
        rank
        for port in (22002, 22003)
        for rank in Ranks(size=2).split(make_pod(f"d{port}", Role.DECODE, port=port))
    ],
}
"""Pods whose addresses are all but the same: a weak hash takes some of them for each other."""


@pytest.mark.parametrize("pods", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_each_pod_gets_about_its_share(pods: list[Pod]) -> None:
    orders = [order_pods(f"session-{number}", pods) for number in range(6000)]

    expect_even(Counter(order[0].name for order in orders), len(pods))
    # One that goes, or has too much to do, leaves what it has to all others.
    gone = orders[0][0]
    expect_even(Counter(order[1].name for order in orders if order[0] is gone), len(pods) - 1)
    # And one that comes takes about its share, from all of them.
    more = [*pods, make_pod("new", Role.DECODE, ip="10.0.0.99")]
    firsts = [order_pods(f"session-{number}", more)[0] for number in range(6000)]
    owners = zip(firsts, orders, strict=True)
    moved = Counter(order[0].name for first, order in owners if first.name == "new")
    assert 0.7 < moved.total() / (6000 / len(more)) < 1.3
    expect_even(moved, len(pods))


def expect_even(owners: Counter[str], count: int) -> None:
    """No more than chance makes of it: shares of few sessions differ by five deviations at most."""
    usual = owners.total() / count
    assert len(owners) == count
    assert all(abs(owned - usual) < 5 * usual**0.5 for owned in owners.values()), owners


def test_ranks_behind_one_address_are_told_apart() -> None:
    ranks = Ranks(size=8).split(DECODERS[0])
    owners = {order_pods(f"session-{number}", ranks)[0].uid for number in range(200)}
    assert owners == {rank.uid for rank in ranks}


def test_another_rank_behind_the_same_address_is_another_pod_to_a_session() -> None:
    ranks = Ranks(size=4).split(DECODERS[0])
    own, following, *_ = order_pods(SESSION.key, ranks)
    able = [rank for rank in ranks if rank is not own]
    place = place_session(SESSION, able, ranks, STRICT, lambda _: 0.0)
    assert (place.pods[0], place.outcome) == (following, SessionOutcome.AWAY)
    place = place_session(SESSION, ranks, ranks, STRICT, lambda _: 0.0)
    assert (place.pods[0], place.outcome) == (own, SessionOutcome.KEPT)


@pytest.mark.parametrize("strategy", ["pd", "random", "least-request", "session-affinity"])
@pytest.mark.parametrize("rules", [SOFT, STRICT], ids=["soft", "strict"])
@pytest.mark.parametrize("whole", [None, "n"])
def test_a_session_stays_on_its_pod(strategy: str, rules: AffinityRules, whole: str | None) -> None:
    for seed in range(5):
        decision = decide(strategy=strategy, rules=rules, seed=seed, whole=whole)
        assert decision.last.pod == OWN
        assert decision.session is SessionOutcome.KEPT
        assert decision.last.policy == "session-affinity"
        assert decision.notes[0] == f"session (x-session-id): kept, {OWN.name} is its pod"


def test_a_decision_says_what_became_of_the_session() -> None:
    described = describe_in_detail(decide(busy={OWN.uid: 9}))
    assert described["session"] == "overloaded"
    assert described["decode"]["policy"] == "session-affinity"
    assert described["decode"]["scores"][NEXT.name] == 0
    assert "session" not in describe_in_detail(decide(rules=OFF))


def test_the_strategy_keeps_sessions_where_the_setting_does_not() -> None:
    assert decide(rules=OFF, strategy="session-affinity").last.pod == OWN
    away = decide(rules=OFF, busy={OWN.uid: 3})
    assert away.last.pod != OWN
    assert away.session is None


def test_without_a_session_the_pod_with_the_fewest_requests_is_taken() -> None:
    busy = {pod.uid: 1 for pod in DECODERS[1:]}
    decision = decide(None, rules=OFF, strategy="session-affinity", busy=busy)
    assert decision.last.pod == DECODERS[0]
    assert decision.session is SessionOutcome.NONE
    assert decide(None).session is SessionOutcome.NONE
    assert decide(None, rules=OFF).session is None


@pytest.mark.parametrize(
    ("busy", "slack", "kept"),
    [
        # Of 4 pods with 8 + 1 requests in all, each may have ceil(1.25 * 9 / 4) = 3.
        ((2, 2, 2, 2), 0, True),
        ((3, 2, 2, 1), 0, False),
        ((3, 2, 2, 1), 1, True),
        ((8, 0, 0, 0), 0, False),
        ((8, 0, 0, 0), 6, True),
        ((0, 0, 0, 0), 0, True),
    ],
)
def test_a_busy_pod_gives_its_sessions_to_the_next(
    busy: tuple[int, ...], slack: int, *, kept: bool
) -> None:
    order = order_pods(SESSION.key, DECODERS)
    load = {pod.uid: count for pod, count in zip(order, busy, strict=True)}
    decision = decide(rules=AffinityRules(SessionAffinity.SOFT, 1.25, slack), busy=load)
    outcome = SessionOutcome.KEPT if kept else SessionOutcome.OVERLOADED
    assert decision.session is outcome
    assert (decision.last.pod == order[0]) is kept
    if not kept:
        assert decision.last.pod == next(
            pod for pod in order if load[pod.uid] + 1 <= -(-5 * (sum(busy) + 1) // 16) + slack
        )


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
@settings(deadline=None, max_examples=60)
def test_no_pod_gets_more_than_its_bound(busy: list[int]) -> None:
    load = {pod.uid: count for pod, count in zip(DECODERS, busy, strict=True)}
    for number in range(10):
        chosen = decide(Session(f"s-{number}", "x"), busy=load, whole="n").last.pod
        assert load[chosen.uid] + 1 <= -(-5 * (sum(busy) + 1) // 16)


def test_the_load_does_not_count_where_it_is_strict() -> None:
    assert decide(rules=STRICT, busy={OWN.uid: 100}).last.pod == OWN
    bound = structs.replace(SESSION, bound=True)
    assert decide(bound, rules=OFF, busy={OWN.uid: 100}, whole="n").last.pod == OWN


def test_a_pod_that_is_not_ready_gives_its_sessions_to_the_next() -> None:
    gone = [
        make_pod(OWN.name, Role.DECODE, ip=OWN.ip, ready=False) if pod is OWN else pod
        for pod in DECODERS
    ]
    for rules in (SOFT, STRICT):
        decision = decide(pods=make_model_pods(PREFILL, *gone), rules=rules)
        assert decision.last.pod == NEXT
        assert decision.session is SessionOutcome.AWAY
        assert decision.notes[0].endswith(f"its pod cannot serve it, {NEXT.name} is next")
    # Once it is no pod of the model any more, nobody knows that it was.
    removed = make_model_pods(PREFILL, *(pod for pod in DECODERS if pod is not OWN))
    assert decide(pods=removed).session is SessionOutcome.KEPT


def test_a_pod_that_has_failed_gives_its_sessions_to_the_next_and_all_know_why() -> None:
    state = make_state()
    for _ in range(3):
        state.failures.note_failure(OWN.uid, Leg.DECODE, "connect", 0.0)
    router = Router(STRATEGIES, state, RoutingRules(affinity=SOFT))
    facts = RoutingFacts(1000, None, session=SESSION)
    decision = router.decide(STRATEGIES["pd"], facts, PAIRS)
    assert (decision.last.pod, decision.session) == (NEXT, SessionOutcome.AWAY)
    assert decision.notes[1] == f"failures: decode pods left out: {OWN.name} (connect)"


def test_a_client_may_name_the_pod() -> None:
    named = next(pod for pod in DECODERS if pod not in (OWN, NEXT))
    session = structs.replace(SESSION, address=named.address)
    assert decide(session).last.pod == named
    assert decide(session).session is SessionOutcome.KEPT
    # It is bound as any other: then the others come in the session's order.
    crowded = decide(session, busy={named.uid: 9})
    assert (crowded.last.pod, crowded.session) == (OWN, SessionOutcome.OVERLOADED)


def test_a_client_cannot_name_what_is_no_ready_pod_of_its_model() -> None:
    for address in ("10.0.9.9:8000", PREFILL.address, f"{OWN.ip}:9999"):
        decision = decide(structs.replace(SESSION, address=address))
        assert (decision.last.pod, decision.session) == (OWN, SessionOutcome.AWAY)


def test_a_client_cannot_name_what_it_has_excluded() -> None:
    labelled = [
        make_pod(pod.name, Role.DECODE, ip=pod.ip, labels={"track": "a" if pod is OWN else "b"})
        for pod in DECODERS
    ]
    pods = make_model_pods(make_pod("p", ip="10.0.1.1", labels={"track": "b"}), *labelled)
    session = structs.replace(SESSION, address=OWN.address)
    decision = decide(session, pods, selector=parse_selector("track=b"))
    assert (decision.last.pod.name, decision.session) == (NEXT.name, SessionOutcome.AWAY)


def test_the_prefill_pod_is_of_the_roleset_of_the_session() -> None:
    pods = make_model_pods(
        *(make_pod(f"p{n}", roleset=f"r{n}", ip=f"10.0.1.{n + 1}") for n in range(4)),
        *(make_pod(pod.name, Role.DECODE, ip=pod.ip, roleset=f"r{n}")
          for n, pod in enumerate(DECODERS)),
    )  # fmt: skip
    decision = decide(pods=pods)
    assert decision.last.pod.name == OWN.name
    assert decision.prefill is not None
    assert decision.prefill.pod.roleset == decision.last.pod.roleset


def test_a_session_waits_in_a_long_queue_only_where_it_is_strict() -> None:
    """Its pod's only prefill pod is busy for longer than a request may wait."""
    decoders = [make_pod(pod.name, Role.DECODE, ip=pod.ip, roleset=f"r{n}")
                for n, pod in enumerate(DECODERS)]  # fmt: skip
    prefills = [make_pod(f"p{n}", roleset=f"r{n}") for n in range(4)]
    own = next(pod for pod in decoders if pod.name == OWN.name)
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    busy = next(pod for pod in prefills if pod.roleset == own.roleset)
    ledger.start(Leg.PREFILL, busy.uid, 60_000)
    facts = RoutingFacts(1000, None, session=SESSION)
    for rules in (SOFT, STRICT):
        router = Router(
            STRATEGIES, make_state(ledger), RoutingRules(max_wait_s=10.0, affinity=rules)
        )
        pods = make_model_pods(*prefills, *decoders)
        if rules is STRICT:
            with pytest.raises(QueueTooLong):
                router.decide(STRATEGIES["pd"], facts, pods)
        else:
            decision = router.decide(STRATEGIES["pd"], facts, pods)
            assert decision.session is SessionOutcome.OVERLOADED
            assert decision.last.pod.name != own.name
            assert (
                decision.notes[0] == f"session: overloaded, {own.name} could not serve it in time"
            )


def test_the_holder_of_a_response_alone_will_do() -> None:
    holder = DECODERS[2]
    busy = {holder.uid: 99}
    decision = decide(None, rules=OFF, whole="stateful-responses", holder=holder.uid, busy=busy)
    assert decision.last.pod == holder
    assert decision.notes == ("response: d2 holds what it goes on with",)
    with pytest.raises(NoReadyPod):
        decide(None, rules=OFF, whole="stateful-responses", holder="uid-gone")


def test_a_second_pod_is_the_next_of_the_session_unless_it_is_bound() -> None:
    state = make_state()
    assert find_runner_up(decide(), PAIRS, state) == NEXT
    assert find_runner_up(decide(rules=STRICT), PAIRS, state) is None
    held = decide(None, whole="stateful-responses", holder=OWN.uid)
    assert find_runner_up(held, PAIRS, state) is None


def test_another_prefill_pod_leaves_the_session_where_it_is() -> None:
    pods = make_model_pods(PREFILL, make_pod("p2"), *DECODERS)
    decision = decide(pods=pods)
    first = decision.legs[0].pod
    other = choose_other_pair(
        decision, STRATEGIES["pd"], RoutingFacts(1000, None), pods, make_state(),
        avoided={first.uid},
    )  # fmt: skip
    assert other is not None
    assert other.legs[0].pod != first
    assert (other.last.pod, other.session) == (OWN, SessionOutcome.KEPT)


def test_a_pod_that_goes_during_the_side_legs_gives_the_session_to_the_next() -> None:
    router = Router(STRATEGIES, make_state(), RoutingRules(affinity=SOFT))
    facts = RoutingFacts(1000, None, session=SESSION)
    last = router.decide(STRATEGIES["pd"], facts, PAIRS).last
    left = make_model_pods(PREFILL, *(pod for pod in DECODERS if pod is not OWN))
    decision = router.replace_last(STRATEGIES["pd"], last, facts, left, PREFILL, chosen_at=0.0)
    assert decision is not None
    assert decision.last.pod == NEXT


# --- As a part of something else ---------------------------------------------------------------


def route(
    strategy: str, busy: dict[str, int] | None = None, session: Session | None = SESSION
) -> Decision:
    """A decision of a strategy that is written as users write it."""
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for uid, requests in (busy or {}).items():
        for _ in range(requests):
            ledger.start(Leg.DECODE, uid, 10)
    router = Router(STRATEGIES, make_state(ledger))
    facts = RoutingFacts(1000, None, session=session)
    return router.decide(STRATEGIES.find(strategy), facts, PAIRS)


def test_in_a_list_the_weights_say_how_much_a_session_counts() -> None:
    """The session's pod has all requests, and so is the worst in the eyes of the other scorer."""
    busy = {OWN.uid: 5}
    kept = route("session-affinity:2,least-request", busy)
    assert (kept.last.pod, kept.session) == (OWN, SessionOutcome.KEPT)
    moved = route("session-affinity,least-request:2", busy)
    assert moved.last.pod != OWN
    assert moved.session is SessionOutcome.OVERLOADED


def test_in_a_list_a_request_without_a_session_is_for_the_others_to_decide() -> None:
    busy = {pod.uid: 1 for pod in DECODERS[1:]}
    decision = route("session-affinity:9,least-request", busy, session=None)
    assert (decision.last.pod, decision.session) == (DECODERS[0], SessionOutcome.NONE)
    assert decision.notes == ("session-affinity: the request names no session",)


def test_in_a_list_a_client_may_name_the_pod() -> None:
    for pod in DECODERS:
        session = structs.replace(SESSION, address=pod.address)
        assert route("session-affinity:2,least-request", session=session).last.pod == pod
    gone = structs.replace(SESSION, address="10.0.9.9:8000")
    decision = route("session-affinity:2,least-request", session=gone)
    assert (decision.last.pod, decision.session) == (OWN, SessionOutcome.AWAY)


def test_each_leg_of_pd_may_go_by_the_session() -> None:
    prefills = [make_pod(f"p{number}", ip=f"10.0.1.{number + 1}") for number in range(4)]
    pods = make_model_pods(*prefills, *DECODERS)
    router = Router(create_strategies("session-affinity", "session-affinity"), make_state())
    named = structs.replace(SESSION, address=DECODERS[2].address)
    for session, last in ((SESSION, OWN), (named, DECODERS[2])):
        facts = RoutingFacts(1000, None, session=session)
        decision = router.decide(router.strategies["pd"], facts, pods)
        assert decision.legs[0].pod == order_pods(SESSION.key, prefills)[0]
        assert (decision.last.pod, decision.session) == (last, SessionOutcome.KEPT)


def test_a_leg_of_pd_may_weigh_the_session_against_other_policies() -> None:
    busy = {OWN.uid: 5}
    for decode, kept in (("session-affinity:2,kv_capacity", True), ("kv_capacity", False)):
        ledger = Ledger(PrefillRates(1000), lambda: 0.0)
        for _ in range(busy[OWN.uid]):
            ledger.start(Leg.DECODE, OWN.uid, 10)
        router = Router(create_strategies("ttft", decode), make_state(ledger))
        facts = RoutingFacts(1000, None, session=SESSION)
        decision = router.decide(router.strategies["pd"], facts, PAIRS)
        assert (decision.last.pod == OWN) is kept
        assert decision.session is (SessionOutcome.KEPT if kept else None)


def test_a_leg_of_pd_bounds_what_a_session_may_cost() -> None:
    options = PolicyOptions(affinity=SOFT)
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for _ in range(5):
        ledger.start(Leg.DECODE, OWN.uid, 10)
    router = Router(create_strategies("ttft", "session-affinity", options), make_state(ledger))
    facts = RoutingFacts(1000, None, session=SESSION)
    decision = router.decide(router.strategies["pd"], facts, PAIRS)
    assert (decision.last.pod, decision.session) == (NEXT, SessionOutcome.OVERLOADED)
