"""The last decisions, as people see them."""

from factories import make_decision, make_pod, make_record

from pdrouter.cluster.pods import Role
from pdrouter.routing.decision import Choice, Decision
from pdrouter.routing.explanation import describe_in_detail
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
        Choice(pods[1], "ttft", 0.5, pods, [1.5, 0.5], 100),
        Choice(D, "kv_capacity", 0.0, [D], [0.0], 200),
        notes=("one was full",),
    )
    assert describe_in_detail(decision) == {
        "decision": "disaggregated",
        "reason": "",
        "notes": ("one was full",),
        "prefill": {
            "pod": "b",
            "policy": "ttft",
            "tokens": 100,
            "candidates": 2,
            "scores": {"b": 0.5, "a": 1.5},
        },
        "decode": {
            "pod": "d0",
            "policy": "kv_capacity",
            "tokens": 200,
            "candidates": 1,
            "scores": {"d0": 0.0},
        },
    }


def test_of_many_candidates_the_best_are_shown() -> None:
    pods = [make_pod(f"p{number}") for number in range(200)]
    scores = [float(number) for number in range(200)]
    shown = describe_in_detail(Decision(None, Choice(pods[0], "x", 0.0, pods, scores, 1), "n"))
    assert shown["prefill"] is None
    assert shown["decode"]["candidates"] == 200
    assert list(shown["decode"]["scores"]) == [f"p{number}" for number in range(50)]
