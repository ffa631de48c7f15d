"""What one worker changes, the others change as well."""

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Any

import pytest
from factories import make_pod

from pdrouter.cluster.router_group import RouterGroup
from pdrouter.engines.split import Leg
from pdrouter.journal import journal as journals
from pdrouter.journal.journal import Journal
from pdrouter.journal.language import Call, Language
from pdrouter.journal.leading import work_while_leading
from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.load.failures import FailureMemory, Part
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import Scope
from pdrouter.load.samples import EngineSample, RequestMeans
from pdrouter.load.usage_news import UsageNews
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.kind import RequestKind
from pdrouter.openai.usage import Usage
from pdrouter.routing.algorithms.vtc import NAME as VTC
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.state import RoutingState
from pdrouter.serving.charges import Charges
from pdrouter.settings import Settings
from pdrouter.users.counters import Demand, Measure, Quota
from pdrouter.users.local_counters import LocalCounters
from pdrouter.users.places import Places
from pdrouter.users.quotas import limit_rate
from pdrouter.users.window_counts import WindowCounts
from pdrouter.wiring.knowledge import Knowledge, create_knowledge
from pdrouter.wiring.sharing import LANGUAGE, Sharing

POD = make_pod("p")
UID = POD.uid
KIND = RequestKind("/v1/completions", ("logprobs",))


class Workers:
    """Workers that share memory, but no clock that runs: changes are told when `turn` is called."""

    def __init__(self, count: int, ring_bytes: int = 64 * 1024) -> None:
        self.layout = Layout(count, ring_bytes)
        self.descriptor = create_memory(self.layout)
        self.now = 1000.0
        self.soon: list[Callable[[], None]] = []
        self.pods = [POD]
        self.forgotten: list[str] = []
        self.journals: dict[int, Journal] = {}
        self.knowledge: dict[int, Knowledge] = {}

    async def start(self, number: int, language: Language = LANGUAGE) -> RoutingState:
        journal = Journal(
            SharedMemory(self.descriptor, self.layout),
            number,
            language,
            list_pods=lambda: self.pods,
            forget=self.forgotten.append,
            clock=lambda: self.now,
            schedule=self.schedule,
        )
        self.journals[number] = journal
        self.knowledge[number] = create_knowledge(Settings(), Sharing(journal), RouterGroup())
        await journal.join()
        return self.knowledge[number].state

    def schedule(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def end(self, number: int) -> None:
        """End a worker as its supervisor sees it end."""
        SharedMemory(self.descriptor, self.layout).note_end(number)
        del self.journals[number]

    def turn(self) -> None:
        """Let all turns of their loops come, and as much time pass as they leave between two."""
        self.now += 0.02
        for _ in range(3):
            soon, self.soon = self.soon, []
            for call in soon:
                call()
            for journal in self.journals.values():
                journal.tick()


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(3)
    yield made
    os.close(made.descriptor)


def tell(knowledge: Knowledge) -> None:
    """Change all that can be changed."""
    state, failures = knowledge.state, knowledge.state.failures
    state.prefixes.add((1, 2, 3), UID, 10)
    state.prefixes.confirm((1, 2, 3, 4), UID, state.prefixes.recall((1, 2, 3, 4), UID), 2)
    state.prefixes.discard((3,), UID)
    for _ in range(4):
        failures.note_failure(
            *(UID, Leg.DECODE, "status-500", 999.0), model="m", subject=KIND, path="/"
        )
        failures.note_failure(UID, Leg.PREFILL, "connect", 999.0)
    failures.note_worthless(UID, Leg.ENCODE, "handoff", 999.0)
    failures.note_timeout(UID, Leg.ENCODE, "timeout", 999.0)
    failures.note_silence(UID, Leg.ENCODE, "silence", 999.0)
    failures.hold(UID, Leg.DECODE, 3.0)
    failures.note_scrape(UID, connected=False)
    failures.note_success(UID, Leg.ENCODE, 999.5, "m")
    knowledge.peers.learn(POD, {"id": b"1"}, 999.0)
    state.priorities.note(POD, takes=True)
    state.whole.begin(UID, 0.5)
    state.whole.observe(UID, 0.5, 0.7)
    state.whole.observe_handover("m", 0.1)
    state.decoded.add((1, 2), UID, rest_tokens=5, written_tokens=9.0)
    state.decoded.expect((1, 2, 3), UID, 30)
    state.recent.add(Leg.PREFILL, (3,), UID, 30, 10)
    sample = EngineSample(1000.0, 1, 2.0, 3.0, 0.5, 1000, means=RequestMeans(0.5, output_tokens=9))
    knowledge.samples.put(UID, sample)
    state.ledger.note_others(UID, 4.0)
    state.ledger.rates.note_buckets(UID, (128, 256))
    with state.ledger.start(Leg.PREFILL, UID, 100, 1010.0, 20) as scope:
        scope.complete(90)


def look(knowledge: Knowledge) -> Mapping[str, Any]:
    """Return what is known."""
    state, failures = knowledge.state, knowledge.state.failures
    return {
        "prefixes": state.prefixes.match((1, 2, 3, 4)),
        "recalled": state.prefixes.recall((1, 2, 3, 4), UID),
        "failures": failures.describe(UID),
        "records": failures._records,
        "troubles": failures.look("m"),
        "peer": knowledge.peers.find(POD),
        "priority": state.priorities.find(POD),
        "whole": state.whole.describe(UID),
        "wait": state.whole.predict_wait(UID),
        "handover": state.whole.count_answers("m"),
        "decoded": state.decoded.match((1, 2)),
        "recent": state.recent.measure(UID),
        "samples": dict(state.samples),
        "rate": state.ledger.rates.unit_s,
        "buckets": state.ledger.rates.find_shapes(UID).buckets,
        "busy": state.ledger.measure_busy([UID]),
        "drain": state.ledger.drain_rate(UID),
        "waits": state.ledger.predict_prefill_wait(UID),
        "loads": state.ledger.snapshot(),
    }


async def test_what_one_worker_knows_all_know(workers: Workers) -> None:
    for number in range(2):
        await workers.start(number)
    tell(workers.knowledge[0])
    workers.turn()
    workers.now += 20.0
    known = look(workers.knowledge[0])
    assert look(workers.knowledge[1]) == known
    assert [name for name, value in known.items() if not value] == ["wait", "loads"]
    # It was done once by each: nothing that is told is told again.
    assert workers.journals[1].events["noted"] == 1
    assert workers.journals[1].events["failed"] == 0


async def test_what_is_told_already_comes_before_what_is_changed_later_in_a_turn(
    workers: Workers,
) -> None:
    """All make all changes in one order, or they would differ for as long as a prompt is known."""
    one, other = await workers.start(0), await workers.start(1)
    one.prefixes.add((1,), UID)
    workers.turn()
    one.prefixes.add((2,), UID)  # A turn of this worker begins, of which it tells at the end.
    other.prefixes.discard((1,), UID)
    workers.journals[1].flush()
    one.prefixes.add((1,), UID)
    workers.turn()
    assert one.prefixes.match((1,)) == other.prefixes.match((1,)) == {UID: 1}


async def test_who_comes_later_learns_what_was_known_before(workers: Workers) -> None:
    await workers.start(0)
    tell(workers.knowledge[0])
    workers.turn()
    await workers.start(2)
    assert look(workers.knowledge[2]) == look(workers.knowledge[0])


async def test_a_worker_that_starts_again_knows_what_it_has_known(workers: Workers) -> None:
    await workers.start(0)
    tell(workers.knowledge[0])
    workers.turn()
    before = look(workers.knowledge[0])
    workers.end(0)
    await workers.start(0)
    assert look(workers.knowledge[0]) == before


def count(state: RoutingState) -> int:
    """Return what is counted already."""
    return sum(loads[UID].requests for loads in state.ledger.loads.values() if UID in loads)


async def test_a_prefill_leg_is_counted_by_all_at_once_with_what_came_before_it(
    workers: Workers,
) -> None:
    one, other = await workers.start(0), await workers.start(1)
    last = one.ledger.start(Leg.DECODE, UID, 10)
    other.catch_up()
    assert count(other) == 0
    first = one.ledger.start(Leg.PREFILL, UID, 20)
    other.catch_up()
    assert (count(other), other.ledger.load(Leg.PREFILL, UID).tokens) == (2, 20)
    for scope in (first, last):
        scope.release()
    workers.turn()
    assert (count(one), count(other)) == (0, 0)


async def test_a_look_at_an_engine_is_compared_with_what_all_have_there(workers: Workers) -> None:
    one, other = await workers.start(0), await workers.start(1)
    scope = one.ledger.start(Leg.PREFILL, UID, 10)
    assert other.ledger.count_requests(UID) == 1
    scope.release()
    workers.journals[0].flush()
    assert other.ledger.count_requests(UID) == 0


async def test_legs_of_a_worker_that_has_ended_are_in_flight_no_more(workers: Workers) -> None:
    one, other = await workers.start(0), await workers.start(1)
    for _ in range(3):
        one.ledger.start(Leg.PREFILL, UID, 10)
    other.ledger.start(Leg.PREFILL, UID, 10)
    workers.turn()
    assert count(other) == 4
    workers.end(0)
    workers.turn()
    assert count(other) == 1
    # Nor does it count them itself when it is back, and it counts those of the others.
    back = await workers.start(0)
    workers.turn()
    assert (count(back), count(other)) == (1, 1)


async def test_legs_that_are_older_than_a_journal_are_told_who_comes_later() -> None:
    workers = Workers(2, ring_bytes=256 * 1024)
    one = await workers.start(0)
    scopes = [one.ledger.start(Leg.DECODE, UID, 10) for _ in range(1200)]
    for number in range(20_000):
        one.prefixes.add((number,), UID)
    workers.turn()
    late = await workers.start(1)
    assert count(late) < 1200
    for _ in range(4):
        workers.turn()
    assert count(late) == 1200
    for scope in scopes:
        scope.release()
    workers.turn()
    assert count(late) == count(one) == 0


async def test_what_is_let_go_before_it_is_told_once_more_is_not_told(workers: Workers) -> None:
    one = await workers.start(0)
    places = Sharing(workers.journals[0]).share(Places)()
    scope = one.ledger.start(Leg.DECODE, UID, 10)
    trial = one.failures.start_trial(UID, Leg.DECODE)
    places.hold("ann", "r")
    workers.turn()
    late = await workers.start(1)
    late_places = Sharing(workers.journals[1]).share(Places)()
    one.catch_up()  # It has seen that another one has begun, and has yet to tell what it holds.
    scope.release()
    trial.release()
    places.free("ann", "r")
    for _ in range(3):
        workers.turn()
    assert count(one) == count(late) == 0
    assert not late_places.has("ann", "r")


async def test_a_worker_that_was_not_heeded_for_long_is_heard_again(workers: Workers) -> None:
    one, other = await workers.start(0), await workers.start(1)
    kept = [one.ledger.start(Leg.DECODE, UID, 10) for _ in range(5)]
    for _ in range(3000):  # More than the journal holds, while the other one stands still.
        one.ledger.start(Leg.PREFILL, UID, 10).release()
    other.catch_up()
    assert workers.journals[1].events["lost"] == 1
    workers.turn()
    workers.turn()
    assert count(one) == count(other) == len(kept)


class Life:
    """One life of a worker, and what it holds."""

    def __init__(self, journal: Journal, state: RoutingState) -> None:
        self.journal = journal
        self.ledger = state.ledger
        self.places = Sharing(journal).share(Places)()
        self.legs: list[Scope] = []
        self.held: list[str] = []

    def change(self, random: Random) -> None:
        """Take something, or let it go."""
        match random.randrange(5):
            case 0 | 1:
                leg = random.choice((Leg.PREFILL, Leg.DECODE))
                self.legs.append(self.ledger.start(leg, UID, 10))
            case 2 if self.legs:
                self.legs.pop(random.randrange(len(self.legs))).release()
            case 3:
                self.held.append(f"{random.random()}")
                self.places.hold("ann", self.held[-1])
            case 4 if self.held:
                self.places.free("ann", self.held.pop())

    def look(self) -> tuple[int, int]:
        return self.ledger.count_requests(UID), self.places.count("ann")


@pytest.mark.parametrize("seed", range(16))
async def test_workers_agree_on_what_is_held_however_they_come_and_go(
    seed: int, workers: Workers
) -> None:
    random = Random(seed)
    lives: dict[int, Life] = {}
    for _ in range(300):
        workers.now += random.choice((0.0, 0.001, 0.02))
        number, step = random.randrange(3), random.randrange(12)
        life = lives.get(number)
        if life is None:
            if step == 0 or not lives:
                state = await workers.start(number)
                lives[number] = Life(workers.journals[number], state)
        elif step == 0 and len(lives) > 1:
            workers.soon.clear()  # What was noted in the turn in which it ends, nobody hears of.
            for other in lives.values():
                other.journal._scheduled = False
                if other is not life:
                    other.journal.flush()
            workers.end(number)
            del lives[number]
        elif step < 9:
            life.change(random)
        else:
            random.choice((life.journal.tick, life.journal.catch_up, life.journal.flush))()
    for _ in range(6):
        workers.turn()
    there = sum(len(life.legs) for life in lives.values())
    held = sum(len(life.held) for life in lives.values())
    assert {life.look() for life in lives.values()} == {(there, held)}


async def test_one_worker_at_a_time_tries_a_pod_that_has_failed(workers: Workers) -> None:
    one, other = await workers.start(0), await workers.start(1)
    for _ in range(3):
        one.failures.note_failure(UID, Leg.PREFILL, "connect", workers.now)
    workers.turn()
    workers.now += 60.0
    assert UID not in other.failures.look("m")[Leg.PREFILL]
    trial = one.failures.start_trial(UID, Leg.PREFILL)
    other.catch_up()
    assert UID in other.failures.look("m")[Leg.PREFILL]
    assert not other.failures.start_trial(UID, Leg.PREFILL).holds
    trial.release()
    trial.release()
    other.catch_up()
    assert UID not in other.failures.look("m")[Leg.PREFILL]
    # That of a worker which ends is over.
    one.failures.start_trial(UID, Leg.PREFILL)
    workers.end(0)
    workers.turn()
    assert UID not in other.failures.look("m")[Leg.PREFILL]


async def test_a_question_to_a_pod_is_counted_by_who_has_asked(workers: Workers) -> None:
    one, other = await workers.start(0), await workers.start(1)
    one.failures.note_asked(Part(UID, Leg.DECODE, ""), "status-500")
    workers.turn()
    assert one.failures.asked == {"failed": 1}
    assert not other.failures.asked


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_workers_share_a_limit(limit: int, workers: Workers) -> None:
    counters = []
    for number in range(3):
        await workers.start(number)
        journal = workers.journals[number]
        windows = Sharing(journal).share(WindowCounts)(journal.clock)
        counters.append(LocalCounters(journal.clock, windows=windows, group="these"))
    demand = limit_rate("ns/m", "m", limit)
    admitted = 0
    for _ in range(300):
        for one, journal in zip(counters, workers.journals.values(), strict=True):
            journal.catch_up()
            while (await one.take([demand], "r")).taken is not None:
                admitted += 1
                journal.flush()
        workers.now += 0.1
    # As one: in each second as many, and as many again a part of a second later.
    assert limit * 26 <= admitted <= limit * 31


async def test_workers_share_the_places_of_a_limit(workers: Workers) -> None:
    counters = []
    for number in range(3):
        await workers.start(number)
        places = Sharing(workers.journals[number]).share(Places)()
        counters.append(LocalCounters(lambda: workers.now, places=places))
    demand = Demand(Quota("ann", Measure.CONCURRENT, 4, 0.0, "user 'ann'"))
    verdicts = []
    for number in range(9):
        workers.turn()
        verdicts.append(await counters[number % 3].take([demand], str(number)))
    taken = [verdict.taken for verdict in verdicts if verdict.taken is not None]
    assert len(taken) == 4
    await counters[0].release(taken[0])
    await counters[0].release(taken[0])
    workers.turn()
    assert (await counters[1].take([demand], "next")).taken is not None
    # Those of a worker that ends are free, and who comes later knows of the others.
    workers.end(0)
    workers.turn()
    await workers.start(0)
    late = LocalCounters(lambda: workers.now, places=Sharing(workers.journals[0]).share(Places)())
    workers.turn()
    (standing,) = (await late.take([demand], "last")).standings
    assert standing.remaining == 0


async def test_what_an_answer_has_used_is_charged_whichever_worker_hears_of_it(
    workers: Workers,
) -> None:
    charges, served = [], []
    for number in range(2):
        state = await workers.start(number)
        news = Sharing(workers.journals[number]).share(UsageNews)(lambda: workers.now)
        served.append(state.served)
        charges.append(Charges(state.served, news=news))
    facts = RoutingFacts(100, None, output_tokens=50, user="ann", algorithms=frozenset({VTC}))
    charges[1].note_usage("unwanted", Usage(1, None, 1))
    assert not workers.journals[1].follows
    charges[0].charge("r", facts)
    workers.turn()
    before = served[1].look("ann")
    assert before == served[0].look("ann")
    charges[1].note_usage("r", Usage(100, None, 5))
    workers.turn()
    await asyncio.sleep(0)  # The worker that has charged it puts it right in a turn of its own.
    workers.turn()
    after = served[1].look("ann")
    assert after == served[0].look("ann") != before
    assert not charges[0]


async def test_pods_that_are_gone_are_forgotten_though_others_have_told_of_them(
    workers: Workers,
) -> None:
    one = await workers.start(0)
    one.failures.note_failure("gone", Leg.PREFILL, "connect", 1.0)
    workers.turn()
    await workers.start(1)
    assert workers.forgotten == ["gone"]
    one.failures.note_failure("not seen yet", Leg.PREFILL, "connect", 1.0)
    one.failures.note_failure("late", Leg.PREFILL, "connect", 1.0)
    for _ in range(3):
        workers.now += 60.0
        workers.turn()
        workers.pods = [POD, make_pod("x", uid="not seen yet")]
    assert workers.forgotten == ["gone", "late"]


async def test_what_cannot_be_done_is_told_and_ends_nothing(
    workers: Workers, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await workers.start(0), await workers.start(1)
    monkeypatch.setattr(FailureMemory, "_open", None)  # As if it had an error.
    with pytest.raises(TypeError):
        one.failures.note_failure(UID, Leg.PREFILL, "connect", 1.0)
    workers.turn()
    assert workers.journals[0].at is None
    monkeypatch.undo()
    one.failures.note_failure(UID, Leg.PREFILL, "connect", 1.0)
    one.ledger.start(Leg.DECODE, UID)
    workers.soon.clear()
    workers.journals[0].flush()
    monkeypatch.setattr(FailureMemory, "_open", None)
    other.catch_up()
    assert workers.journals[1].events["failed"] == 1
    assert "change of worker 0 cannot be made" in caplog.text
    assert count(other) == 1


async def test_what_another_version_has_written_is_not_read(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    language = Language({Ledger: (Call("note_others"),)})
    assert language.dialect != LANGUAGE.dialect
    workers.journals[0] = journal = Journal(
        SharedMemory(workers.descriptor, workers.layout),
        0,
        language,
        clock=lambda: workers.now,
        schedule=workers.soon.append,
    )
    await journal.join()
    journal._write([language.verbs[Ledger][0].change(1.0, UID, 5.0)])
    other = await workers.start(1)
    for _ in range(3):
        journal._write([language.verbs[Ledger][0].change(1.0, UID, 5.0)])
        other.catch_up()
    events = workers.journals[1].events
    assert (events["taken"], events["unreadable"]) == (0, 4)
    # Said once, however much there is of it.
    assert caplog.text.count("speaks another language") == 1


async def test_there_is_one_memory_of_a_kind(workers: Workers) -> None:
    await workers.start(0)
    with pytest.raises(ValueError, match="two memories"):
        Sharing(workers.journals[0]).share(WholeServing)()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda one: one.prefixes.add(tuple(range(2**40, 2**40 + 10_000)), UID), id="too-large"
        ),
        pytest.param(lambda one: one.ledger.start(Leg.PREFILL, UID, 2**70), id="a-huge-number"),
        pytest.param(lambda one: one.served.count("ann\udce9", 1.0), id="a-text-that-is-none"),
    ],
)
async def test_a_change_that_cannot_be_told_is_left_out_and_no_other(
    change: Callable[[RoutingState], object], workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = await workers.start(0), await workers.start(1)
    one.prefixes.add((1,), UID)
    change(one)
    one.prefixes.add((2,), UID)
    workers.turn()
    assert other.prefixes.match((1,)) == other.prefixes.match((2,)) == {UID: 1}
    assert workers.journals[0].events["failed"] == 1
    assert "other workers cannot be told a change" in caplog.text


READS = {
    "Ledger": "load count_requests snapshot describe predict_prefill_wait predict_prefills"
    " predict_prefill knows measure_use measure_busy drain_rate count_prefill_backlog",
    "PrefillRates": "predict freeze measure convert find_shapes",
    "PrefixIndex": "match recall",
    "FailureMemory": "calm is_well_but_for was_ejected_since look list_ejected is_left_out"
    " describe",
    "PeerKnowledge": "find",
    "PriorityKnowledge": "find",
    "WholeServing": "find_handover expect_handover count_answers find_factor predict_wait"
    " measure_share may_serve is_refused describe",
    "DecodedPrompts": "match count_cached",
    "RecentPrompts": "measure find_miss_rate",
    "Samples": "",
    "Proofs": "has_another_served has_another_given has_told",
    "Places": "count has",
    "ServedTokens": "look",
    "TurnClaims": "list_others",
    "UsageNews": "wanted",
    "VirtualTokens": "read",
    "OutputLengths": "expect",
    "TokenRatios": "estimate",
    "UnsplittableKinds": "is_whole list_failed",
    "RetryBudget": "",
    "WindowCounts": "count find_wait find_reset",
}
"""What changes nothing that others should know."""
BY_ITSELF = {"forget"}
"""Each worker sees pods go."""
INSIDE = {
    "Places": {"hold", "free"},
    "PrefillRates": {"observe"},
    "Ledger": {"start", "end"},
    "FailureMemory": {"start_trial"},
}
"""What is told as part of another change, or as something that is held."""


@pytest.mark.parametrize("memory", LANGUAGE.verbs, ids=lambda memory: memory.__name__)
def test_each_method_that_changes_a_memory_is_told(memory: type[Any]) -> None:
    """Whoever adds one says here that it changes nothing, or names it where all are named."""
    name = memory.__name__
    public = {
        member
        for member, value in vars(memory).items()
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }
    told = {verb.call.name for verb in LANGUAGE.verbs[memory]}
    reads = set(READS[name].split())
    assert public == told | reads | INSIDE.get(name, set()) | (BY_ITSELF & public)
    assert not told & reads


async def test_the_first_worker_that_runs_leads(workers: Workers) -> None:
    for number in range(3):
        await workers.start(number)

    def leading() -> list[int]:
        return [number for number, one in workers.journals.items() if one.leads(3.0)]

    workers.turn()
    assert leading() == [0]
    workers.end(0)
    assert leading() == [1]
    # One that stands still leads no more, until it goes on.
    standing = workers.journals.pop(1)
    workers.now += 4.0
    workers.turn()
    workers.journals[1] = standing
    assert leading() == [2, 1]
    workers.turn()
    assert leading() == [1]


async def test_what_the_first_does_for_all_goes_on_when_it_has_ended(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdrouter.journal.leading._LOOK_S", 0.001)
    doing: set[int] = set()
    for number in range(2):
        await workers.start(number)
    workers.turn()

    async def work(number: int) -> None:
        doing.add(number)
        try:
            await asyncio.Event().wait()
        finally:
            doing.discard(number)

    async def until(expected: set[int]) -> None:
        async with asyncio.timeout(10):
            while doing != expected:
                await asyncio.sleep(0.001)

    tasks = [
        asyncio.create_task(work_while_leading(workers.journals[number], partial(work, number)))
        for number in range(2)
    ]
    await until({0})
    tasks[0].cancel()
    workers.end(0)
    await until({1})
    await workers.start(0)
    workers.turn()
    await until(set())
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_fails_while_leading_fails_the_worker(workers: Workers) -> None:
    await workers.start(0)

    async def work() -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await work_while_leading(workers.journals[0], work)


def test_what_is_told_at_once_is_bounded() -> None:
    assert journals._TOLD_AT_ONCE <= 500
