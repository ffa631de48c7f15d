"""Our own policies: the time to the first token, and room in KV memory."""

from collections import Counter
from collections.abc import Mapping

import pytest
from factories import make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.openai.prompt_prefix import NO_PREFIX, PromptPrefix
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.kv_capacity import KVCapacity, count_requests
from pdrouter.routing.policy import PolicyOptions, Ranking, RankingRequest, count_computed
from pdrouter.routing.score_parts import DecodeParts
from pdrouter.routing.strategies import PREFILL_POLICIES
from pdrouter.routing.ttft import TimeToFirstToken

A, B = make_pod("a"), make_pod("b")
LONG = PromptPrefix((1, 2, 3, 4), (250, 500, 750, 1000), 1000)


def make_request(
    *,
    ledger: Ledger | None = None,
    cached: Mapping[str, int] | None = None,
    samples: Mapping[str, EngineSample] | None = None,
    prefix: PromptPrefix = LONG,
    tokens: int = 1000,
    output_tokens: int = 0,
    seed: int = 0,
) -> RankingRequest:
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    for uid, blocks in (cached or {}).items():
        prefixes.add(LONG.hashes[:blocks], uid)
    facts = RoutingFacts(tokens, None, prefix, output_tokens)
    ledger = Ledger(PrefillRates(1000), lambda: 0.0) if ledger is None else ledger
    return RankingRequest(facts, make_state(ledger, samples=samples, prefixes=prefixes, seed=seed))


@pytest.mark.parametrize(("blocks", "uncached"), [(0, 1000), (1, 750), (3, 250), (4, 1)])
def test_what_is_cached_need_not_be_computed(blocks: int, uncached: int) -> None:
    assert make_request(cached={A.uid: blocks}).count_uncached(A.uid) == uncached


@pytest.mark.parametrize(("blocks", "tokens"), [(0, 999), (1, 749), (2, 500), (3, 250), (4, 1)])
def test_what_is_left_to_compute_is_rounded_to_whole_tokens(blocks: int, tokens: int) -> None:
    assert count_computed(make_request(tokens=999).facts, blocks) == tokens


def test_a_prompt_without_blocks_is_computed_whole() -> None:
    request = make_request(prefix=NO_PREFIX, cached={A.uid: 4})
    assert request.count_uncached(A.uid) == 1000


def test_ttft_is_the_wait_and_the_uncached_part() -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    ledger.start(Leg.PREFILL, B.uid, 300)
    request = make_request(ledger=ledger, cached={A.uid: 2})
    assert TimeToFirstToken(PolicyOptions(compute_weight=1.0)).score(
        [A, B], request
    ) == pytest.approx([0.5, 1.3])


def test_computing_counts_the_more_the_fewer_pods_are_idle() -> None:
    """It delays those who come before the pod is idle again; waiting does not."""
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    pods = [make_pod(str(number)) for number in range(8)]
    request = make_request(ledger=ledger, cached={pods[0].uid: 2})
    policy = TimeToFirstToken(PolicyOptions(compute_weight=4.0))
    weights = []
    for pod in pods:
        scores = policy.score(pods, request)
        weights.append((scores[-1] - scores[0] + ledger.predict_prefill_wait(pods[0].uid)) / 0.5)
        ledger.start(Leg.PREFILL, pod.uid, 300)
    busy = [number / 8 for number in range(8)]
    assert weights == pytest.approx([min(4.0, 1 / (1 - share)) for share in busy])
    assert policy.score(pods, request)[-1] == pytest.approx(4.3)
    assert TimeToFirstToken(PolicyOptions(compute_weight=0.5)).score(pods, request)[
        -1
    ] == pytest.approx(0.8)


def test_what_is_left_of_a_prompt_is_padded_as_each_pod_pads() -> None:
    rates = PrefillRates(1000)
    rates.note_buckets(A.uid, (600, 2000))
    rates.note_buckets(B.uid, (2000,))
    pods = [A, B, make_pod("c"), make_pod("d")]
    cached = {A.uid: 2, B.uid: 2, pods[2].uid: 2}
    request = make_request(ledger=Ledger(rates, lambda: 0.0), cached=cached)
    policy = TimeToFirstToken(PolicyOptions(compute_weight=1.0))
    assert policy.score(pods, request) == pytest.approx([0.6, 2.0, 0.5, 1.0])
    parts = policy.explain(pods, request)
    assert parts is not None
    described = [parts.describe(0, pod.uid, 0.0).get("padded_tokens") for pod in pods]
    assert described == [600, 2000, None, None]


@given(st.lists(st.integers(1, 10_000_000), max_size=64, unique=True).map(sorted))
@settings(deadline=None)
def test_buckets_of_other_pods_change_no_score(buckets: list[int]) -> None:
    scores = []
    for said in ([], buckets):
        rates = PrefillRates(1234.5)
        rates.note_buckets("elsewhere", said)
        ledger = Ledger(rates, lambda: 0.0)
        ledger.start(Leg.PREFILL, B.uid, 300)
        request = make_request(ledger=ledger, cached={A.uid: 2})
        scores.append(TimeToFirstToken().score([A, B], request))
    assert scores[0] == scores[1]


def test_a_hot_prefix_spreads_once_its_pod_is_too_busy() -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    request = make_request(ledger=ledger, cached={A.uid: 4})
    hot, cold = TimeToFirstToken().score([A, B], request)
    assert hot < cold
    ledger.start(Leg.PREFILL, A.uid, 3100)
    hot, cold = TimeToFirstToken().score([A, B], request)
    assert cold < hot


def test_work_of_others_counts_for_a_part() -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for _ in range(300):
        ledger.start(Leg.PREFILL, "elsewhere", 2000)
    ledger.note_others(A.uid, 3)
    request = make_request(ledger=ledger)
    for weight in (0.0, 0.5, 1.0):
        policy = PREFILL_POLICIES["ttft"](PolicyOptions(others_weight=weight))
        busy, idle = policy.score([A, B], request)
        assert busy - idle == pytest.approx(6.0 * weight, rel=0.02)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 5000))
@settings(deadline=None)
def test_more_work_never_lowers_a_prefill_score(queue: list[int], more: int) -> None:
    ledger = Ledger(PrefillRates(1000), lambda: 0.0)
    for tokens in queue:
        ledger.start(Leg.PREFILL, A.uid, tokens)
    request = make_request(ledger=ledger)
    (before,) = TimeToFirstToken().score([A], request)
    ledger.start(Leg.PREFILL, A.uid, more)
    (after,) = TimeToFirstToken().score([A], request)
    assert after > before


def sample(
    *, usage: float | None = None, capacity: int | None = 10_000, running: float | None = None
) -> EngineSample:
    return EngineSample(0.0, 0, running, None, usage, capacity)


def test_a_pod_without_room_is_no_candidate() -> None:
    samples = {A.uid: sample(usage=0.9), B.uid: sample(usage=0.2)}
    ranking = KVCapacity().rank([A, B], make_request(samples=samples))
    assert ranking.pods == [B]
    assert "1 decode pods have no room" in ranking.note


def test_if_no_pod_has_room_all_are_candidates() -> None:
    samples = {A.uid: sample(usage=0.99), B.uid: sample(usage=0.97)}
    ranking = KVCapacity().rank([A, B], make_request(samples=samples))
    assert (ranking.pods, ranking.note) == ([A, B], "")


def test_what_is_on_its_way_counts_before_the_engine_shows_it() -> None:
    ledger = Ledger()
    ledger.start(Leg.DECODE, A.uid, 9_000)
    samples = {A.uid: sample(usage=0.0), B.uid: sample(usage=0.0)}
    assert KVCapacity().rank([A, B], make_request(ledger=ledger, samples=samples)).pods == [B]


def test_reserved_and_used_memory_are_two_views_of_the_same() -> None:
    ledger = Ledger()
    ledger.start(Leg.DECODE, A.uid, 3_000)
    samples = {A.uid: sample(usage=0.4), B.uid: sample(usage=0.2)}
    request = make_request(ledger=ledger, samples=samples)
    need = (request.facts.prompt_tokens + request.facts.output_tokens) / 10_000
    one, none = KVCapacity().rank([A, B], request).scores
    assert one == pytest.approx(1 + 2 * (0.4 + need))
    assert none == pytest.approx(0.2 + need)


def test_the_answer_needs_room_too() -> None:
    samples = {A.uid: sample(usage=0.5), B.uid: sample(usage=0.2)}
    assert KVCapacity().rank([A, B], make_request(samples=samples, output_tokens=4_000)).pods == [B]


def test_without_metrics_the_ledger_decides() -> None:
    ledger = Ledger()
    ledger.start(Leg.DECODE, A.uid, 100)
    request = make_request(ledger=ledger)
    assert KVCapacity().rank([A, B], request) == Ranking(
        [A, B], [1.0, 0.0], parts=DecodeParts([0.0, 0.0])
    )


def test_requests_of_others_are_those_that_the_engine_had_beyond_ours() -> None:
    ledger = Ledger()
    ledger.start(Leg.DECODE, A.uid)
    ledger.start(Leg.DECODE, A.uid)
    samples = {A.uid: EngineSample(0.0, 1, 4.0, 2.0)}
    request = make_request(ledger=ledger, samples=samples)
    assert count_requests(A.uid, request) == 2 + (4 + 2 - 1)
    # A scrape that does not show ours yet must not make the pod look better than the ledger says.
    samples = {A.uid: EngineSample(0.0, 2, 0.0, 0.0)}
    assert count_requests(A.uid, make_request(ledger=ledger, samples=samples)) == 2


def test_beside_other_routers_two_pods_of_each_roleset_are_drawn() -> None:
    pods = [make_pod(f"{name}-{number}", roleset=name) for name in "xy" for number in range(4)]
    pods.append(make_pod("z-0", roleset="z"))
    alone = {pod.uid: EngineSample(0.0, own_requests=2, running=2.0) for pod in pods}
    ranking = KVCapacity().rank(pods, make_request(samples=alone))
    assert (ranking.pods, ranking.note) == (pods, "")

    shared = alone | {pods[0].uid: EngineSample(0.0, own_requests=2, running=3.0)}
    drawn = [KVCapacity().rank(pods, make_request(samples=shared, seed=n)) for n in range(40)]
    for ranking in drawn:
        assert Counter(pod.roleset for pod in ranking.pods) == {"x": 2, "y": 2, "z": 1}
        assert len(ranking.scores) == 5
        assert "5 decode pods are drawn" in ranking.note
    assert {pod for ranking in drawn for pod in ranking.pods} == set(pods)


def test_a_pod_without_room_is_not_drawn() -> None:
    pods = [make_pod(f"pod-{number}") for number in range(4)]
    samples = {pod.uid: EngineSample(0.0, running=1.0, kv_usage=0.99) for pod in pods[:2]}
    ranking = KVCapacity().rank(pods, make_request(samples=samples))
    assert set(ranking.pods) == set(pods[2:])
    assert ranking.note == "kv_capacity: 2 decode pods have no room"


@given(st.integers(0, 20), st.floats(0, 1), st.integers(0, 9_000))
@settings(deadline=None)
def test_more_load_never_lowers_a_decode_score(requests: int, usage: float, tokens: int) -> None:
    ledger = Ledger()
    for _ in range(requests):
        ledger.start(Leg.DECODE, A.uid, 10)
    request = make_request(ledger=ledger, samples={A.uid: sample(usage=usage)})
    (before,) = KVCapacity().rank([A], request).scores
    ledger.start(Leg.DECODE, A.uid, tokens)
    (after,) = KVCapacity().rank([A], request).scores
    assert after > before
