"""Faults: which requests they apply to, and how they are written."""

import json

import msgspec
import pytest

from pdrouter.tools.simulation.faults import (
    NO_FAULT,
    Fault,
    FaultBoard,
    parse_assignments,
    parse_faults,
)
from pdrouter.tools.simulation.legs import SimulatedLeg

CHAT = "/v1/chat/completions"


def test_a_fault_without_times_applies_until_it_is_cleared() -> None:
    board = FaultBoard(Fault(status=503))
    assert [board.take(CHAT, is_api_call=True).status for _ in range(3)] == [503, 503, 503]
    board.clear()
    assert board.take(CHAT, is_api_call=True) == NO_FAULT


def test_a_fault_with_times_is_used_up() -> None:
    board = FaultBoard(Fault(hang=True, times=2))
    assert board.take(CHAT, is_api_call=True).hang
    assert list(board.current) == [Fault(hang=True, times=1)]
    assert board.take(CHAT, is_api_call=True).hang
    assert not board.current
    assert board.take(CHAT, is_api_call=True) == NO_FAULT


def test_a_fault_with_a_path_applies_to_nothing_else() -> None:
    board = FaultBoard(Fault(status=500, path="/health"))
    assert board.take(CHAT, is_api_call=True) == NO_FAULT
    assert board.take("/health", is_api_call=False).status == 500


def test_a_fault_without_a_path_spares_what_is_not_an_api_call() -> None:
    board = FaultBoard(Fault(status=500, times=1))
    assert board.take("/metrics", is_api_call=False) == NO_FAULT
    assert board.take(CHAT, is_api_call=True).status == 500


def test_the_first_fault_that_applies_wins() -> None:
    board = FaultBoard(Fault(status=500, times=1), Fault(status=503))
    assert [board.take(CHAT, is_api_call=True).status for _ in range(2)] == [500, 503]


def test_setting_faults_replaces_the_old_ones() -> None:
    board = FaultBoard(Fault(status=500))
    board.set(Fault(drop=True))
    assert board.current == (Fault(drop=True),)


@pytest.mark.parametrize(
    ("document", "faults"),
    [
        ({"status": 503, "times": 2}, (Fault(status=503, times=2),)),
        ([{"hang": True}, {"drop": True}], (Fault(hang=True), Fault(drop=True))),
        ({"omit_params": ["remote_port"]}, (Fault(omit_params=("remote_port",)),)),
        ({"status": None, "times": None}, (Fault(),)),
        ([], ()),
    ],
)
def test_faults_are_read_from_json(document: object, faults: tuple[Fault, ...]) -> None:
    assert parse_faults(json.dumps(document).encode()) == faults


@pytest.mark.parametrize(
    "document",
    [{"unknown": 1}, {"status": 200}, {"times": 0}, {"slow_s": -1}, {"hang": "yes"}, 3],
)
def test_a_fault_that_makes_no_sense_is_refused(document: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        parse_faults(json.dumps(document).encode())


def test_faults_are_read_from_words() -> None:
    words = ["status=503", "times=2", "hang", "slow_s=0.5", "omit_params=a,b", "path=/health"]
    assert parse_assignments(words) == (
        Fault(status=503, times=2, hang=True, slow_s=0.5, omit_params=("a", "b"), path="/health"),
    )
    assert parse_assignments([]) == ()
    with pytest.raises(msgspec.ValidationError):
        parse_assignments(["speed=3"])


@pytest.mark.parametrize(
    ("fault", "members", "leg", "applies"),
    [
        (Fault(status=404, model="a"), {"model": "a"}, SimulatedLeg.PREFILL, True),
        (Fault(status=404, model="a"), {"model": "b"}, SimulatedLeg.PREFILL, False),
        (Fault(status=500, leg=SimulatedLeg.PREFILL), {}, SimulatedLeg.PREFILL, True),
        (Fault(status=500, leg=SimulatedLeg.PREFILL), {}, SimulatedLeg.WHOLE, False),
        (
            Fault(status=500, forces_tool=True),
            {"tool_choice": "required"},
            SimulatedLeg.PREFILL,
            True,
        ),
        (
            Fault(status=500, forces_tool=True),
            {"tool_choice": {"type": "any"}},
            SimulatedLeg.WHOLE,
            True,
        ),
        (Fault(status=500, forces_tool=True), {"tool_choice": "auto"}, SimulatedLeg.PREFILL, False),
        (Fault(status=500, forces_tool=True), {"tool_choice": {"type": "auto"}}, None, False),
        (Fault(status=500, forces_tool=True), {}, SimulatedLeg.PREFILL, False),
    ],
)
def test_a_fault_may_be_of_certain_requests(
    fault: Fault, members: dict[str, object], leg: SimulatedLeg | None, applies: bool
) -> None:
    board = FaultBoard(fault)
    taken = board.take("/v1/completions", is_api_call=True, members=members, leg=leg)
    assert taken == (fault if applies else NO_FAULT)


def test_such_faults_can_be_set_as_text() -> None:
    document = b'{"status": 429, "retry_after": "5", "leg": "prefill", "model": "m"}'
    assert parse_faults(document) == (
        Fault(status=429, retry_after="5", leg=SimulatedLeg.PREFILL, model="m"),
    )
    assert parse_assignments(["status=500", "forces_tool", "leg=prefill"]) == (
        Fault(status=500, forces_tool=True, leg=SimulatedLeg.PREFILL),
    )
