"""Workers choose as one router would: what has happened is replayed to one, and to several."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

import pytest
from exchanges import PARAMS, SETTINGS, Notes, request_body, request_headers
from factories import make_pod

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.messages import ResponseHeaders
from pdrouter.journal.journal import Journal
from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.load.samples import EngineSample
from pdrouter.serving import leg_posts, legs, way
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.settings import Settings
from pdrouter.wiring.exchanges import Exchanges, Surroundings, create_router
from pdrouter.wiring.knowledge import create_knowledge
from pdrouter.wiring.sharing import LANGUAGE, Sharing

REQUESTS = 120
PODS = [
    make_pod(f"{role}-{number}", role, ip=f"10.0.{place}.{number}")
    for place, role in enumerate((Role.PREFILL, Role.DECODE))
    for number in range(4)
]
TEXTS = ["You are helpful. " * 60, "Du hilfst gern. " * 80, "Vous aidez. " * 40]
USAGE = (
    '{"prompt_tokens": %d, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": %d}}'
)
Event: TypeAlias = tuple[str, Any]
"""Something that happens: to which request, or to which pod."""


@dataclass(slots=True)
class Engines:
    """Answer side legs when the replay says so."""

    waiting: dict[str, "asyncio.Future[EngineAnswer | FailureKind]"] = field(default_factory=dict)

    async def post(
        self, address: str, path: str, headers: Mapping[str, str], *_: object, **__: object
    ) -> EngineAnswer:
        del path
        future = self.waiting[headers["x-extra"]] = asyncio.get_running_loop().create_future()
        answer: EngineAnswer | FailureKind = await future
        if isinstance(answer, FailureKind):
            raise PostFailed(answer, f"{address} broke")
        return answer


class Worker:
    """One worker, with everything but a transport, engines, and a clock of its own."""

    def __init__(self, settings: Settings, sharing: Sharing) -> None:
        self.cache = PodCache()
        self.cache.replace(PODS)
        self.knowledge = create_knowledge(settings, sharing, RouterGroup())
        self.engines = Engines()
        self.notes = Notes()
        self.exchanges = Exchanges(
            settings,
            Surroundings(
                cache=self.cache,
                router=create_router(settings, self.knowledge.state),
                client=self.engines,  # type: ignore[arg-type]
                observer=self.notes,
                tokenizers=PromptTokenizers({}, 1.0, 1),
                bodies=HeldBodies(1_000_000, 10_000_000),
                sharing=sharing,
            ),
        )

    def open(self) -> Exchange:
        async def take(data: bytes) -> None:
            del data

        return self.exchanges.open(take, lambda: None)


@dataclass(slots=True)
class Request:
    """A request on its way."""

    worker: Worker
    exchange: Exchange
    task: "asyncio.Task[Any]"


def record(seed: int) -> list[Event]:
    """Return what happens, in an order in which it might."""
    random = Random(seed)
    events: list[Event] = []
    open_requests: list[int] = []
    begun = 0
    while begun < REQUESTS or open_requests:
        kind = random.choices(("begin", "go on", "scrape", "wait"), (4, 5, 1, 1))[0]
        if kind == "begin" and begun < REQUESTS:
            text = random.choice(TEXTS) + "x" * random.randrange(0, 3000, 500)
            events.append(("begin", (begun, text, random.random() < 0.1)))
            open_requests.append(begun)
            begun += 1
        elif kind == "go on" and open_requests:
            number = random.choice(open_requests)
            events.append(("go on", (number, random.random())))
            if len([one for one in events if one[0] == "go on" and one[1][0] == number]) == 4:
                open_requests.remove(number)
        elif kind == "scrape":
            pod = random.choice(PODS)
            events.append(("scrape", (pod, float(random.randrange(6)), random.random())))
        else:
            events.append(("wait", random.uniform(0.0, 2.0)))
    return events


class Replay:
    """Gives what has happened to workers, each request to the next one."""

    def __init__(self, workers: list[Worker], clock: "Clock") -> None:
        self.workers = workers
        self.clock = clock
        self.requests: dict[int, Request] = {}
        self.chosen: list[tuple[Any, ...]] = []

    async def run(self, events: list[Event]) -> list[tuple[Any, ...]]:
        """Return what was chosen, request by request, in the order in which they have ended."""
        for step, (kind, what) in enumerate(events):
            self.clock.now += 0.01
            for worker in self.workers:
                worker.knowledge.state.random.seed(step)
            if kind == "wait":
                self.clock.now += what
            elif kind == "scrape":
                self.scrape(*what)
            elif kind == "begin":
                await self.begin(*what)
            else:
                await self.go_on(*what)
            await settle()
        return self.chosen

    def scrape(self, pod: Pod, waiting: float, usage: float) -> None:
        knowledge = self.workers[0].knowledge
        own = knowledge.state.ledger.count_requests(pod.uid)
        sample = EngineSample(
            self.clock.now, own, own + waiting, 0.0, usage, kv_capacity_tokens=100_000
        )
        knowledge.samples.put(pod.uid, sample)
        knowledge.state.ledger.note_others(pod.uid, sample.others)

    async def begin(self, number: int, text: str, images: bool) -> None:
        worker = self.workers[number % len(self.workers)]
        exchange = worker.open()
        await exchange.handle(request_headers(x_extra=str(number)))
        content: Any = text
        if images:
            url = {"url": "data:image/png;base64,AAAA"}
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": url}]
        body = request_body(
            {"model": PODS[0].model, "messages": [{"role": "user", "content": content}]}
        )
        task = asyncio.ensure_future(exchange.handle(body))
        self.requests[number] = Request(worker, exchange, task)

    async def go_on(self, number: int, luck: float) -> None:
        """Let an engine answer the request, and then Envoy; in the end, it is over."""
        request = self.requests.get(number)
        if request is None:
            return
        side = request.worker.engines.waiting.pop(str(number), None)
        if side is not None:
            side.set_result(answer_side_leg(luck))
        elif not request.task.done():
            pytest.fail("a request waits for nobody")
        else:
            await self.end(number, request, "503" if luck < 0.1 else "200")

    async def end(self, number: int, request: Request, status: str) -> None:
        del self.requests[number]
        await request.exchange.handle(ResponseHeaders({":status": status}))
        request.exchange.close()
        ended = request.worker.notes.finished[-1]
        decision = ended.decision
        self.chosen.append(
            (
                number,
                ended.aggregated,
                [choice.pod.name for choice in decision.legs] if decision else None,
                [choice.scores for choice in decision.legs] if decision else None,
                [(attempt.pod.name, attempt.failure) for attempt in ended.attempts],
                ended.prefixes_gone,
            )
        )


def answer_side_leg(luck: float) -> EngineAnswer | FailureKind:
    if luck < 0.08:
        return FailureKind.CONNECT
    if luck < 0.16:
        return EngineAnswer(503, {"retry-after": "1"}, b"{}")
    tokens = 200 + round(luck * 500)
    usage = USAGE % (tokens, round(luck * tokens))
    return EngineAnswer(
        200, {}, b'{"kv_transfer_params": ' + PARAMS + b', "usage": ' + usage.encode() + b"}"
    )


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


@dataclass(slots=True)
class Clock:
    """The time of all workers."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    monotonic = perf_counter = __call__


@asynccontextmanager
async def run_workers(count: int, clock: Clock) -> AsyncIterator[list[Worker]]:
    settings = Settings(
        **{**SETTINGS, "prefill_retries": 1, "workers": count, "eject_after": 2, "eject_s": 3.0}
    )
    if count == 1:
        yield [Worker(settings, Sharing(clock=clock))]
        return
    layout = Layout(count)
    descriptor = create_memory(layout)
    try:
        journals = [
            Journal(SharedMemory(descriptor, layout), number, LANGUAGE, clock=clock)
            for number in range(count)
        ]
        workers = [Worker(settings, Sharing(journal)) for journal in journals]
        for journal in journals:
            await journal.join()
        yield workers
        assert all(journal.events["failed"] == 0 for journal in journals)
        assert all(journal.events["unreadable"] == 0 for journal in journals)
    finally:
        os.close(descriptor)


async def replay(workers: int, events: list[Event]) -> list[tuple[Any, ...]]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        # How long a leg takes is learnt from, too.
        for module in (leg_posts, legs, way):
            patch.setattr(module, "time", clock)
        return await replay_at(clock, workers, events)


async def replay_at(clock: Clock, workers: int, events: list[Event]) -> list[tuple[Any, ...]]:
    async with run_workers(workers, clock) as all_workers:
        return await Replay(all_workers, clock).run(events)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("seed", [1, 2])
async def test_several_workers_choose_as_one(workers: int, seed: int) -> None:
    events = record(seed)
    expected = await replay(1, events)
    assert await replay(workers, events) == expected
    # It was no replay of nothing: pods failed, were tried again, and left out.
    attempts = [attempt for one in expected for attempt in one[4]]
    assert len(expected) == REQUESTS
    assert any(failure for _, failure in attempts)
    assert len({name for name, _ in attempts}) == 4
