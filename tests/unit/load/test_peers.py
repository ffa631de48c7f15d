"""What wires know of engines, until these have started anew."""

from collections.abc import Mapping

import pytest
from factories import make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod
from pdrouter.load import peers
from pdrouter.load.peers import PeerKnowledge

FACTS: Mapping[str, bytes] = {"engine": b'"e-1"'}
OTHER: Mapping[str, bytes] = {"engine": b'"e-2"'}
POD = make_pod("p", started="1")
LATER = float("inf")


def know(*told: Mapping[str, bytes]) -> PeerKnowledge:
    knowledge = PeerKnowledge()
    for facts in told:
        knowledge.learn(POD, facts, LATER)
    return knowledge


def test_an_engine_is_known_once_it_has_said_what_it_is() -> None:
    assert know().find(POD) is None
    assert know(FACTS).find(POD) == FACTS
    assert know(FACTS).find(make_pod("q")) is None


@pytest.mark.parametrize(
    "now", [make_pod("p", started="2"), make_pod("p", started="1", ip="10.0.0.9")]
)
def test_an_engine_that_has_started_anew_or_moved_is_not_known(now: Pod) -> None:
    knowledge = know(FACTS)
    assert knowledge.find(now) is None
    knowledge.learn(now, OTHER, LATER)
    assert knowledge.find(now) == OTHER
    assert knowledge.find(POD) is None


def test_an_engine_that_has_failed_must_say_again_what_it_is() -> None:
    knowledge = know(FACTS)
    knowledge.doubt(POD.uid)
    assert knowledge.find(POD) is None
    knowledge.learn(POD, FACTS, LATER)
    assert knowledge.find(POD) == FACTS


def test_nobody_is_doubted_of_whom_nothing_is_known() -> None:
    knowledge = know()
    knowledge.doubt(POD.uid)
    assert not len(knowledge)


def test_an_engine_that_contradicts_itself_must_repeat_itself_ever_more_often() -> None:
    knowledge = know(FACTS, OTHER, OTHER, OTHER)
    assert knowledge.find(POD) is None
    knowledge.learn(POD, OTHER, LATER)
    assert knowledge.find(POD) == OTHER
    knowledge.learn(POD, FACTS, LATER)
    for _ in range(14):
        knowledge.learn(POD, FACTS, LATER)
        assert knowledge.find(POD) is None
    knowledge.learn(POD, FACTS, LATER)
    assert knowledge.find(POD) == FACTS


def test_what_is_forgotten_holds_nothing_against_the_next_engine() -> None:
    knowledge = know(FACTS, OTHER)
    knowledge.forget(POD.uid)
    knowledge.forget(POD.uid)
    knowledge.learn(POD, FACTS, LATER)
    assert knowledge.find(POD) == FACTS


def test_facts_larger_than_any_engines_are_not_kept() -> None:
    knowledge = know(FACTS, {"engine": b'"' + b"e" * peers._LONGEST})
    assert knowledge.find(POD) is None
    assert knowledge._known[POD.uid].facts == FACTS


def test_the_oldest_are_forgotten_where_there_are_too_many() -> None:
    knowledge = PeerKnowledge()
    for number in range(peers._MOST + 10):
        knowledge.learn(make_pod(f"p{number}"), FACTS, LATER)
    assert len(knowledge) == peers._MOST
    assert knowledge.find(make_pod("p9")) is None
    assert knowledge.find(make_pod("p10")) == FACTS


@given(st.lists(st.sampled_from([FACTS, OTHER, None]), max_size=40))
def test_only_what_was_said_last_is_ever_believed(told: list[Mapping[str, bytes] | None]) -> None:
    knowledge = PeerKnowledge()
    for facts in told:
        if facts is None:
            knowledge.doubt(POD.uid)
        else:
            knowledge.learn(POD, facts, LATER)
        assert knowledge.find(POD) in (facts, None)


def test_what_was_asked_before_a_doubt_does_not_end_it() -> None:
    now = 1.0
    knowledge = PeerKnowledge(lambda: now)
    knowledge.learn(POD, FACTS, 0.0)
    knowledge.doubt(POD.uid)
    knowledge.learn(POD, FACTS, 0.5)
    assert knowledge.find(POD) is None
    knowledge.learn(POD, FACTS, 1.5)
    assert knowledge.find(POD) == FACTS


@pytest.mark.parametrize(("started", "believed"), [("", False), ("1", True)])
def test_an_engine_out_of_reach_is_doubted_where_nothing_else_tells_of_its_start(
    started: str, *, believed: bool
) -> None:
    knowledge, pod = PeerKnowledge(), make_pod("p", started=started)
    knowledge.note_unreachable(pod.uid)
    knowledge.learn(pod, FACTS, LATER)
    knowledge.note_unreachable(pod.uid)
    assert (knowledge.find(pod) is not None) == believed
