"""Turns that several workers give in one order."""

import asyncio
from collections.abc import Callable

import pytest
from factories import make_model_pods, make_record

from pdrouter.engines.split import Leg
from pdrouter.load.fair_line import Place
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.token_weights import TokenWeights
from pdrouter.load.turn_claims import FRESH_S, TurnClaims
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.strategies import create_strategies
from pdrouter.serving.model_queue import Applicant, ModelQueue, Waiting, Way
from pdrouter.serving.worker_turns import WorkerTurns

WAY = Way("m", Leg.PREFILL)
# A pod computes 8,000 tokens in a second: 400 until another worker looks.
WEIGHTS = TokenWeights(1.0, 0.0)
SLACK = 400


class Worker:
    """The queue of a worker, and what it tells others."""

    def __init__(self, claims: TurnClaims, counters: VirtualTokens) -> None:
        self.turns = WorkerTurns(claims, PrefillRates(), WEIGHTS)
        self.queue = ModelQueue("ns/m", counters)

    def wait(self, user: str, line: str = "", due: float = 0.0, way: Way = WAY) -> Place[Waiting]:
        strategy = create_strategies()["pd"]
        facts = RoutingFacts(100, None, user=user)
        applicant = Applicant("m", make_model_pods(), strategy, facts, line, make_record())
        granted = asyncio.get_running_loop().create_future()
        place = Place(user, way, 100.0, due, Waiting(applicant, granted))
        self.queue.find_line(line).join(place)
        self.turns.tell(self.queue)
        return place

    def goes_first(self, pods: int = 1) -> bool:
        found = self.queue.find_next((WAY,))
        assert found is not None
        return self.turns.goes_first(found, pods)


class Setup:
    def __init__(self) -> None:
        self.now = 0.0
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.counters = VirtualTokens()
        self.claims = TurnClaims(clock)
        self.one, self.other = (Worker(self.claims, self.counters) for _ in range(2))

    def charge(self, user: str, tokens: float, line: str = "") -> None:
        self.counters.charge(self.one.queue.find_line(line).name, user, tokens)


@pytest.mark.parametrize(
    ("served", "pods", "first"), [(0, 1, True), (SLACK, 1, True), (500, 1, False), (500, 2, True)]
)
async def test_who_is_behind_at_another_worker_goes_first(
    served: float, pods: int, first: bool
) -> None:
    setup = Setup()
    setup.charge("ann", served)
    setup.one.wait("ann")
    setup.other.wait("bob")
    assert setup.one.goes_first(pods) == first
    assert setup.other.goes_first(pods)


async def test_between_classes_what_is_due_first_goes_first() -> None:
    setup = Setup()
    setup.one.wait("ann", due=10.0)
    setup.other.wait("bob", "interactive", due=9.0)
    assert not setup.one.goes_first()
    assert setup.other.goes_first()


async def test_who_waits_for_other_room_keeps_nobody_waiting() -> None:
    setup = Setup()
    setup.charge("ann", 5000)
    setup.one.wait("ann")
    setup.other.wait("bob", way=Way("m", Leg.DECODE))
    assert setup.one.goes_first()
    assert setup.one.turns.are_waiting(Way("m", Leg.DECODE))
    assert not setup.one.turns.are_waiting(WAY)


async def test_a_worker_that_says_nothing_any_more_keeps_nobody_waiting() -> None:
    setup = Setup()
    setup.charge("ann", 5000)
    setup.one.wait("ann")
    setup.other.wait("bob")
    assert setup.one.turns.are_waiting(WAY)
    setup.now += FRESH_S * 1.1
    assert setup.one.goes_first()
    assert not setup.one.turns.are_waiting(WAY)
    # What is stale goes when the next one speaks.
    setup.one.turns.tell(setup.one.queue)
    assert [len(claims) for claims in setup.claims._claims.values()] == [1]


async def test_who_has_had_its_turn_waits_no_more_for_others() -> None:
    setup = Setup()
    setup.charge("ann", 5000)
    setup.one.wait("ann")
    place = setup.other.wait("bob")
    assert not setup.one.goes_first()
    setup.other.queue.find_line("").serve(place)
    setup.other.turns.tell(setup.other.queue)
    assert setup.one.goes_first()
