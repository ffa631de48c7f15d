"""Which engines take priorities: what is remembered of them, and for how long."""

from dataclasses import replace

from factories import make_pod

from pdrouter.load.priorities import PriorityKnowledge


def test_what_an_engine_has_done_is_remembered_for_ten_minutes() -> None:
    now = 0.0
    memory, pod, other = PriorityKnowledge(lambda: now), make_pod("p"), make_pod("o")
    assert memory.find(pod) is None
    memory.note(pod, takes=False)
    memory.note(other, takes=True)
    now = 599.0
    assert memory.find(pod) is False
    assert memory.find(other) is True
    now = 600.0
    assert memory.find(pod) is None


def test_an_engine_that_has_started_anew_is_another_one() -> None:
    memory, pod = PriorityKnowledge(lambda: 0.0), make_pod("p", started="1")
    memory.note(pod, takes=False)
    assert memory.find(replace(pod, started="1")) is False
    assert memory.find(replace(pod, started="2")) is None
    memory.note(pod, takes=True)
    memory.forget(pod.uid)
    assert memory.find(pod) is None


def test_an_engine_that_cannot_be_reached_may_come_back_as_another_one() -> None:
    """Unless it would be said, as Kubernetes does."""
    memory, told, untold = PriorityKnowledge(lambda: 0.0), make_pod("t", started="1"), make_pod("u")
    for pod in (told, untold):
        memory.note(pod, takes=True)
        memory.note_unreachable(pod.uid)
    memory.note_unreachable("unknown")
    assert memory.find(told) is True
    assert memory.find(untold) is None
