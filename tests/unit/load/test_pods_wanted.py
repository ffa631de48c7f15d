"""How many pods the load wants: the formulas, and an autoscaler that goes by them."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, pairwise
from math import ceil
from random import Random

import pytest
from factories import MODEL, make_pod
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import LegLoad, Scope
from pdrouter.load.pods_wanted import (
    Group,
    PodsWanted,
    Steadied,
    want_decode_pods,
    want_prefill_pods,
)
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.samples import EngineSample

SPEED = 8000
PREFILL = Group("default", MODEL, Role.PREFILL, "")
DECODE = Group("default", MODEL, Role.DECODE, "")
SCRAPE_S = 15.0


def sample(
    capacity: int | None = 1000, *, running: float | None = None, waiting: float | None = None
) -> EngineSample:
    return EngineSample(
        0.0, kv_capacity_tokens=capacity, kv_usage=0.0, running=running, waiting=waiting
    )


@pytest.mark.parametrize(
    ("arriving", "waiting_s", "use", "wanted"),
    [
        (0.0, 0.0, 0.7, 0.0),
        (0.7, 0.0, 0.7, 1.0),
        (2.1, 0.0, 0.7, 3.0),
        (1.0, 0.0, 0.5, 2.0),
        (0.0, 42.0, 0.7, 1.0),
        (0.7, 42.0, 0.7, 2.0),
        (-0.1, 0.0, 0.7, 0.0),
    ],
)
def test_prefill_wants_what_arrives_and_what_waits(
    arriving: float, waiting_s: float, use: float, wanted: float
) -> None:
    assert want_prefill_pods(arriving, waiting_s, use) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("pods", "wanted"),
    [
        ([], None),
        ([(LegLoad(3, 400), None)], None),
        ([(LegLoad(3, 400), sample(None))], None),
        ([(LegLoad(), sample())], 0.0),
        ([(LegLoad(3, 400), sample())], 0.5),
        ([(LegLoad(3, 1600), sample()), (LegLoad(), sample())], 2.0),
        # One that does not tell is as large as the others.
        ([(LegLoad(3, 400), sample()), (LegLoad(3, 400), None)], 1.0),
        # Larger pods take more.
        ([(LegLoad(3, 400), sample(2000))], 0.25),
        # Six of this router's requests where two run: it would take three such pods.
        ([(LegLoad(6, 8), sample(waiting=4.0, running=2.0))], 3.75),
        ([(LegLoad(6, 8), sample(waiting=0.0, running=6.0))], 0.01),
        ([(LegLoad(6, 8), sample(waiting=4.0, running=0.0))], 0.01),
    ],
)
def test_decode_wants_memory_and_turns(
    pods: list[tuple[LegLoad, EngineSample | None]], wanted: float | None
) -> None:
    assert want_decode_pods(pods, 0.8) == (None if wanted is None else pytest.approx(wanted))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000)), min_size=1, max_size=6),
    st.floats(0.1, 1.0),
)
def test_what_routers_want_adds_up_to_what_one_router_would(
    loads: list[tuple[int, int]], use: float
) -> None:
    """Each sees the same engines, and its own requests only."""
    engines = [sample(waiting=1.0, running=8.0) for _ in loads]
    whole = [LegLoad(2 * requests, 2 * tokens) for requests, tokens in loads]
    half = [LegLoad(requests, tokens) for requests, tokens in loads]
    one = want_decode_pods(list(zip(whole, engines, strict=True)), use)
    each = want_decode_pods(list(zip(half, engines, strict=True)), use)

    assert one is not None
    assert each is not None
    assert 2 * each == pytest.approx(one)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 600)), min_size=1, max_size=40))
def test_a_steadied_demand_stays_between_the_least_and_the_greatest(
    demands: list[tuple[float, float]],
) -> None:
    steadied = Steadied()
    told = [steadied.take(demand, seconds) for demand, seconds in demands]

    assert all(0 <= each <= max(demand for demand, _ in demands) + 1e-9 for each in told)
    assert steadied.shown >= steadied.mean


@given(st.floats(0.01, 30), st.floats(0, 50), st.integers(1, 20))
def test_how_often_one_looks_makes_no_difference_to_the_mean(
    seconds: float, demand: float, looks: int
) -> None:
    often, once = Steadied(), Steadied()
    for _ in range(looks):
        often.take(demand, seconds)
    once.take(demand, seconds * looks)

    assert often.mean == pytest.approx(once.mean)


class Cluster:
    """Prefill pods that compute one prompt after the other, and a router that counts them."""

    def __init__(self, pods: int) -> None:
        self.now = 0.0
        self.ledger = Ledger(PrefillRates(SPEED), lambda: self.now)
        self.wanted = PodsWanted(self.ledger, {}, 0.7)
        self.pods: list[Pod] = []
        self._numbers = count()
        self._free_at: dict[str, float] = {}
        self._under_way: list[tuple[float, int, Scope]] = []
        self.waits: list[float] = []
        self.scale(pods)

    def scale(self, number: int) -> None:
        """Add pods at once, or take the last ones away."""
        while len(self.pods) < number:
            self.pods.append(make_pod(f"p{next(self._numbers)}"))
        for pod in self.pods[number:]:
            self.ledger.forget(pod.uid)
        del self.pods[number:]

    def send(self, tokens: int) -> None:
        free = {pod.uid: self._free_at.get(pod.uid, 0.0) for pod in self.pods}
        uid = min(free, key=lambda each: free[each])
        begins = max(self.now, free[uid])
        self.waits.append(begins - self.now)
        ends = self._free_at[uid] = begins + tokens / SPEED
        scope = self.ledger.start(Leg.PREFILL, uid, tokens)
        heappush(self._under_way, (ends, next(self._numbers), scope))

    def advance(self, now: float) -> None:
        while self._under_way and self._under_way[0][0] <= now:
            self.now, _, scope = heappop(self._under_way)
            scope.complete()
            scope.release()
        self.now = now

    def look(self) -> float | None:
        return self.wanted.look(self.pods, self.now).get(PREFILL)


def run(cluster: Cluster, seconds: float, rate: float, act: Callable[[float | None], None]) -> None:
    """Let requests come at random, so many per second, and look as Prometheus does."""
    random = Random(int(rate * 1000))
    end, scrape = cluster.now + seconds, cluster.now + SCRAPE_S
    arrival = cluster.now + random.expovariate(rate)
    while min(arrival, scrape) < end:
        if arrival < scrape:
            cluster.advance(arrival)
            cluster.send(random.randint(2000, 6000))
            arrival += random.expovariate(rate)
        else:
            cluster.advance(scrape)
            act(cluster.look())
            scrape += SCRAPE_S
    cluster.advance(end)


def test_it_rises_with_the_load_and_falls_after_it_without_flapping() -> None:
    cluster = Cluster(1)
    pods: list[int] = []

    def scale(wanted: float | None) -> None:
        number = max(1, ceil(wanted or 0.0))
        cluster.scale(number)
        pods.append(number)

    # 0.5 s of work per request: 0.25, then 3, then again 0.25 pods are busy all the time.
    run(cluster, 600, 0.5, scale)
    calm = pods.copy()
    run(cluster, 1800, 6.0, scale)
    busy = pods[len(calm) :]
    waits = cluster.waits[-1000:]
    run(cluster, 3600, 0.5, scale)

    assert set(calm) == {1}
    # Three that are always busy are 4.3 that are so for 70 % of their time.
    assert set(busy[len(busy) // 2 :]) == {5}
    assert sum(waits) / len(waits) < 0.5
    assert pods[-1] == 1
    steps = [latter - former for former, latter in pairwise(pods) if latter != former]
    # Up, and then down: never up again.
    assert steps == sorted(steps, reverse=True)
    assert max(pods) == 5


def test_routers_that_share_the_load_want_together_what_one_would() -> None:
    alone, halves = Cluster(4), (Cluster(4), Cluster(4))
    for cluster, rate in ((alone, 4.0), (halves[0], 2.0), (halves[1], 2.0)):
        run(cluster, 1200, rate, lambda wanted: None)
    together = [cluster.look() or 0.0 for cluster in halves]

    assert sum(together) == pytest.approx(alone.look(), rel=0.25)


class TestLooks:
    def test_what_is_not_known_is_absent(self) -> None:
        ledger = Ledger(PrefillRates(SPEED), lambda: 0.0)
        samples: dict[str, EngineSample] = {}
        wanted = PodsWanted(ledger, samples)
        pods = [make_pod("p"), make_pod("d", Role.DECODE), make_pod("e", Role.ENCODE)]
        ledger.start(Leg.PREFILL, pods[0].uid, 800)
        ledger.start(Leg.DECODE, pods[1].uid, 400)

        assert wanted.look(pods, 0.0) == {}
        assert wanted.look(pods, 15.0) == {}
        samples[pods[1].uid] = sample()
        assert set(wanted.look(pods, 30.0)) == {DECODE}

    def test_groups_are_what_is_scaled_together(self) -> None:
        ledger = Ledger(PrefillRates(SPEED), lambda: 0.0)
        pods = [
            make_pod("a", roleset="one"),
            make_pod("b", roleset="two"),
            make_pod("c", namespace="other"),
            make_pod("d", Role.BOTH),
        ]
        wanted = PodsWanted(ledger, {pods[3].uid: sample()})
        wanted.look(pods, 0.0)
        for pod in pods[:3]:
            with ledger.start(Leg.PREFILL, pod.uid, 800) as scope:
                scope.complete()

        assert set(wanted.look(pods, 15.0)) == {
            Group("default", MODEL, Role.PREFILL, "one"),
            Group("default", MODEL, Role.PREFILL, "two"),
            Group("other", MODEL, Role.PREFILL, ""),
            Group("default", MODEL, Role.BOTH, ""),
        }

    def test_groups_end_with_their_last_pod(self) -> None:
        pod = make_pod("d", Role.DECODE)
        wanted = PodsWanted(Ledger(), {pod.uid: sample()})

        assert set(wanted.look([pod], 0.0)) == {DECODE}
        assert wanted.look([], 15.0) == {}

    def test_ranks_of_one_pod_are_one_pod(self) -> None:
        ledger = Ledger()
        whole = make_pod("d", Role.DECODE)
        ranks = [make_pod(f"d#{n}", Role.DECODE, uid=f"{whole.uid}#{n}") for n in range(4)]
        for rank in ranks:
            ledger.start(Leg.DECODE, rank.uid, 800)
        wanted = PodsWanted(ledger, {rank.uid: sample() for rank in ranks}, decode_use=0.8)
        wanted.look(ranks, 0.0)

        assert wanted.look(ranks, 10_000.0)[DECODE] == pytest.approx(1.0)

    def test_work_is_what_was_computed_and_not_what_was_expected(self) -> None:
        """A cached prompt wants no pod, though the router did not know that it was cached."""
        now = 0.0
        ledger = Ledger(PrefillRates(SPEED), lambda: now)
        pod = make_pod("p")
        wanted = PodsWanted(ledger, {}, prefill_use=1.0)
        wanted.look([pod], 0.0)
        for _ in range(1000):
            with ledger.start(Leg.PREFILL, pod.uid, SPEED) as scope:
                now += 1 / 16
                scope.complete(SPEED // 16)
        told = wanted.look([pod], now)

        assert told[PREFILL] == pytest.approx(1.0, rel=0.5)
