"""With which legs a request may begin: whether pods have as much to do as they should."""

from collections.abc import Mapping

import pytest
from factories import make_model_pods, make_pod, make_state

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.failures import CONNECT
from pdrouter.load.ledger import Ledger
from pdrouter.load.samples import EngineSample
from pdrouter.routing.saturation import OnTheWay, SaturationRules, find_open_legs

P0, P1 = make_pod("p0"), make_pod("p1", ip="10.0.0.2")
D0, D1 = make_pod("d0", Role.DECODE, ip="10.0.1.1"), make_pod("d1", Role.DECODE, ip="10.0.1.2")
BOTH = frozenset({Leg.PREFILL, Leg.DECODE})
ONLY_DECODE = frozenset({Leg.DECODE})
NONE: frozenset[Leg] = frozenset()

# At 8,000 tokens per second, 800 tokens are a tenth of a second.
RULES = SaturationRules(backlog_s=0.1)


@pytest.mark.parametrize(
    ("tokens", "on_the_way", "open_legs"),
    [
        ({}, OnTheWay(), BOTH),
        ({"p0": 8000}, OnTheWay(), BOTH),
        ({"p0": 8000, "p1": 8000}, OnTheWay(), ONLY_DECODE),
        ({"p0": 8000, "p1": 700}, OnTheWay(), BOTH),
        ({"p0": 8000, "p1": 900}, OnTheWay(), ONLY_DECODE),
        # What is on its way takes the idle pod, unless it is short.
        ({"p0": 8000}, OnTheWay(1, 8000), ONLY_DECODE),
        ({"p0": 8000}, OnTheWay(1, 80), BOTH),
        ({}, OnTheWay(1, 8000), BOTH),
        ({}, OnTheWay(2, 8000), ONLY_DECODE),
    ],
)
def test_requests_pass_while_a_prefill_pod_has_little_to_do(
    tokens: Mapping[str, int], on_the_way: OnTheWay, open_legs: frozenset[Leg]
) -> None:
    ledger = Ledger(clock=lambda: 0.0)
    for name, number in tokens.items():
        ledger.start(Leg.PREFILL, f"uid-{name}", number)
    pods = make_model_pods(P0, P1, D0)
    assert find_open_legs(pods, make_state(ledger), RULES, on_the_way) == open_legs


def test_what_others_have_sent_counts_on_pods_that_work_for_this_router_only() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    pods = make_model_pods(P0, D0)
    ledger.start(Leg.PREFILL, P1.uid, 8000)
    ledger.note_others(P0.uid, 50.0)
    assert find_open_legs(pods, make_state(ledger), RULES) == BOTH
    with ledger.start(Leg.PREFILL, P0.uid, 10):
        assert find_open_legs(pods, make_state(ledger), RULES) == ONLY_DECODE


def test_an_idle_pod_that_has_failed_is_no_room() -> None:
    ledger = Ledger(clock=lambda: 0.0)
    state, pods = make_state(ledger), make_model_pods(P0, P1, D0)
    ledger.start(Leg.PREFILL, P0.uid, 8000)
    for _ in range(10):
        state.failures.note_failure(P1.uid, Leg.PREFILL, CONNECT, state.failures.clock())
    assert state.failures.is_left_out(P1.uid)
    assert find_open_legs(pods, state, RULES) == ONLY_DECODE


@pytest.mark.parametrize(
    ("usages", "requests", "open_legs"),
    [
        ((0.5, 0.99), None, BOTH),
        ((0.99, 0.99), None, NONE),
        # Its metrics are not known.
        ((0.99, None), None, BOTH),
        ((0.5, 0.5), 2, BOTH),
        ((0.5, None), 1, NONE),
    ],
)
def test_requests_pass_while_a_decode_pod_has_room(
    usages: tuple[float | None, ...], requests: int | None, open_legs: frozenset[Leg]
) -> None:
    ledger = Ledger(clock=lambda: 0.0)
    samples = {
        pod.uid: EngineSample(0.0, 1, running=1.0, kv_usage=usage, kv_capacity_tokens=1000)
        for pod, usage in zip((D0, D1), usages, strict=True)
        if usage is not None
    }
    for pod in (D0, D1):
        ledger.start(Leg.DECODE, pod.uid, 10)
    pods = make_model_pods(P0, D0, D1)
    rules = SaturationRules(0.1, requests)
    assert find_open_legs(pods, make_state(ledger, samples=samples), rules) == open_legs


def test_without_pods_nobody_waits_for_one() -> None:
    """The router says what is missing."""
    assert find_open_legs(make_model_pods(), make_state(), RULES) == BOTH
