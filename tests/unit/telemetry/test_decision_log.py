"""The last decisions, as people see them."""

import pytest
from factories import (
    make_attempt,
    make_decision,
    make_model_pods,
    make_pod,
    make_record,
    make_request,
    make_state,
)

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.openai.prompt_prefix import hash_prompt
from pdrouter.routing.decision import Choice, Decision, RoutingFacts
from pdrouter.routing.explanation import describe_in_detail
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.serving.record import Outcome, Retry
from pdrouter.telemetry.decisions import DecisionLog

P, D = make_pod("p0"), make_pod("d0", Role.DECODE)


def test_the_newest_decisions_are_kept_newest_first() -> None:
    log = DecisionLog(2)
    for number in range(3):
        log.note(make_record(request_id=f"r-{number}", decision=make_decision(P, D)))
    assert [entry["request_id"] for entry in log.describe()] == ["r-2", "r-1"]


def test_a_request_without_a_decision_is_not_kept() -> None:
    log = DecisionLog(2)
    log.note(make_record(decision=None))
    assert log.describe() == []


def test_a_decision_shows_candidates_scores_and_filters() -> None:
    pods = [make_pod(name) for name in ("a", "b")]
    decision = Decision(
        (Choice(Leg.PREFILL, pods[1], "ttft", 0.5, pods, [1.5, 0.5], 100),),
        Choice(Leg.DECODE, D, "kv_capacity", 0.0, [D], [0.0], 200),
        notes=("one was full",),
    )
    assert describe_in_detail(decision) == {
        "decision": "disaggregated",
        "reason": "",
        "notes": ("one was full",),
        "encode": None,
        "prefill": {
            "pod": "b",
            "policy": "ttft",
            "tokens": 100,
            "candidates": 2,
            "unit": "seconds: (wait_s + compute_weight * compute_s) * away_factor",
            "scores": {"b": 0.5, "a": 1.5},
        },
        "decode": {
            "pod": "d0",
            "policy": "kv_capacity",
            "tokens": 200,
            "candidates": 1,
            "unit": "requests * (1 + kv_usage_share) + kv_usage_share",
            "scores": {"d0": 0.0},
        },
    }


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", ["r-1", "r-0"]), ("r-0", ["r-0"]), ("client-1", ["r-1"]), ("id-1", ["r-1"]), ("x", [])],
)
def test_one_request_can_be_asked_for_by_any_of_its_ids(wanted: str, found: list[str]) -> None:
    log = DecisionLog(9)
    for number in range(2):
        record = make_record(
            request_id=f"r-{number}",
            client_request_id=f"client-{number}",
            decision=make_decision(P, D),
            attempts=[make_attempt(P)] * number,
        )
        log.note(record)
    assert [entry["request_id"] for entry in log.describe(wanted)] == found


def test_what_is_not_kept_any_more_is_not_found() -> None:
    log = DecisionLog(1)
    for number in range(3):
        log.note(make_record(request_id=f"r-{number}", decision=make_decision(P, D)))
        assert log.find(f"r-{number}") is not None
        assert log.find(f"r-{number - 1}") is None
    none = DecisionLog(0)
    none.note(make_record(decision=make_decision(P, D)))
    assert none.find("r-1") is None


def test_a_request_that_was_tried_on_another_pair_shows_that_one() -> None:
    log = DecisionLog(1)
    record = make_record(decision=make_decision(P, D))
    log.note(record)
    record.decision = make_decision(make_pod("p1"), make_pod("d1", Role.DECODE))
    record.retries = (Retry.OTHER_PAIR,)
    (entry,) = log.describe()
    assert (entry["prefill"]["pod"], entry["decode"]["pod"]) == ("p1", "d1")
    assert list(entry["retries"]) == ["other-pair"]


def test_a_decision_shows_what_came_of_it() -> None:
    log = DecisionLog(1)
    record = make_record(decision=make_decision(P, D), predicted_prefill_s=0.25)
    log.note(record)
    record.outcome, record.status, record.total_s = Outcome.OK, 200, 1.5
    record.steps.seconds["prefill"] = 0.3
    (entry,) = log.describe()
    result = entry["result"]
    assert (result["predicted_prefill_ms"], result["prefill_ms"]) == (250.0, 300.0)
    assert (result["outcome"], result["status"], result["total_ms"]) == ("ok", 200, 1500.0)
    assert result["output_tokens"] is result["first_token_ms"] is None


def test_scores_are_shown_with_what_they_were_made_of() -> None:
    rates = PrefillRates(1000.0)
    ledger = Ledger(rates, clock=lambda: 0.0)
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    prefix = hash_prompt(make_request("/v1/completions", prompt="x" * 4096))
    prefixes.add(prefix.hashes, P.uid, 0)
    state = make_state(
        ledger,
        prefixes=prefixes,
        samples={D.uid: EngineSample(0.0, running=3.0, kv_usage=0.25, kv_capacity_tokens=10_000)},
    )
    other = make_pod("p1")
    ledger.start(Leg.PREFILL, other.uid, 500)
    facts = RoutingFacts(1000, None, prefix, 100)
    strategy = create_strategies()["pd"]
    decision = strategy.decide(facts, make_model_pods(P, other, D), state)
    # What is learnt later changes nothing of what is shown.
    rates.observe(P.uid, (1000, 1000**2), 60.0)
    detail = describe_in_detail(decision)
    cached, cold = detail["prefill"]["parts"]["p0"], detail["prefill"]["parts"]["p1"]
    assert cached == {
        "cached_tokens": 999,
        "computed_tokens": 1,
        "compute_s": 0.001,
        "tokens_per_s": 1000.0,
        "speed_factor": 1.0,
        "wait_s": 0.0,
        "compute_weight": 2.0,
        "away_factor": 1.0,
    }
    assert cold == {
        "cached_tokens": 0,
        "computed_tokens": 1000,
        "compute_s": 1.0,
        "tokens_per_s": 1000.0,
        "speed_factor": 1.0,
        "wait_s": 0.5,
        "compute_weight": 2.0,
        "away_factor": 1.0,
    }
    assert detail["prefill"]["scores"] == {"p0": 0.002, "p1": 2.5}
    assert detail["prefill"]["predicted_s"] == 0.001
    assert detail["decode"]["parts"] == {"d0": {"requests": 3.0, "kv_usage_share": 0.36}}
    assert detail["decode"]["scores"] == {"d0": 3.0 * 1.36 + 0.36}


@pytest.mark.parametrize("prefill", [*PREFILL_POLICIES, "ttft:2,least_request"])
@pytest.mark.parametrize("decode", [*DECODE_POLICIES, "kv_capacity,least_request"])
def test_every_policy_says_the_unit_of_its_scores(prefill: str, decode: str) -> None:
    strategy = create_strategies(prefill, decode)["pd"]
    decision = strategy.decide(RoutingFacts(1000, None), make_model_pods(P, D), make_state())
    detail = describe_in_detail(decision)
    assert detail["prefill"]["unit"]
    assert detail["decode"]["unit"]
    assert detail["prefill"]["predicted_s"] == 0.125
    assert detail["prefill"]["parts"]["p0"]["computed_tokens"] == 1000


@pytest.mark.parametrize("name", ["random", "least-request"])
def test_every_strategy_says_the_unit_of_its_scores(name: str) -> None:
    decision = create_strategies()[name].decide(
        RoutingFacts(1000, None), make_model_pods(D), make_state()
    )
    assert describe_in_detail(decision)["decode"]["unit"]


def test_of_many_candidates_the_best_are_shown() -> None:
    pods = [make_pod(f"p{number}") for number in range(200)]
    scores = [float(number) for number in range(200)]
    shown = describe_in_detail(
        Decision((), Choice(Leg.DECODE, pods[0], "x", 0.0, pods, scores, 1), "n")
    )
    assert shown["prefill"] is None
    assert shown["decode"]["candidates"] == 200
    assert list(shown["decode"]["scores"]) == [f"p{number}" for number in range(50)]
