"""Pods that have failed are left out before policies rank, and never all of them."""

from collections.abc import Collection
from random import Random

import pytest
from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.failures import EjectionRules, FailureMemory
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.soundness import keep_sound, keep_sound_of
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.settings.choices import STRATEGY_NAMES

SPLIT = RoutingFacts(100, None)


def make_memory(*bad: Pod, times: int = 3, share: float = 0.5, asks: bool = False) -> FailureMemory:
    """A memory in which each of these pods has failed on the leg of its role."""
    rules = EjectionRules(share=share, asks=asks)
    memory = FailureMemory(rules, lambda: 1000.0, Random(0))
    fail(memory, *bad, times=times)
    return memory


def fail(memory: FailureMemory, *pods: Pod, times: int = 3) -> None:
    for pod in pods:
        leg = Leg.PREFILL if pod.role is Role.PREFILL else Leg.DECODE
        for _ in range(times):
            memory.note_failure(pod.uid, leg, "connect", 1000.0, path="/p")


def make_pairs(count: int) -> tuple[list[Pod], list[Pod]]:
    """Prefill and decode pods, a roleset for each two."""
    return (
        [make_pod(f"p{n}", Role.PREFILL, roleset=f"r{n}") for n in range(count)],
        [make_pod(f"d{n}", Role.DECODE, roleset=f"r{n}") for n in range(count)],
    )


def make_roleset(prefill: int, decode: int) -> tuple[list[Pod], list[Pod]]:
    return (
        [make_pod(f"p{n}", Role.PREFILL) for n in range(prefill)],
        [make_pod(f"d{n}", Role.DECODE) for n in range(decode)],
    )


def names(pods: Collection[Pod]) -> set[str]:
    return {pod.name for pod in pods}


def test_where_nobody_has_failed_the_pods_are_the_very_same() -> None:
    prefill, decode = make_roleset(2, 2)
    pods = make_model_pods(*prefill, *decode)
    assert keep_sound(pods, FailureMemory()) == (pods, ())
    assert keep_sound(pods, FailureMemory())[0] is pods
    assert keep_sound(pods, make_memory(make_pod("stranger")))[0] is not None


def test_a_roleset_whose_prefill_pods_are_out_gets_nothing_while_another_is_whole() -> None:
    prefill, decode = make_pairs(3)
    pods = make_model_pods(*prefill, *decode)
    left, notes = keep_sound(pods, make_memory(prefill[1]))
    assert names(left.prefill) == {"p0", "p2"}
    assert names(left.partners) == {"d0", "d2"}
    assert names(left.whole) == {"d0", "d1", "d2"}
    assert notes == ("failures: prefill pods left out: p1 (connect)",)


def test_a_roleset_whose_decode_pods_are_out_gets_nothing_either() -> None:
    prefill, decode = make_pairs(3)
    left, notes = keep_sound(make_model_pods(*prefill, *decode), make_memory(decode[1]))
    assert names(left.prefill) == {"p0", "p2"}
    assert names(left.partners) == names(left.whole) == {"d0", "d2"}
    assert "failures: decode pods left out: d1 (connect)" in notes


def test_where_no_roleset_is_whole_the_least_bad_pair_is_tried() -> None:
    prefill, decode = make_pairs(2)
    memory = make_memory(prefill[0], times=5)
    fail(memory, decode[1], times=3)
    left, _ = keep_sound(make_model_pods(*prefill, *decode), memory)
    assert names(left.prefill) == {"p1"}
    assert names(left.partners) == {"d1"}


def test_where_all_are_bad_the_least_bad_are_tried() -> None:
    prefill, decode = make_roleset(1, 3)
    memory = make_memory(*decode)
    fail(memory, decode[0], times=1)
    left, _ = keep_sound(make_model_pods(*prefill, *decode), memory)
    assert names(left.partners) == names(left.whole) == {"d1", "d2"}


def test_sound_pods_are_tried_first_however_few() -> None:
    prefill, decode = make_roleset(1, 4)
    left, _ = keep_sound(make_model_pods(*prefill, *decode), make_memory(*decode[:3]))
    assert names(left.whole) == {"d3"}


def test_what_is_beyond_the_share_does_not_wait_out_a_doubled_back_off() -> None:
    now = [0.0]
    memory = FailureMemory(
        EjectionRules(backoff_s=10, longest_s=100, asks=False), lambda: now[0], Random(0)
    )
    _, decode = make_roleset(0, 4)
    for pod in decode[:3]:
        for _ in range(3):
            memory.note_failure(pod.uid, Leg.DECODE, "connect", now[0])
    for _ in range(3):
        now[0] += 100
        for pod in decode[:3]:
            memory.note_failure(pod.uid, Leg.DECODE, "connect", now[0])
    memory.note_failure(decode[0].uid, Leg.DECODE, "connect", now[0])
    now[0] += 11
    # Two of four may be left out: of the three, the least bad is tried after 10 s instead of 80.
    left = keep_sound_of(decode, Leg.DECODE, "m", memory)
    assert len(left) == 2
    assert decode[3] in left
    assert decode[0] not in left


def test_names_are_few_in_a_note() -> None:
    _, decode = make_roleset(0, 9)
    _, notes = keep_sound(make_model_pods(*decode), make_memory(*decode[:6]))
    assert notes[0].endswith("d0 (connect), d1 (connect), d2 (connect) and 3 more")


@pytest.mark.parametrize("prefill_policy", PREFILL_POLICIES)
@pytest.mark.parametrize("decode_policy", DECODE_POLICIES)
def test_all_policies_see_it_on_both_legs(prefill_policy: str, decode_policy: str) -> None:
    prefill, decode = make_roleset(2, 2)
    pods = make_model_pods(*prefill, *decode)
    strategy = create_strategies(prefill_policy, decode_policy)["pd"]
    state = make_state()
    fail(state.failures, prefill[0], decode[1])
    for _ in range(10):
        decision = strategy.decide(SPLIT, pods, state)
        assert decision.prefill is not None
        assert (decision.prefill.pod, decision.last.pod) == (prefill[1], decode[0])
        assert len([note for note in decision.notes if note.startswith("failures:")]) == 2
        assert strategy.decide(RoutingFacts(9, "n"), pods, state).last.pod is decode[0]


@pytest.mark.parametrize("name", STRATEGY_NAMES)
def test_all_strategies_see_it(name: str) -> None:
    prefill, decode = make_roleset(1, 3)
    pods = make_model_pods(*prefill, *decode)
    state = make_state()
    fail(state.failures, *decode[:2])
    chosen = {create_strategies()[name].decide(SPLIT, pods, state).last.pod for _ in range(20)}
    assert chosen == {decode[2]}


@st.composite
def broken_models(draw: st.DrawFn) -> tuple[ModelPods, FailureMemory]:
    prefill: list[Pod] = []
    decode: list[Pod] = []
    memory = make_memory(share=draw(st.floats(0, 1)), asks=draw(st.booleans()))
    for roleset in range(draw(st.integers(1, 4))):
        for leg, found in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            for number in range(draw(st.integers(1, 3))):
                pod = make_pod(f"{leg}-{roleset}-{number}", leg, roleset=f"r{roleset}")
                found.append(pod)
                fail(memory, pod, times=draw(st.integers(0, 6)))
    return make_model_pods(*prefill, *decode), memory


@given(broken_models())
def test_never_all_are_left_out_and_pairs_stay_pairs(
    found: tuple[ModelPods, FailureMemory],
) -> None:
    pods, memory = found
    left, _ = keep_sound(pods, memory)
    assert left.prefill
    assert left.partners
    assert left.whole
    assert {pod.pairing for pod in left.prefill} == {pod.pairing for pod in left.partners}
    assert set(left.prefill) <= set(pods.prefill)
    troubles = memory.look(pods.model)
    whole_pairs = {pod.pairing for pod in pods.prefill if pod.uid not in troubles[Leg.PREFILL]} & {
        pod.pairing for pod in pods.partners if pod.uid not in troubles[Leg.DECODE]
    }
    if whole_pairs:
        assert {pod.pairing for pod in left.prefill} == whole_pairs
        assert not any(pod.uid in troubles[Leg.PREFILL] for pod in left.prefill)
        assert not any(pod.uid in troubles[Leg.DECODE] for pod in left.partners)
