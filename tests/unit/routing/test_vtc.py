"""`vtc-basic`: aibrix's numbers, without what is wrong there."""

from collections.abc import Mapping, Sequence
from random import Random

import pytest
from exchanges import Bench, request_body, request_headers
from factories import make_pod, make_state
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.samples import EngineSample
from pdrouter.load.served_tokens import ServedTokens, Shares
from pdrouter.openai.usage import Usage
from pdrouter.routing.algorithms.vtc import VtcBasic, find_bucket, find_place
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.policy import DEFAULT_OPTIONS, PolicyOptions, RankingRequest
from pdrouter.settings.choices import UserSource


def make_pods(count: int) -> list[Pod]:
    return [make_pod(f"pod-{number}", Role.BOTH, ip=f"10.0.0.{number}") for number in range(count)]


def measure(
    served: Mapping[str, float],
    user: str,
    running: Sequence[float],
    options: PolicyOptions = DEFAULT_OPTIONS,
    pods: Sequence[Pod] | None = None,
) -> Mapping[str, float | None]:
    """Return what each pod costs, by its name."""
    pods = pods or make_pods(len(running))
    numbered = sorted(pods, key=lambda pod: pod.name)
    samples = {
        pod.uid: EngineSample(0.0, running=number)
        for pod, number in zip(numbered, running, strict=True)
    }
    state = make_state(samples=samples)
    for name, tokens in served.items():
        state.served.count(name, tokens)
    request = RankingRequest(RoutingFacts(10, None, user=user), state)
    measures = VtcBasic(options).measure(pods, request, Leg.DECODE)
    return {pod.name: value for pod, value in zip(pods, measures.values, strict=True)}


OTHER = PolicyOptions(
    vtc_min_tokens=10,
    vtc_max_tokens=30,
    vtc_max_pod_load=20,
    vtc_fairness_weight=2,
    vtc_utilization_weight=0.5,
)


@pytest.mark.parametrize(
    ("served", "running", "options", "scores"),
    [
        # Nobody has any: the bucket is (1000 + 8000) / 2, and the place 0.
        ({}, (0, 0, 0), DEFAULT_OPTIONS, (0, 1, 2)),
        ({}, (50, 10, 0), DEFAULT_OPTIONS, (0.5, 1.1, 2)),
        # The bucket is (1000 + 9000) / 2, the place 9000 / 5000.
        ({"a": 9000, "b": 1000}, (0, 0, 0), DEFAULT_OPTIONS, (1.8, 0.8, 0.2)),
        ({"a": 1000, "b": 9000}, (0, 0, 0), DEFAULT_OPTIONS, (0.2, 0.8, 1.8)),
        # Alone, a user with more than the least has its place at the second pod.
        ({"a": 50_000}, (0, 0, 0), DEFAULT_OPTIONS, (1, 0, 1)),
        # The bucket is no less than MIN_TOKENS.
        ({"a": 100, "b": 300}, (0, 0, 0), DEFAULT_OPTIONS, (0.1, 0.9, 1.9)),
        # There is no place beyond the last pod, and no use beyond full.
        ({"a": 90_000, "b": 1}, (100, 250), DEFAULT_OPTIONS, (1 + 1, 0 + 1)),
        # Who has none does not count for the least of all.
        ({"a": 4000, "b": 0}, (0, 0), DEFAULT_OPTIONS, (1, 0)),
        # Other weights: 2 * |i - 20 / 20| + 0.5 * min(running / 20, 1).
        ({"a": 20, "b": 20}, (10, 0, 40), OTHER, (2.25, 0, 2.5)),
        ({}, (0, 5), OTHER, (0, 2.125)),
    ],
)
def test_the_numbers_are_those_of_aibrix(
    served: Mapping[str, float],
    running: Sequence[float],
    options: PolicyOptions,
    scores: Sequence[float],
) -> None:
    found = measure(served, "a", running, options)
    assert list(found.values()) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("shares", "bucket", "place"),
    [
        (Shares(0, None, None), 4500, 0),
        (Shares(3000, 1000, 5000), 3000, 1),
        (Shares(100, 100, 100), 1000, 0.1),
        (Shares(60_000, 4000, 60_000), 32_000, 1.875),
        (Shares(60_000, 60_000, 60_000), 60_000, 1),
    ],
)
def test_buckets_and_places(shares: Shares, bucket: float, place: float) -> None:
    assert find_bucket(shares, DEFAULT_OPTIONS) == bucket
    assert find_place(shares, 8, DEFAULT_OPTIONS) == pytest.approx(place)


@given(seed=st.integers(0, 100))
def test_a_place_means_the_same_pod_in_whatever_order_they_come(seed: int) -> None:
    """In aibrix the pods are shuffled before each choice, so that a place means nothing."""
    pods = make_pods(5)
    Random(seed).shuffle(pods)
    found = measure({"a": 9000, "b": 1000}, "a", [0] * 5, pods=pods)
    assert min(found, key=lambda name: found[name] or 0.0) == "pod-2"


def test_without_a_user_nothing_is_known_of_any_pod() -> None:
    assert set(measure({"a": 9000}, "", (0, 0)).values()) == {None}


def test_users_who_are_gone_count_no_more_for_the_others() -> None:
    """In aibrix their totals stay until they come back."""
    now = 0.0
    served = ServedTokens(300.0, lambda: now)
    served.count("gone", 1)
    now = 1000.0
    served.count("a", 5000)
    assert served.look("a") == Shares(5000, 5000, 5000)


WHOLE = [
    Pod.create(
        uid=f"w{number}",
        name=f"pod-{number}",
        ip=f"10.0.3.{number}",
        port=8000,
        model="m",
        role=Role.BOTH,
    )
    for number in range(3)
]


async def ask(bench: Bench, strategy: str, user: str = "ann") -> str:
    """Send a request; return the pod that it goes to."""
    bench.exchange = bench.open()
    body = {"model": "m", "prompt": [1] * 1000, "max_tokens": 500}
    head = request_headers("/v1/completions", user=user, routing_strategy=strategy)
    await bench.tell(head, request_body(body))
    decision = bench.exchange.record.decision
    assert decision is not None
    return decision.last.pod.name


@pytest.mark.parametrize(
    "strategy", ["vtc-basic", "vtc-basic:3,least-request:1", "least-request:1,vtc-basic:2"]
)
async def test_a_user_is_charged_what_is_expected_and_then_what_was_used(strategy: str) -> None:
    """In lists too, where aibrix counts nothing; and once it is known, what was used."""
    bench = Bench(WHOLE, users=UserSource.HEADER, expected_output_tokens=100)
    served = bench.state.served
    await ask(bench, strategy)
    assert served.look("ann").own == 1000 + 2 * 100
    request_id = bench.exchange.record.request_id
    bench.exchange.close()
    bench.exchanges._charges.note_usage(request_id, Usage(900, None, 20))
    assert served.look("ann").own == 940
    await ask(bench, strategy, user="")
    assert len(served) == 1
    bench.exchange.close()


@pytest.mark.parametrize("strategy", ["least-request", "random", "pd"])
async def test_others_are_charged_nothing(strategy: str) -> None:
    bench = Bench(WHOLE, users=UserSource.HEADER)
    await ask(bench, strategy)
    assert len(bench.state.served) == 0
    bench.exchange.close()


async def test_users_move_on_from_pod_to_pod_the_more_they_are_served() -> None:
    bench = Bench(WHOLE, users=UserSource.HEADER)
    served = bench.state.served
    served.count("light", 1000)
    assert await ask(bench, "vtc-basic", "new") == "pod-0"
    bench.exchange.close()
    served.count("heavy", 9000)
    assert await ask(bench, "vtc-basic", "heavy") == "pod-2"
    record = bench.exchange.record
    assert record.decision is not None
    assert any("vtc-basic: the place of 'heavy' is" in note for note in record.decision.notes)
    bench.exchange.close()


async def test_a_leg_of_pd_may_go_by_it() -> None:
    bench = Bench(users=UserSource.HEADER, decode_policy="vtc-basic")
    await ask(bench, "pd")
    assert bench.state.served.look("ann").own > 0
    bench.exchange.close()
