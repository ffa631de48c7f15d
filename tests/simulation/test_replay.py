"""The simulator and the live router make the same choices for the same requests."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from clusters import BATCHING, HARDWARE, make_request
from replicas import DirectReplica, LiveReplica

from benchmarks.routing.cluster.model import Shape
from benchmarks.routing.cluster.router_replica import RouterOptions, RouterReplica
from benchmarks.routing.cluster.simulation import Simulation
from benchmarks.routing.cluster.workload import SimulatedRequest, Workload
from pdrouter.routing.deadlines import DeadlineRules
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES, create_strategies
from pdrouter.serving.record import RequestRecord
from pdrouter.settings.choices import Aggregation

SHAPE = Shape("3P+2D, one slow", (1.0, 1.0, 2.0), (1.0, 1.0))
OPTIONS = RouterOptions(scrape_interval_s=0.5)
BATCHES = replace(HARDWARE, prefill=BATCHING)


def make_conversations(count: int) -> Workload:
    """Return requests of conversations that share a system prompt, and grow."""
    random = Random(3)
    requests: list[SimulatedRequest] = []
    turns: Counter[int] = Counter()
    arrival = 0.0
    for _ in range(count):
        arrival += random.expovariate(2.0)
        talk = random.randrange(count // 4)
        turns[talk] += 1
        blocks = (0, *(100 * talk + turn for turn in range(1, turns[talk])))
        tokens = 512 * len(blocks) + random.randrange(1, 700)
        requests.append(make_request(arrival, tokens, random.randrange(1, 30), blocks))
    return Workload("conversations", tuple(requests))


def run(
    replica: type[RouterReplica],
    prefill: str = "ttft",
    decode: str = "kv_capacity",
    *,
    options: RouterOptions = OPTIONS,
    replicas: int = 1,
    workers: int = 1,
) -> list[tuple[str, str, float | None]]:
    result = Simulation(
        make_conversations(120),
        BATCHES,
        replace(SHAPE, replicas=replicas, workers=workers),
        create_strategy=lambda: create_strategies(prefill, decode)["pd"],
        options=options,
        seed=7,
        create_replica=replica,
    ).run()
    assert result.counted_work == ()
    return [
        (passage.prefill_uid, passage.decode_uid, passage.finished_s) for passage in result.passages
    ]


@pytest.mark.parametrize("decode", DECODE_POLICIES)
@pytest.mark.parametrize("prefill", PREFILL_POLICIES)
def test_the_simulator_chooses_as_the_live_router(prefill: str, decode: str) -> None:
    simulated = run(DirectReplica, prefill, decode)

    assert run(LiveReplica, prefill, decode) == simulated
    assert len({pods[:2] for pods in simulated}) > 3


@pytest.mark.parametrize("replicas", [1, 3])
def test_what_is_served_whole_is_the_same_with_one_router_or_several(replicas: int) -> None:
    options = replace(OPTIONS, aggregation=Aggregation.WHEN_FASTER, handover_s=2.0)
    simulated = run(DirectReplica, options=options, replicas=replicas)

    assert run(LiveReplica, options=options, replicas=replicas) == simulated
    whole = [pods for pods in simulated if not pods[0]]
    assert 3 < len(whole) < len(simulated) - 3


def test_what_is_due_first_is_served_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # No time passes while the live router reads a request.
    monkeypatch.setattr(RequestRecord, "elapsed_s", 0.0)
    options = replace(OPTIONS, deadlines=DeadlineRules(0.1, 20.0))
    simulated = run(DirectReplica, options=options)

    assert run(LiveReplica, options=options) == simulated
    assert simulated != run(DirectReplica)


@pytest.mark.parametrize("replica", [DirectReplica, LiveReplica])
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("aggregation", [Aggregation.NEVER, Aggregation.WHEN_FASTER])
def test_several_workers_choose_as_one(
    replica: type[RouterReplica], workers: int, aggregation: Aggregation
) -> None:
    options = replace(OPTIONS, aggregation=aggregation, turn_s=0.0)
    expected = run(DirectReplica, options=options)
    found = run(replica, options=options, workers=workers)
    assert [pods[:2] for pods in found] == [pods[:2] for pods in expected]
    # What is told between two steps of an engine moves the last bits of its times.
    assert [pods[2] for pods in found] == pytest.approx([pods[2] for pods in expected])


def test_policies_choose_differently() -> None:
    outcomes = [run(LiveReplica, prefill, "kv_capacity") for prefill in ("ttft", "prefix_cache")]

    assert outcomes[0] != outcomes[1]
