"""`prefix_cache` and `load_balancing` choose what aibrix chooses, ties included.

The model below is written down from aibrix's rules, step by step and without regard to cost. Given
the same inputs, it says which pairs aibrix may choose.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factories import make_model_pods, make_pod, make_state
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.strategies import create_strategies

BLOCKS = 7
PREFIX = PromptPrefix(tuple(range(1, BLOCKS + 1)), tuple(range(256, 256 * BLOCKS + 1, 256)), 2000)
SECONDS = 20.0


@dataclass(frozen=True)
class Prefill:
    name: str
    roleset: str
    count: int
    matched: int


@dataclass(frozen=True)
class Decode:
    name: str
    roleset: str
    count: int
    throughput: float
    usage: float
    completed: int

    @property
    def free(self) -> float:
        rounded = int(100 - 100 * self.usage + 0.5)
        return rounded if rounded > 0 else 0.1

    @property
    def drain(self) -> float:
        return self.completed / SECONDS


def list_pairs(prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> set[tuple[str, str]]:
    sides = {p.roleset for p in prefills} & {d.roleset for d in decodes}
    prefills = [p for p in prefills if p.roleset in sides]
    decodes = [d for d in decodes if d.roleset in sides]
    counts = [p.count for p in prefills]
    pairs: set[tuple[str, str]] = set()
    if max(counts) - min(counts) > 16:
        for first in prefills:
            if first.count == min(counts):
                partners = [d for d in decodes if d.roleset == first.roleset]
                pairs |= _after_prefill([first], partners)
        return pairs
    return _after_prefill(prefills, decodes)


def _after_prefill(prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> set[tuple[str, str]]:
    taken = list(_take_decode(decodes))
    if not taken:
        return set(_score(prefills, decodes))
    pairs: set[tuple[str, str]] = set()
    for decode in taken:
        partners = [p for p in prefills if p.roleset == decode.roleset] or prefills
        pairs |= set(_score(partners, [decode]))
    return pairs


def _take_decode(decodes: Sequence[Decode]) -> Iterator[Decode]:
    counts = [d.count for d in decodes]
    throughputs = [d.throughput for d in decodes]
    if max(counts) - min(counts) >= 16:
        yield from (d for d in decodes if d.count == min(counts))
    elif max(throughputs) - min(throughputs) > 2048 and (idle := _list_idle(decodes)):
        yield from idle
    elif all(d.drain > 0 for d in decodes):
        scores = {d: d.count / max(d.drain, 0.1) for d in decodes}
        low, high = min(scores.values()), max(scores.values())
        if low > 0 and high / low > 1.5:
            yield from (d for d in decodes if scores[d] == low)


def _list_idle(decodes: Sequence[Decode]) -> list[Decode]:
    """List the pods that generate least.

    The one difference: with more requests than the pod that generates most, such a pod is slow, and
    gets no more of them.
    """
    throughputs = [d.throughput for d in decodes]
    most = min(d.count for d in decodes if d.throughput == max(throughputs))
    return [d for d in decodes if d.throughput == min(throughputs) and d.count <= most]


def _score(prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> Iterator[tuple[str, str]]:
    counts = [p.count for p in prefills]
    busiest = max(1, *counts)
    prefill_scores = {
        p: (100 - p.matched * 100 // BLOCKS) * 0.1 + p.count / busiest
        for p in prefills
        if len(counts) == 1 or p.count <= statistics.fmean(counts) + statistics.stdev(counts)
    }
    most = max(1, *(d.count for d in decodes))
    fastest = max(1.0, *(d.throughput for d in decodes))
    freest = max(1.0, *(d.free for d in decodes))
    decode_scores = {
        d: (1.0 * (d.count / most) + 1.0 * (1.0 - d.throughput / fastest)) / (d.free / freest)
        for d in decodes
    }
    highest_prefill = max(1.0, *prefill_scores.values())
    highest_decode = max(0.01, *decode_scores.values())
    finals = {
        (p, d): prefill_scores[p] / highest_prefill + decode_scores[d] / highest_decode
        for p in prefill_scores
        for d in decode_scores
        if p.roleset == d.roleset
    }
    lowest = min(finals.values())
    yield from ((p.name, d.name) for (p, d), final in finals.items() if final == lowest)


_ROLESETS = st.sampled_from("abc")
_COUNTS = st.integers(0, 4) | st.integers(0, 24)
_PREFILLS = st.builds(Prefill, st.just(""), _ROLESETS, _COUNTS, st.integers(0, BLOCKS))
_DECODES = st.builds(
    Decode,
    st.just(""),
    _ROLESETS,
    _COUNTS,
    st.sampled_from([0.0, 100.0, 2048.0, 3000.0]) | st.floats(0, 2000),
    st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1),
    st.sampled_from([0, 20, 40]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(_PREFILLS, min_size=1, max_size=6),
    st.lists(_DECODES, min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_the_choice_is_one_that_aibrix_may_make(
    prefills: list[Prefill], decodes: list[Decode], seed: int
) -> None:
    prefills = [Prefill(f"p{n}", p.roleset, p.count, p.matched) for n, p in enumerate(prefills)]
    decodes = [
        Decode(f"d{n}", d.roleset, d.count, d.throughput, d.usage, d.completed)
        for n, d in enumerate(decodes)
    ]
    assume({p.roleset for p in prefills} & {d.roleset for d in decodes})
    now = 0.0
    ledger = Ledger(clock=lambda: now)
    prefixes = PrefixIndex(1 << 20, 60, lambda: 0.0)
    samples = {}
    for p in prefills:
        prefixes.add(PREFIX.hashes[: p.matched], f"uid-{p.name}")
        for _ in range(p.count):
            ledger.start(Leg.PREFILL, f"uid-{p.name}", 10)
    for d in decodes:
        samples[f"uid-{d.name}"] = EngineSample(
            0.0, kv_usage=d.usage, generated_tokens_per_s=d.throughput
        )
        for _ in range(d.completed):
            ledger.start(Leg.DECODE, f"uid-{d.name}").release()
        for _ in range(d.count):
            ledger.start(Leg.DECODE, f"uid-{d.name}")
    now = SECONDS
    pods = make_model_pods(
        *(make_pod(p.name, Role.PREFILL, roleset=p.roleset) for p in prefills),
        *(make_pod(d.name, Role.DECODE, roleset=d.roleset) for d in decodes),
    )
    state = make_state(ledger, samples=samples, prefixes=prefixes, seed=seed, clock=lambda: SECONDS)
    strategy = create_strategies("prefix_cache", "load_balancing")["pd"]
    possible = list_pairs(prefills, decodes)
    for _ in range(3):
        decision = strategy.decide(RoutingFacts(500, None, PREFIX), pods, state)
        assert decision.prefill is not None
        assert (decision.prefill.pod.name, decision.last.pod.name) in possible


def test_a_decode_pod_taken_by_a_rule_has_its_prefill_pods_compared_among_themselves() -> None:
    state = make_state()
    for _ in range(16):
        state.ledger.start(Leg.DECODE, "uid-d-a")
    for _ in range(9):
        state.ledger.start(Leg.PREFILL, "uid-p-b", 1)
    pods = make_model_pods(
        *(make_pod(f"p-a{number}", Role.PREFILL, roleset="a") for number in range(6)),
        make_pod("p-b", Role.PREFILL, roleset="b"),
        *(make_pod(f"d-{roleset}", Role.DECODE, roleset=roleset) for roleset in "ab"),
    )
    strategy = create_strategies("prefix_cache", "load_balancing")["pd"]
    decision = strategy.decide(RoutingFacts(1, None), pods, state)
    assert decision.prefill is not None
    assert (decision.prefill.pod.name, decision.last.pod.name) == ("p-b", "d-b")
