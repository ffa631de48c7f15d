import pytest
from clusters import HARDWARE, make_request, make_workload

from benchmarks.routing.cluster.model import Shape, prefill_capacity
from benchmarks.routing.cluster.results import (
    Passage,
    PodUse,
    SimulationResult,
    Targets,
    find_quantile,
    summarize,
)
from benchmarks.routing.cluster.token_gaps import TokenGaps


def make_passage(arrival_s: float, ttft_s: float, **changes: object) -> Passage:
    """A request of 1000 prompt tokens and 11 output tokens, 0.05 s apart."""
    passage = Passage(make_request(arrival_s, 1000, 11))
    passage.decode_uid = "decode-0"
    passage.first_token_s = arrival_s + ttft_s
    passage.finished_s = passage.first_token_s + 0.5
    for name, value in changes.items():
        setattr(passage, name, value)
    return passage


def make_result(*passages: Passage) -> SimulationResult:
    uses = (PodUse("prefill-0", 3.0), PodUse("prefill-1", 1.0))
    return SimulationResult(
        passages, uses, (PodUse("decode-0", 2.0, preemptions=4),), (), TokenGaps()
    )


def test_a_request_is_in_time_if_its_first_token_is_within_what_its_prompt_is_allowed() -> None:
    targets = Targets(ttft_s=1.0, ttft_factor=2.0, inter_token_s=0.1)

    # The prompt takes one second on an idle pod.
    assert targets.allowed_ttft(HARDWARE, 1000) == pytest.approx(3.0)
    summary = summarize(
        make_result(make_passage(0.0, 2.99), make_passage(1.0, 3.01)), HARDWARE, targets
    )
    assert summary.within_ttft == 0.5


@pytest.mark.parametrize(("gap", "goodput"), [(0.049, 0.0), (0.051, 1.0)])
def test_goodput_counts_requests_within_both_targets(gap: float, goodput: float) -> None:
    targets = Targets(inter_token_s=gap)
    summary = summarize(make_result(make_passage(0.0, 1.0)), HARDWARE, targets)

    assert summary.within_ttft == 1.0
    assert summary.goodput == goodput


def test_refused_requests_count_against_the_targets_but_not_in_the_times() -> None:
    refused = Passage(make_request(1.0, 1000, 11))
    summary = summarize(make_result(make_passage(0.0, 1.0), refused), HARDWARE, Targets())

    assert summary.rejected == 1
    assert summary.within_ttft == summary.goodput == 0.5
    assert summary.ttft_mean_s == summary.ttft_p99_s == 1.0


def test_hits_and_waste_are_shares_of_all_prompt_tokens() -> None:
    found = make_passage(0.0, 1.0, cached_tokens=512, best_cached_tokens=512)
    missed = make_passage(1.0, 1.0, cached_tokens=0, best_cached_tokens=512)
    summary = summarize(make_result(found, missed), HARDWARE, Targets())

    assert summary.hit_rate == pytest.approx(0.256)
    assert summary.wasted == pytest.approx(0.256)


def test_balance_is_the_busiest_pod_compared_to_the_mean() -> None:
    summary = summarize(make_result(make_passage(0.0, 1.0)), HARDWARE, Targets())

    assert summary.prefill_balance == 1.5
    assert summary.decode_balance == 1.0
    assert summary.preemptions == 4


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.9, 4.0), (0.99, 4.0)])
def test_quantiles(share: float, value: float) -> None:
    assert find_quantile([1.0, 2.0, 3.0, 4.0], share) == value


def test_the_quantile_of_nothing_is_zero() -> None:
    assert find_quantile([], 0.9) == 0.0


def test_capacity_counts_pods_by_their_speed() -> None:
    workload = make_workload(make_request(0.0, 500), make_request(1.0, 1500))

    # A second per prompt on average; a pod at half speed is half a pod.
    assert prefill_capacity(HARDWARE, Shape("x", (1.0, 2.0), (1.0,)), workload) == 1.5


def test_load_is_scaled_by_compressing_time() -> None:
    workload = make_workload(make_request(0.0, 10), make_request(4.0, 10), make_request(8.0, 10))
    scaled = workload.scale(2.0)

    assert [request.arrival_s for request in scaled.requests] == [0.0, 2.0, 4.0]
    assert scaled.rate == 2 * workload.rate


def test_a_part_of_a_workload_begins_at_zero() -> None:
    workload = make_workload(*(make_request(float(index), 10 + index) for index in range(4)))
    part = workload.cut(0.5, 1.0)

    assert [(request.arrival_s, request.prompt_tokens) for request in part.requests] == [
        (0.0, 12),
        (1.0, 13),
    ]


def test_the_share_that_one_pod_served_leaves_out_those_that_none_did() -> None:
    whole = make_passage(0.0, 1.0)
    split = make_passage(0.0, 1.0, prefill_uid="prefill-0")
    refused = Passage(make_request(1.0, 1000, 11))

    assert summarize(make_result(whole, split, refused), HARDWARE, Targets()).whole == 1 / 3


def test_gaps_count_by_tokens_and_are_joined_of_all_pods() -> None:
    one, other = TokenGaps(), TokenGaps()
    one.note(0.02, 9_800.0)
    other.note(0.02, 100.0)
    other.note(0.5, 100.0)
    joined = TokenGaps.join((one, other))

    assert joined.find_quantile(0.98) == pytest.approx(0.02, rel=0.01)
    assert joined.find_quantile(0.995) == pytest.approx(0.5, rel=0.01)
    assert one.find_quantile(1.0) == pytest.approx(0.02, rel=0.01)
    assert TokenGaps().find_quantile(0.99) == 0.0
