"""The last pod of a request counts as having its prompt, as soon and as long as that counts."""

import pytest
from factories import make_model_pods, make_pod, make_record, make_state
from msgspec import structs

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import Choice, Decision, RoutingFacts
from pdrouter.routing.strategies import create_strategies
from pdrouter.serving.choosing import Routed
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import Outcome, RequestRecord

PODS = [make_pod(f"p{number}", Role.BOTH) for number in range(2)]
PREFIX = PromptPrefix((1, 2), (500, 1000), 1000)


def route(algorithm: str, pod: int = 0) -> Routed:
    strategy = create_strategies().find(algorithm)
    facts = RoutingFacts(250, "n", PREFIX, algorithms=strategy.list_algorithms("", ""))
    choice = Choice(Leg.DECODE, PODS[pod], algorithm, 0.0, PODS, [0.0] * 2, 250)
    return Routed(make_model_pods(*PODS), strategy, facts, Decision((), choice, "n"), 0.0)


@pytest.mark.parametrize(
    ("algorithm", "known"),
    [
        ("least-request", {}),
        ("prefix-cache", {"uid-p0": 2}),
        ("prefix-cache-preble", {"uid-p0": 2}),
        ("least-request,prefix-cache:3", {"uid-p0": 2}),
    ],
)
def test_it_counts_from_the_choice_on_where_somebody_asks(
    algorithm: str, known: dict[str, int]
) -> None:
    state = make_state()
    OpenDecision(route(algorithm), state, make_record())
    assert state.decoded.match(PREFIX.hashes) == known
    assert len(state.recent) == ("preble" in algorithm)


@pytest.mark.parametrize(
    ("outcome", "known"),
    [
        (None, {"uid-p0": 2}),
        (Outcome.OK, {"uid-p0": 2}),
        (Outcome.CLIENT_LEFT, {"uid-p0": 2}),
        (Outcome.ENGINE_ERROR, {"uid-p0": 1}),
        (Outcome.LOCAL_REPLY, {"uid-p0": 1}),
        (Outcome.FAILED, {"uid-p0": 1}),
    ],
)
def test_a_request_that_fails_takes_back_what_was_not_there_before(
    outcome: Outcome | None, known: dict[str, int]
) -> None:
    state = make_state()
    state.decoded.expect(PREFIX.hashes[:1], "uid-p0", 100)
    record: RequestRecord = make_record()
    chosen = OpenDecision(route("prefix-cache"), state, record)
    record.outcome = outcome
    chosen.close()
    chosen.close()
    assert state.decoded.match(PREFIX.hashes) == known


def test_another_pod_takes_it_over() -> None:
    state = make_state()
    chosen = OpenDecision(route("prefix-cache"), state, make_record())
    chosen.change(route("prefix-cache", 1))
    assert state.decoded.match(PREFIX.hashes) == {"uid-p1": 2}
    same = structs.replace(chosen.routed, at=1.0)
    chosen.change(same)
    assert state.decoded.match(PREFIX.hashes) == {"uid-p1": 2}
