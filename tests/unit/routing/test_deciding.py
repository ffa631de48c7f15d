"""What holds for every strategy: whole or split, fallback, wait, and pods that have gone."""

from dataclasses import replace
from typing import Any

import pytest
from factories import MODEL, make_model_pods, make_pod, make_state
from msgspec import structs

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.whole_serving import WholeServing
from pdrouter.routing.admission import DeadlineMissed, QueueTooLong
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.strategies import create_strategies
from pdrouter.settings.choices import Aggregation

STRATEGIES = create_strategies()
PD = STRATEGIES["pd"]
FACTS = RoutingFacts(1000, None)
PREFILL = make_pod("prefill")
DECODE = make_pod("decode", Role.DECODE)
ABLE = replace(DECODE, computes_prompts=True)
OTHER = make_pod("other", Role.DECODE)


def make_router(queued: int = 0, **rules: Any) -> Router:
    """A router whose prefill pod has so many tokens ahead, and computes 1,000 a second."""
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    if queued:
        ledger.start(Leg.PREFILL, PREFILL.uid, queued)
    state = make_state(ledger, whole=WholeServing(handover_s=0.05))
    return Router(STRATEGIES, state, RoutingRules(**rules))


def test_a_pair_serves_what_may_be_split() -> None:
    decision = make_router().decide(PD, FACTS, make_model_pods(PREFILL, DECODE))
    assert decision.prefill is not None
    assert (decision.prefill.pod, decision.last.pod) == (PREFILL, DECODE)


def test_without_a_pair_a_decode_pod_serves_it_whole() -> None:
    decision = make_router().decide(PD, FACTS, make_model_pods(DECODE))
    assert (decision.prefill, decision.reason) == (None, "no-ready-pair")


@pytest.mark.parametrize(
    ("aggregation", "facts"),
    [
        (Aggregation.NEVER, FACTS),
        (Aggregation.FALLBACK, structs.replace(FACTS, whole="multimodal")),
    ],
    ids=["where that is not wanted", "where it would be whole already"],
)
def test_without_a_pod_there_is_no_fallback(aggregation: Aggregation, facts: RoutingFacts) -> None:
    pods = make_model_pods(PREFILL) if facts.whole else make_model_pods(DECODE)
    with pytest.raises(NoReadyPod):
        make_router(aggregation=aggregation).decide(PD, facts, pods)


@pytest.mark.parametrize(
    ("aggregation", "reason"), [(Aggregation.FALLBACK, ""), (Aggregation.WHEN_FASTER, "faster")]
)
def test_the_faster_way_is_taken_where_that_is_wanted(
    aggregation: Aggregation, reason: str
) -> None:
    router = make_router(queued=60_000, aggregation=aggregation)
    assert router.decide(PD, FACTS, make_model_pods(PREFILL, ABLE)).reason == reason


def test_a_queue_that_is_too_long_is_refused_with_its_length_and_the_limit() -> None:
    with pytest.raises(QueueTooLong) as refused:
        make_router(queued=60_000, max_wait_s=2.0).decide(
            PD, FACTS, make_model_pods(PREFILL, DECODE)
        )
    assert refused.value.wait_s == pytest.approx(60.0)
    assert refused.value.limit_s == 2.0


def test_what_is_faster_whole_does_not_wait_in_the_queue() -> None:
    router = make_router(queued=60_000, aggregation=Aggregation.WHEN_FASTER, max_wait_s=2.0)
    assert router.decide(PD, FACTS, make_model_pods(PREFILL, ABLE)).reason == "faster"


def replace_last(
    pods: ModelPods, prefill: Pod | None = PREFILL, router: Router | None = None
) -> Decision | None:
    last = Choice(Leg.DECODE, DECODE, "kv_capacity", 0.0, [DECODE], [0.0], 7)
    return (router or make_router()).replace_last(PD, last, FACTS, pods, prefill, chosen_at=0.0)


def test_a_decode_pod_that_is_there_as_it_was_is_kept() -> None:
    assert replace_last(make_model_pods(PREFILL, DECODE, OTHER)) is None


def test_a_decode_pod_that_has_failed_others_meanwhile_is_replaced_if_there_is_a_better() -> None:
    router = make_router()
    for _ in range(3):
        router.state.failures.note_failure(DECODE.uid, Leg.DECODE, "connect", 1.0)
    replaced = replace_last(make_model_pods(PREFILL, DECODE, OTHER), router=router)
    assert replaced is not None
    assert replaced.last.pod is OTHER
    assert replaced.notes[-1].endswith("has failed during the prefill leg")
    assert replace_last(make_model_pods(PREFILL, DECODE), router=router) is None


@pytest.mark.parametrize(
    "now",
    [
        {"ready": False},
        {"ip": "10.0.0.9"},
        {"roleset": "another"},
        {"role": Role.BOTH},
        {"uid": "uid-namesake"},
    ],
    ids=str,
)
def test_one_that_has_changed_is_replaced_by_a_partner(now: dict[str, Any]) -> None:
    changed = make_pod("decode", now.pop("role", Role.DECODE), **now)
    decision = replace_last(make_model_pods(PREFILL, changed, OTHER))
    assert decision is not None
    assert decision.last.pod.uid in (OTHER.uid, "uid-namesake")
    assert decision.notes[-1] == "decode pod decode has gone during the prefill leg"


def test_a_pod_of_another_roleset_cannot_fetch_the_prompt() -> None:
    decision = replace_last(make_model_pods(PREFILL, make_pod("x", Role.DECODE, roleset="another")))
    assert decision is not None
    assert decision.reason == "no-ready-pair"


def test_without_any_decode_pod_there_is_none() -> None:
    with pytest.raises(NoReadyPod, match=MODEL):
        replace_last(ModelPods.group(MODEL, (PREFILL,)))


@pytest.mark.parametrize(
    ("target_s", "rules", "told"),
    [
        (61.0, {}, "predicted to come 0.050 s later"),
        (61.051, {}, ""),
        (61.03, {"refuses_late": False}, "predicted to come 0.020 s later"),
    ],
)
def test_the_hand_over_counts_against_a_deadline(
    target_s: float, rules: dict[str, Any], told: str
) -> None:
    router = make_router(**rules)
    with router.state.ledger.start(Leg.PREFILL, PREFILL.uid, 1) as scope:
        scope.complete()
    router.state.ledger.rates = PrefillRates(1000)
    router.state.ledger.start(Leg.PREFILL, PREFILL.uid, 60_000)
    facts = structs.replace(FACTS, deadline=Deadline(target_s, target_s, "x-slo-ttft-ms"))
    pods = make_model_pods(PREFILL, DECODE)
    if told and router.rules.refuses_late:
        with pytest.raises(DeadlineMissed, match=told):
            router.decide(PD, facts, pods)
    else:
        decision = router.decide(PD, facts, pods)
        assert any(told in note for note in decision.notes) if told else not decision.notes


def test_what_is_to_be_in_time_waits_in_no_queue_that_is_too_long_either() -> None:
    """The preferred pod is too late for it, the other one has a longer queue than there may be."""
    router = make_router(max_wait_s=2.5)
    ledger, second = router.state.ledger, make_pod("second")
    for pod in (PREFILL, second):
        with ledger.start(Leg.PREFILL, pod.uid, 1) as scope:
            scope.complete()
    ledger.rates = PrefillRates(1000)
    ledger.start(Leg.PREFILL, PREFILL.uid, 2000)
    for tokens in (100, 2500):
        ledger.start(Leg.PREFILL, second.uid, tokens, 60.0)
    router.state.prefixes.add((1,), PREFILL.uid)
    router.state.priorities.note(second, takes=True)
    facts = structs.replace(FACTS, deadline=Deadline(2.5, 2.5, "x-slo-ttft-ms"))
    with pytest.raises(DeadlineMissed, match=r"queue is 2\.6 s long, and may be 2\.5 s"):
        router.decide(PD, facts, make_model_pods(PREFILL, second, DECODE))
