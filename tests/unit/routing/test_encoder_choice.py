"""Which pod encodes an item: the same for the same content, whatever else happens."""

from hashlib import sha256

from factories import make_model_pods, make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.routing.encoding import choose_encoders
from pdrouter.routing.state import RoutingState

PREFILL, DECODE = make_pod("p"), make_pod("d", Role.DECODE)
ENCODERS = [make_pod(f"e{number}", Role.ENCODE) for number in range(5)]


def name_items(count: int) -> list[str]:
    return [sha256(str(number).encode()).hexdigest() for number in range(count)]


def make_calm() -> RoutingState:
    return make_state(Ledger())


def choose(
    items: list[str], encoders: list[Pod] = ENCODERS, state: RoutingState | None = None
) -> list[str]:
    pods = make_model_pods(PREFILL, DECODE, *encoders)
    chosen = choose_encoders(items, PREFILL, pods, state or make_calm())
    assert all(choice.leg is Leg.ENCODE for choice in chosen)
    assert all(choice.score == min(choice.scores) for choice in chosen)
    return [choice.pod.name for choice in chosen]


@given(st.permutations(ENCODERS))
def test_a_content_always_goes_to_the_same_pod(order: list[Pod]) -> None:
    items = name_items(20)
    assert choose(items, order) == choose(items)


def test_contents_are_spread_evenly() -> None:
    names = choose(name_items(2000))
    counts = [names.count(pod.name) for pod in ENCODERS]
    assert min(counts) > 320
    assert sum(counts) == 2000


@given(st.sampled_from(ENCODERS))
def test_only_the_contents_of_a_pod_that_goes_move(gone: Pod) -> None:
    items = name_items(200)
    before = choose(items)
    after = choose(items, [pod for pod in ENCODERS if pod is not gone])
    moved = {was for was, now in zip(before, after, strict=True) if was != now}
    assert moved == {gone.name}


def test_pods_that_have_failed_are_left_out_until_all_have() -> None:
    state, items = make_calm(), name_items(50)
    for _ in range(3):
        state.failures.note_failure("uid-e0", Leg.ENCODE, "connect", 0.0)
    assert "e0" not in choose(items, state=state)
    for pod in ENCODERS:
        for _ in range(3):
            state.failures.note_failure(pod.uid, Leg.ENCODE, "connect", 0.0)
    assert len(choose(items, state=state)) == 50


def test_a_pod_that_fails_to_prefill_may_still_encode() -> None:
    state, items = make_calm(), name_items(50)
    for _ in range(3):
        state.failures.note_failure("uid-e0", Leg.PREFILL, "connect", 0.0)
    assert choose(items, state=state) == choose(items)


def test_without_encoders_in_its_roleset_nobody_is_chosen() -> None:
    elsewhere = [make_pod("e", Role.ENCODE, roleset="x")]
    assert choose(name_items(3), elsewhere) == []
    assert choose(name_items(3), []) == []
