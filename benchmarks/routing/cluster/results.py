"""What became of the requests of a simulation, and the figures that sum it up."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.routing.cluster.model import Hardware
from benchmarks.routing.cluster.token_gaps import TokenGaps
from benchmarks.routing.cluster.workload import SimulatedRequest


@dataclass(slots=True)
class Passage:
    """One request's way through the cluster; times are seconds of the simulation.

    Attributes:
        request: the request.
        prefill_uid: its prefill pod; empty if it has none.
        decode_uid: its decode pod; empty if it was refused.
        computed_s: when its prompt was computed; None if it was not, or on the decode pod.
        first_token_s: when its first token was there.
        finished_s: when its last token was there.
        cached_tokens: prompt tokens that its prefill pod had cached.
        best_cached_tokens: the most that any prefill pod had cached when it was routed.
    """

    request: SimulatedRequest
    prefill_uid: str = ""
    decode_uid: str = ""
    computed_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    cached_tokens: int = 0
    best_cached_tokens: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token; None if it was refused."""
        if self.first_token_s is None:
            return None
        return self.first_token_s - self.request.arrival_s

    @property
    def whole(self) -> bool:
        """Whether one pod served it."""
        return bool(self.decode_uid) and not self.prefill_uid

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds between its tokens; None if it has fewer than two."""
        if self.first_token_s is None or self.finished_s is None or self.request.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.request.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class PodUse:
    """What one pod did.

    Attributes:
        uid: the pod.
        busy_s: seconds in which it computed.
        preemptions: requests that lost their KV blocks there.
    """

    uid: str
    busy_s: float
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """All that a simulation left behind.

    Attributes:
        passages: the requests, in the order of their arrival.
        prefill: what the prefill pods did.
        decode: what the decode pods did.
        counted_work: pods that some replica's ledger still counts work on: none, in the end.
        gaps: how long tokens after the first were waited for.
    """

    passages: tuple[Passage, ...]
    prefill: tuple[PodUse, ...]
    decode: tuple[PodUse, ...]
    counted_work: tuple[str, ...]
    gaps: TokenGaps


@dataclass(frozen=True, slots=True)
class Targets:
    """When a request counts as served well.

    Attributes:
        ttft_s: seconds to the first token that every request is allowed.
        ttft_factor: how many times its own prompt's time on an idle pod with nothing cached it is
            allowed beyond that: users expect a long prompt to take longer.
        inter_token_s: mean seconds between tokens.
    """

    ttft_s: float = 1.0
    ttft_factor: float = 2.0
    inter_token_s: float = 0.1

    def allowed_ttft(self, hardware: Hardware, prompt_tokens: int) -> float:
        """Return the seconds to the first token that such a prompt is allowed."""
        return self.ttft_s + self.ttft_factor * hardware.prefill.run(0, prompt_tokens)


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one simulation.

    Attributes:
        requests: how many there were.
        rejected: how many were refused.
        ttft_p50_s: half of the requests had their first token within so many seconds.
        ttft_p90_s: nine in ten.
        ttft_p99_s: 99 in a hundred.
        ttft_mean_s: mean.
        inter_token_p99_s: 99 in a hundred requests had a mean time between tokens of at most this.
        token_gap_p99_s: 99 in a hundred tokens came at most so long after those before them.
        whole: share of requests that one pod served.
        within_ttft: share of all requests within the target for the first token.
        goodput: share of all requests within both targets.
        hit_rate: share of prompt tokens that were cached where they were computed.
        wasted: share of prompt tokens that were computed although some prefill pod had them.
        prefill_balance: the busiest prefill pod's time, compared to the mean.
        decode_balance: the same of the decode pods.
        prefill_use: share of time that prefill pods were busy, from first arrival to last.
        preemptions: requests that lost their KV blocks.
    """

    requests: int
    rejected: int
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    inter_token_p99_s: float
    token_gap_p99_s: float
    whole: float
    within_ttft: float
    goodput: float
    hit_rate: float
    wasted: float
    prefill_balance: float
    decode_balance: float
    prefill_use: float
    preemptions: int


def summarize(result: SimulationResult, hardware: Hardware, targets: Targets) -> Summary:
    """Return the figures of a simulation."""
    passages = result.passages
    ttfts = sorted(ttft for passage in passages if (ttft := passage.ttft_s) is not None)
    gaps = sorted(gap for passage in passages if (gap := passage.inter_token_s) is not None)
    in_time = [passage for passage in passages if _has_begun_in_time(passage, hardware, targets)]
    good = sum((passage.inter_token_s or 0.0) <= targets.inter_token_s for passage in in_time)
    prompt_tokens = sum(passage.request.prompt_tokens for passage in passages)
    duration = passages[-1].request.arrival_s - passages[0].request.arrival_s
    busy = sum(use.busy_s for use in result.prefill)
    return Summary(
        requests=len(passages),
        rejected=sum(not passage.decode_uid for passage in passages),
        ttft_p50_s=find_quantile(ttfts, 0.5),
        ttft_p90_s=find_quantile(ttfts, 0.9),
        ttft_p99_s=find_quantile(ttfts, 0.99),
        ttft_mean_s=sum(ttfts) / len(ttfts) if ttfts else 0.0,
        inter_token_p99_s=find_quantile(gaps, 0.99),
        token_gap_p99_s=result.gaps.find_quantile(0.99),
        whole=sum(passage.whole for passage in passages) / len(passages),
        within_ttft=len(in_time) / len(passages),
        goodput=good / len(passages),
        hit_rate=sum(passage.cached_tokens for passage in passages) / prompt_tokens,
        wasted=sum(_count_wasted(passage) for passage in passages) / prompt_tokens,
        prefill_balance=_measure_balance(result.prefill),
        decode_balance=_measure_balance(result.decode),
        prefill_use=busy / len(result.prefill) / duration if duration else 0.0,
        preemptions=sum(use.preemptions for use in result.decode),
    )


def find_quantile(ascending: Sequence[float], share: float) -> float:
    """Return the value that so large a share does not exceed; 0 if there are no values."""
    if not ascending:
        return 0.0
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


def _has_begun_in_time(passage: Passage, hardware: Hardware, targets: Targets) -> bool:
    ttft = passage.ttft_s
    if ttft is None:
        return False
    return ttft <= targets.allowed_ttft(hardware, passage.request.prompt_tokens)


def _count_wasted(passage: Passage) -> int:
    return max(0, passage.best_cached_tokens - passage.cached_tokens)


def _measure_balance(uses: Sequence[PodUse]) -> float:
    total = sum(use.busy_s for use in uses)
    return max(use.busy_s for use in uses) * len(uses) / total if total else 1.0
