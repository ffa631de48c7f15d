"""The `slo` algorithms go by predictions: who is in time, who has room, who is busiest."""

from typing import Any

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample
from pdrouter.routing.deadlines import Deadline
from pdrouter.routing.decision import Decision, RoutingFacts
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies

STRATEGIES = create_strategies()
NAMES = ("slo", "slo-least-load-pulling", "slo-least-load", "slo-pack-load")


def make_pods_state(*samples: dict[str, Any], requests: tuple[int, ...] = ()) -> RoutingState:
    ledger = Ledger(clock=lambda: 0.0)
    for number, count in enumerate(requests):
        for _ in range(count):
            ledger.start(Leg.DECODE, f"uid-p{number}")
    known = {
        f"uid-p{number}": EngineSample(
            0.0, own_requests=dict(enumerate(requests)).get(number, 0), **sample
        )
        for number, sample in enumerate(samples)
    }
    return make_state(ledger, samples=known)


def choose(name: str, state: RoutingState, due: float | None = None, pods: int = 3) -> Decision:
    deadline = None if due is None else Deadline(due, due, "its client")
    facts = RoutingFacts(8000, None, output_tokens=100, deadline=deadline)
    whole = make_model_pods(*(make_pod(f"p{number}", Role.BOTH) for number in range(pods)))
    return STRATEGIES.find(name).decide(facts, whole, state)


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_pod_with_the_first_token_soonest_is_taken(name: str) -> None:
    state = make_pods_state({"waiting": 2}, {"waiting": 1}, {"waiting": 3})
    decision = choose(name, state)
    # 8000 tokens take a second, behind as many prompts as wait.
    assert decision.last.pod.name == "p1"
    assert decision.last.score == pytest.approx(2.0)
    assert decision.notes == (
        f"{name}: no GPU profiles are read, by the predicted time to the first token",
    )


def test_requests_sent_since_the_sample_wait_too() -> None:
    state = make_pods_state({"waiting": 0}, {"waiting": 1})
    for _ in range(2):
        state.ledger.start(Leg.DECODE, "uid-p0")
    assert choose("slo", state, pods=2).last.pod.name == "p1"


@pytest.mark.parametrize(("name", "chosen"), [("slo", "p1"), ("slo-least-load", "p0")])
def test_pods_without_room_are_left_out_where_that_is_asked_for(name: str, chosen: str) -> None:
    full = {"kv_usage": 0.96, "kv_capacity_tokens": 100_000}
    state = make_pods_state({"waiting": 0, **full}, {"waiting": 1}, {"waiting": 2})
    assert choose(name, state).last.pod.name == chosen
    # If none has room, all are looked at.
    assert choose(name, make_pods_state({**full, "waiting": 1}, full, full)).last.pod.name != "p0"


def test_a_target_that_no_pod_can_meet_is_noted() -> None:
    state = make_pods_state({"waiting": 2}, {"waiting": 1}, {"waiting": 3})
    assert choose("slo", state, due=1.5).notes[0].endswith("; no pod would be in time")
    assert not choose("slo", state, due=2.5).notes[0].endswith("; no pod would be in time")


@pytest.mark.parametrize(
    ("due", "chosen"),
    [
        # The busiest of those in time: two seconds on p1, three on p0, four on p2.
        (3.5, "p0"),
        (2.5, "p1"),
        (9.0, "p2"),
        # None is in time: the soonest.
        (0.5, "p1"),
    ],
)
def test_packing_takes_the_busiest_pod_in_time(due: float, chosen: str) -> None:
    samples = [{"waiting": number} for number in (2, 1, 3)]
    state = make_pods_state(*samples, requests=(5, 4, 6))
    assert choose("slo-pack-load", state, due=due).last.pod.name == chosen


def test_packing_without_a_target_takes_the_busiest_on_which_nobody_waits() -> None:
    state = make_pods_state({"waiting": 1}, {"waiting": 0}, {"waiting": 0}, requests=(9, 3, 4))
    decision = choose("slo-pack-load", state)
    assert decision.last.pod.name == "p2"
    assert "without a target, none on which somebody waits" in decision.notes[0]


def test_prefill_pods_are_packed_by_the_ledger() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    ledger.start(Leg.PREFILL, "uid-p0", 8000)
    state = make_state(ledger)
    pods = make_model_pods(
        *(make_pod(f"p{number}") for number in range(2)), make_pod("d", Role.DECODE)
    )
    for policy, due, chosen in (
        ("slo", None, "p1"),
        ("slo-pack-load", 2.5, "p0"),
        ("slo-pack-load", 1.5, "p1"),
    ):
        deadline = None if due is None else Deadline(due, due, "its client")
        facts = RoutingFacts(8000, None, prefill_policy=policy, deadline=deadline)
        decision = STRATEGIES["pd"].decide(facts, pods, state)
        assert decision.prefill is not None
        assert decision.prefill.pod.name == chosen
