from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from clusters import BATCHING, DECODE, HARDWARE, TWO_AND_TWO, make_request, make_workload
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.routing.cluster.model import Shape
from benchmarks.routing.cluster.presets import H100, SHAPES
from benchmarks.routing.cluster.results import SimulationResult
from benchmarks.routing.cluster.router_replica import RouterOptions
from benchmarks.routing.cluster.simulation import MODEL, Simulation, make_pods
from benchmarks.routing.cluster.workload import Workload
from benchmarks.routing.contenders import CONTENDERS, OURS
from benchmarks.routing.workloads import make_workload as make_pattern
from pdrouter.cluster.view import ModelPods
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.routing.decision import Decision, RoutingFacts, Strategy
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies

BUSY = make_pattern("chat", 300, seed=1).scale(8.0)
SHARED = SHAPES["8P+8D"]


class WithoutPrefill:
    """A strategy that lets the decode pod do everything."""

    name = "whole"

    def __init__(self) -> None:
        self._whole = create_strategies()["random"]

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        return self._whole.decide(facts, pods, state)

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        del prefill_policy, decode_policy
        return frozenset((self.name,))


class Recording:
    """A strategy that notes what it was asked, what engines had said, and what it answered."""

    name = "recording"

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.log: list[tuple[RoutingFacts, Mapping[str, EngineSample], Decision]] = []

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        decision = self._strategy.decide(facts, pods, state)
        self.log.append((facts, dict(state.samples), decision))
        return decision

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        del prefill_policy, decode_policy
        return frozenset((self.name,))


def simulate(
    workload: Workload,
    strategy: Strategy | None = None,
    *,
    shape: Shape = TWO_AND_TWO,
    options: RouterOptions | None = None,
    seed: int = 0,
) -> SimulationResult:
    simulation = Simulation(
        workload,
        HARDWARE,
        shape,
        create_strategy=lambda: strategy or create_strategies()["pd"],
        options=options or RouterOptions(),
        seed=seed,
    )
    return simulation.run()


def simulate_contender(name: str, *, shape: Shape, seed: int = 0) -> SimulationResult:
    contender = CONTENDERS[name]
    simulation = Simulation(
        BUSY,
        H100,
        shape,
        create_strategy=lambda: contender.create(H100),
        options=contender.adapt(RouterOptions()),
        seed=seed,
    )
    return simulation.run()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, SHAPES["8P+8D-two-routers"]) for name in CONTENDERS),
        *((OURS, shape) for shape in SHAPES.values()),
    ],
)
def test_every_request_is_served_and_nothing_stays_counted(name: str, shape: Shape) -> None:
    result = simulate_contender(name, shape=shape)

    assert len(result.passages) == len(BUSY.requests)
    assert result.counted_work == ()
    for passage in result.passages:
        assert passage.whole == (passage.computed_s is None)
        assert passage.first_token_s is not None
        assert passage.finished_s is not None
        computed_s = passage.first_token_s if passage.whole else passage.computed_s
        assert computed_s is not None
        assert passage.request.arrival_s < computed_s <= passage.first_token_s
        assert passage.first_token_s <= passage.finished_s


@pytest.mark.parametrize("name", CONTENDERS)
def test_the_same_seed_gives_the_same_result(name: str) -> None:
    shape = SHAPES["8P+8D-two-routers"]

    assert simulate_contender(name, shape=shape) == simulate_contender(name, shape=shape)


def test_another_seed_gives_another_result() -> None:
    assert simulate_contender("random", shape=SHARED) != simulate_contender(
        "random", shape=SHARED, seed=1
    )


def test_one_request_passes_through_both_engines() -> None:
    result = simulate(make_workload(make_request(1.0, 1000, 11), make_request(60.0, 10)))
    first = result.passages[0]

    assert first.computed_s == pytest.approx(2.0)
    assert first.ttft_s == pytest.approx(1.1)
    assert first.inter_token_s == pytest.approx(0.1)


def test_requests_that_are_served_whole_need_no_prefill_pod() -> None:
    result = simulate(
        make_workload(make_request(0.0, 1000, 11), make_request(9.0, 10)), WithoutPrefill()
    )

    assert result.passages[0].prefill_uid == ""
    assert result.passages[0].ttft_s == pytest.approx(1.1)
    assert all(use.busy_s == 0.0 for use in result.prefill)
    assert result.counted_work == ()


def test_requests_that_would_wait_too_long_are_refused_before_any_work() -> None:
    crowd = make_workload(*(make_request(0.01 * index, 8000) for index in range(20)))
    result = simulate(crowd, options=RouterOptions(max_wait_s=3.0))
    refused = [passage for passage in result.passages if not passage.decode_uid]

    assert 0 < len(refused) < 20
    assert all(passage.finished_s is None for passage in refused)
    assert result.counted_work == ()


def test_a_request_that_no_pod_has_memory_for_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        simulate(make_workload(make_request(0.0, 200_000)))


def test_replicas_take_turns() -> None:
    logs: list[Recording] = []

    def create() -> Strategy:
        logs.append(Recording(create_strategies()["pd"]))
        return logs[-1]

    shape = replace(TWO_AND_TWO, replicas=2)
    workload = make_workload(*(make_request(float(index), 100) for index in range(5)))
    Simulation(workload, HARDWARE, shape, create_strategy=create, options=RouterOptions()).run()

    assert [len(log.log) for log in logs] == [3, 2]


@pytest.mark.parametrize("interval", [0.5, 2.0])
def test_routers_see_metrics_as_old_as_the_scrape_interval(interval: float) -> None:
    recording = Recording(create_strategies()["pd"])
    arrivals = [0.3, 0.7, 1.9, 2.1, 4.6]
    simulate(
        make_workload(*(make_request(at, 100, 50) for at in arrivals)),
        recording,
        options=RouterOptions(scrape_interval_s=interval),
    )

    for at, (_, samples, _) in zip(arrivals, recording.log, strict=True):
        assert {sample.at for sample in samples.values()} == {at // interval * interval}
        assert len(samples) == 4


def test_router_and_simulator_choose_alike_for_the_same_inputs() -> None:
    recording = Recording(create_strategies()["pd"])
    result = Simulation(
        BUSY,
        H100,
        SHARED,
        create_strategy=lambda: recording,
        options=RouterOptions(),
        seed=3,
    ).run()
    replayed = replay(result, recording, Random("3/0"))

    expected = [decision for _, _, decision in recording.log]
    assert [describe(decision) for decision in replayed] == [
        describe(decision) for decision in expected
    ]


def describe(decision: Decision) -> tuple[object, ...]:
    prefill, decode = decision.prefill, decision.last
    assert prefill is not None
    return (
        prefill.pod.uid,
        tuple(prefill.scores),
        prefill.tokens,
        decode.pod.uid,
        tuple(decode.scores),
        decode.tokens,
    )


def replay(result: SimulationResult, recording: Recording, random: Random) -> list[Decision]:
    """Do what a live router does, with the routing code alone, when things happen as they did."""
    strategy = create_strategies()["pd"]
    pods = ModelPods.group(MODEL, make_pods(SHARED))
    now = 0.0

    def clock() -> float:
        return now

    samples: dict[str, EngineSample] = {}
    options = RouterOptions()
    ledger = Ledger(PrefillRates(), clock)
    prefixes = PrefixIndex(
        options.index_bytes,
        options.index_ttl_s,
        clock,
        lambda uids: sum(samples[uid].kv_capacity_tokens or 0 for uid in uids),
    )
    state = RoutingState(ledger, prefixes, samples, clock, random)
    happenings = sorted(
        (at, order, index)
        for index, passage in enumerate(result.passages)
        for order, at in enumerate(
            (passage.request.arrival_s, passage.computed_s, passage.finished_s)
        )
        if at is not None
    )
    decisions: list[Decision] = []
    legs = {}
    for at, order, index in happenings:
        now = at
        passage = result.passages[index]
        if order == 0:
            facts, seen, _ = recording.log[index]
            samples.clear()
            samples.update(seen)
            decision = strategy.decide(facts, pods, state)
            assert decision.prefill is not None
            decisions.append(decision)
            legs[index] = (
                ledger.start(Leg.DECODE, decision.last.pod.uid, decision.last.tokens),
                ledger.start(
                    Leg.PREFILL,
                    decision.prefill.pod.uid,
                    decision.prefill.tokens,
                    cached=facts.prompt_tokens - decision.prefill.tokens,
                ),
            )
            prefixes.add(facts.prefix.hashes, decision.prefill.pod.uid, decision.prefill.tokens)
        elif order == 1:
            legs[index][1].complete(passage.request.prompt_tokens - passage.cached_tokens)
            legs[index][1].release()
        else:
            legs[index][0].release()
    return decisions


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 10.0), st.integers(1, 9000), st.integers(1, 60)),
        min_size=2,
        max_size=25,
    ),
    st.booleans(),
)
def test_no_request_is_lost_however_short_memory_is(
    drafts: list[tuple[float, int, int]], batching: bool
) -> None:
    hardware = replace(
        HARDWARE,
        prefill=BATCHING if batching else HARDWARE.prefill,
        prefill_kv_tokens=20 * 512,
        decode=replace(DECODE, slots=3),
        decode_kv_tokens=10_000,
    )
    requests = [make_request(at, tokens, output) for at, tokens, output in sorted(drafts)]
    result = Simulation(
        make_workload(*requests),
        hardware,
        TWO_AND_TWO,
        create_strategy=lambda: create_strategies()["pd"],
        options=RouterOptions(),
    ).run()

    assert all(passage.finished_s is not None for passage in result.passages)
    assert result.counted_work == ()
