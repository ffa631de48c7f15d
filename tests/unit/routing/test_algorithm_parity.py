"""Lists, and `prefix-cache`, choose what aibrix's would, ties included.

The models below are written down from aibrix's rules, step by step and without regard to cost.
Given the same inputs, they say which pods aibrix may choose.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from factories import make_model_pods, make_pod, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.picker import pick_lowest
from pdrouter.routing.policy import PolicyOptions, RankingRequest
from pdrouter.routing.scoring import Listed, Measures
from pdrouter.routing.strategies import create_strategies

COUNT = 4
PODS = [make_pod(f"p{number}", Role.BOTH) for number in range(COUNT)]
PREFIX = PromptPrefix(tuple(range(1, 8)), tuple(range(256, 256 * 7 + 1, 256)), 2000)


@dataclass(frozen=True)
class Column:
    """What one item of a list says of the pods: a raw score, or nothing, and what it is worth."""

    values: Sequence[float | None]
    most: bool
    weight: int
    name: str = "column"
    unit: str = "things"

    def measure(self, pods: Sequence[Pod], request: RankingRequest, leg: Leg) -> Measures:
        del pods, request, leg
        return Measures(self.values)


def may_win(columns: Sequence[Column]) -> set[int]:
    """Normalise each item over what it has scored; the highest weighted sum wins."""
    weights = sum(column.weight for column in columns)
    totals = [0.0] * COUNT
    for column in columns:
        scored = [value for value in column.values if value is not None and math.isfinite(value)]
        for index, value in enumerate(column.values):
            if value is None or not math.isfinite(value):
                continue
            low, high = min(scored), max(scored)
            if high == low:
                score = 1.0
            elif column.most:
                score = (value - low) / (high - low)
            else:
                score = (high - value) / (high - low)
            totals[index] += column.weight / weights * score
    best = max(totals)
    return {index for index, total in enumerate(totals) if total >= best - 1e-9}


_RAW = st.none() | st.integers(0, 6).map(float) | st.just(math.nan)
_COLUMNS = st.lists(
    st.builds(
        Column,
        st.lists(_RAW, min_size=COUNT, max_size=COUNT),
        st.booleans(),
        st.integers(1, 5),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(_COLUMNS, st.integers(0, 10))
def test_a_list_takes_a_pod_that_aibrixs_would_take(columns: list[Column], seed: int) -> None:
    state = make_state(seed=seed)
    listed = Listed("a:1,b:1", [(column, column.weight) for column in columns])
    ranking = listed.rank(PODS, RankingRequest(RoutingFacts(1, None), state), Leg.DECODE)
    lowest = {index for index, score in enumerate(ranking.scores) if score == min(ranking.scores)}
    assert lowest == may_win(columns)
    assert pick_lowest(ranking.scores, state.random) in lowest


def may_serve(counts: list[int], blocks: list[int], spread: int, factor: float) -> set[int]:
    """Go through the rules of `prefix-cache` by itself."""
    fewest = min(counts)
    able: Sequence[int] = range(COUNT)
    if max(counts) - fewest > spread:
        able = [index for index in able if counts[index] == fewest]
    percents = {index: 100 * blocks[index] // 7 for index in able if blocks[index]}
    mean, deviation = statistics.fmean(counts), statistics.stdev(counts)
    fitting = [index for index in percents if counts[index] <= mean + factor * deviation + 1e-9]
    if not fitting:
        return {index for index in range(COUNT) if counts[index] == fewest}
    best = min((-percents[index], counts[index]) for index in fitting)
    return {index for index in fitting if (-percents[index], counts[index]) == best}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=COUNT, max_size=COUNT),
    st.lists(st.integers(0, 7), min_size=COUNT, max_size=COUNT),
    st.integers(0, 10),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_prefix_cache_takes_a_pod_that_aibrixs_would_take(
    counts: list[int], blocks: list[int], spread: int, factor: float
) -> None:
    ledger = Ledger(clock=lambda: 0.0)
    state = make_state(ledger)
    for pod, count, cached in zip(PODS, counts, blocks, strict=True):
        for _ in range(count):
            ledger.start(Leg.DECODE, pod.uid)
        state.decoded.expect(PREFIX.hashes[:cached], pod.uid, 100)
    options = PolicyOptions(request_imbalance_spread=spread, standard_deviation_factor=factor)
    strategy = create_strategies(options=options)["prefix-cache"]
    decision = strategy.decide(RoutingFacts(500, None, PREFIX), make_model_pods(*PODS), state)
    last = decision.last
    lowest = {
        PODS.index(pod)
        for pod, score in zip(last.candidates, last.scores, strict=True)
        if score == last.score
    }
    assert lowest == may_serve(counts, blocks, spread, factor)
