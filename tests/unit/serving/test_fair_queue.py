"""Users take turns while pods have enough to do: through whole exchanges, with scripted engines."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from encode_stage import Stage, chat, picture
from exchanges import (
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
)
from virtual_time import run_in_virtual_time
from waiting import LONGER_S, wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.messages import ImmediateReply, Reply
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.samples import EngineSample
from pdrouter.openai.usage import Usage
from pdrouter.serving import fair_queue
from pdrouter.serving.fair_queue import FairQueues
from pdrouter.settings.choices import Aggregation, Fairness, UserSource

USERS = "abcdefgh"
LONG = 8000
"""Tokens of a prompt that takes a second on a pod of which nothing is known yet."""
PAIR = (PREFILL, DECODE)
WHOLE = (replace(DECODE, role=Role.BOTH),)


class KnownRates(PrefillRates):
    """Rates that are what they are."""

    def observe(self, uid: str, weight: tuple[int, int], seconds: float) -> None:
        del uid, weight, seconds


class Crowd:
    """Requests of several users to one router, and engines that answer when they are told.

    Attributes:
        bench: the router.
        begun: whose prompts engines have got, in order.
        replies: what each request was answered.
    """

    def __init__(self, pods: tuple[Pod, ...] = PAIR, **settings: Any) -> None:
        self.bench = Bench(
            pods, **{"fairness": Fairness.TOKENS, "users": UserSource.HEADER, **settings}
        )
        # Answers come at once, which must not teach that pods are fast.
        self.bench.ledger.rates = KnownRates()
        self.begun: list[str] = []
        self.replies: dict[str, Reply | None] = {}
        self._numbers = count()
        self._answers: list[asyncio.Future[EngineAnswer | FailureKind]] = []
        self._requests: dict[str, tuple[Exchange, asyncio.Task[None]]] = {}
        self._ended: list[asyncio.Task[None]] = []
        self.bench.prefill.answer = self._take_prompt

    @property
    def queues(self) -> FairQueues:
        turns = self.bench.exchanges.turns
        assert turns is not None
        return turns

    @property
    def waiting(self) -> int:
        return sum(requests for _, _, requests, _ in self.queues.count_waiting())

    def read(self, user: str, line: str = "") -> float:
        """A user's counter."""
        (queue,) = self.queues._queues.values()
        return queue.lines[line].read(user)

    async def ask(
        self,
        name: str,
        tokens: int = LONG,
        *,
        output: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request of the user whose name is the first letter, and let it come as far as it
        does by itself."""
        exchange = self.bench.open()
        # No two prompts have anything in common that could be cached.
        prompt = [USERS.index(name[0]), next(self._numbers), *[7] * (tokens - 2)]
        body = {"model": "m", "prompt": prompt, "max_tokens": output or 1}

        async def run() -> None:
            head = request_headers("/v1/completions", user=name[0], extra=headers)
            await exchange.handle(head)
            self.replies[name] = await exchange.handle(request_body(body))

        task = asyncio.create_task(run())
        self._requests[name] = exchange, task
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self, answer: EngineAnswer | FailureKind | None = None) -> None:
        """Let the engine be done with the oldest prompt that it has."""
        good = EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")
        self._answers.pop(0).set_result(answer or good)
        for _ in range(10):
            await asyncio.sleep(0)

    async def finish_all(self) -> None:
        while self._answers:
            await self.finish()

    def end(self, name: str) -> None:
        """Let a stream end, whatever has come of its request."""
        exchange, task = self._requests.pop(name)
        task.cancel()
        self._ended.append(task)
        exchange.close()

    def _take_prompt(self) -> Any:
        body = json.loads(bytes(self.bench.prefill.posts[-1].body))
        self.begun.append(USERS[body["prompt"][0]])
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        return self._wait_for(answer)

    async def _wait_for(
        self, answer: asyncio.Future[EngineAnswer | FailureKind]
    ) -> EngineAnswer | FailureKind:
        return await answer

    async def close(self) -> None:
        for name in list(self._requests):
            self.end(name)
        await asyncio.gather(*self._ended, return_exceptions=True)
        self.bench.exchange.close()
        assert self.waiting == 0
        assert self.bench.ledger.snapshot() == {}
        for queue in self.queues._queues.values():
            assert (queue.on_the_way, queue.prompt_tokens) == (0, 0)


@asynccontextmanager
async def crowd(pods: tuple[Pod, ...] = PAIR, **settings: Any) -> AsyncIterator[Crowd]:
    """A crowd of which nothing may be left in the end."""
    made = Crowd(pods, **settings)
    try:
        yield made
    finally:
        await made.close()


async def test_whoever_comes_after_a_flood_is_next() -> None:
    async with crowd() as users:
        for number in range(6):
            await users.ask(f"a{number}")
        assert users.begun == ["a"]
        assert users.waiting == 5
        await users.ask("b")
        await users.finish()
        assert users.begun == ["a", "b"]
        await users.finish_all()
        assert users.begun == [*"ab", *"aaaaa"]
        assert users.bench.notes.turns == [("m", "")] * 6


async def test_off_requests_go_as_they_come() -> None:
    bench = Bench(users=UserSource.HEADER)
    assert bench.exchanges.turns is None
    await bench.tell(request_headers(user="a"), request_body())
    record = bench.close()
    assert "queue" not in record.steps.seconds


async def test_a_request_that_finds_room_waits_for_nothing() -> None:
    async with crowd() as users:
        await users.ask("a", 100)
        await users.ask("b", 100)
        assert users.begun == ["a", "b"]
        assert users.bench.notes.turns == []
        assert users.bench.ledger.on_end is None


async def test_an_idle_pod_gets_a_request_however_long_it_is() -> None:
    second = replace(PREFILL, uid="p2", name="prefill-1", ip="10.0.0.9")
    async with crowd((PREFILL, second, DECODE)) as users:
        for number in range(3):
            await users.ask(f"a{number}", 20 * LONG)
        assert users.begun == ["a", "a"]
        assert users.waiting == 1
        await users.finish()
        assert users.begun == ["a", "a", "a"]


async def test_requests_go_on_as_soon_as_predicted_work_is_short_enough() -> None:
    """Without waiting for the answer: else the engine had nothing to do meanwhile."""
    async with crowd(fairness_backlog_s=0.9) as users:
        await users.ask("a")
        await users.ask("b")
        assert users.begun == ["a"]
        await wait_until(lambda: users.begun == ["a", "b"])


async def test_all_that_there_is_room_for_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each counted before the next one, and not one at each look."""
    monkeypatch.setattr(fair_queue, "_LOOK_S", LONGER_S)
    async with crowd() as users:
        await users.ask("a")
        for number in range(4):
            await users.ask(f"b{number}", 100)
        assert users.waiting == 4
        await users.finish()
        assert users.begun == [*"abbbb"]


async def test_the_wait_is_a_part_of_the_time_for_prefill() -> None:
    """Envoy waits no longer than for that, all together."""
    async with crowd(prefill_timeout_s=60.0) as users:
        times: list[float] = []
        post = users.bench.prefill.post

        async def note_time(*given: Any, **named: Any) -> EngineAnswer:
            times.append(given[4])
            return await post(*given, **named)

        users.bench.prefill.post = note_time  # type: ignore[method-assign]
        await users.ask("a")
        await users.ask("b")
        await asyncio.sleep(0.05)
        await users.finish()
        await wait_until(lambda: users.begun == ["a", "b"])
        record = users._requests["b"][0].record
        assert record.queued_s >= 0.05
        assert times[1] <= 60.0 - record.queued_s < times[0]


def test_a_turn_that_comes_in_the_moment_when_it_is_too_late_goes_to_the_next_one() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with crowd(fairness_wait_s=5.0) as users:
            await users.ask("a")
            await users.ask("b")
            # In one turn of the loop, the pod is free first, and the wait over then.
            loop.call_at(5.0 - 1e-10, give_room, users)
            await asyncio.sleep(5.5)
            assert error_of(users.replies["b"]) == (429, "overloaded")

    run_in_virtual_time(run())


def give_room(users: Crowd) -> None:
    """Let a pod come that has nothing to do, and the queue look at once."""
    second = Pod.create(
        uid="p2", name="prefill-1", ip="10.0.0.9", port=8000, model="m", role=Role.PREFILL
    )
    users.bench.cache.replace((PREFILL, second, DECODE))
    users.queues._look()


async def test_who_leaves_while_waiting_leaves_nothing() -> None:
    async with crowd() as users:
        await users.ask("a1")
        await users.ask("b1")
        await users.ask("b2")
        users.end("b1")
        await asyncio.sleep(0)
        assert users.waiting == 1
        assert users.read("b") == 0
        users.end("b2")
        await asyncio.sleep(0)
        assert users.waiting == 0
        await users.ask("c")
        await users.finish()
        assert users.begun == ["a", "c"]


async def test_who_leaves_in_the_moment_of_its_turn_lets_the_next_one_go() -> None:
    async with crowd() as users:
        await users.ask("a")
        await users.ask("b")
        await users.ask("c")
        users._answers.pop(0).set_result(EngineAnswer(500, {}, b"{}"))
        while users.waiting == 2:
            await asyncio.sleep(0)
        users.end("b")
        await wait_until(lambda: users.begun == ["a", "c"])
        assert users.read("b") == 0


async def test_a_request_of_which_no_engine_got_anything_is_charged_nothing() -> None:
    async with crowd() as users:
        await users.ask("a")
        await users.ask("b", output=50)
        before = users.read("b")
        users.bench.cache.replace(())
        await users.finish()
        assert error_of(users.replies["b"]) == (404, "model_not_found")
        users.end("b")
        assert users.read("b") == before


async def test_a_prompt_that_was_computed_for_nothing_is_charged_alone() -> None:
    async with crowd() as users:
        await users.ask("a", 1000, output=50)
        assert users.read("a") == 1000 + 2 * 50
        await users.finish(FailureKind.TRANSPORT)
        assert error_of(users.replies["a"])[0] == 502
        users.end("a")
        assert users.read("a") == 1000


async def test_a_client_that_leaves_while_its_prompt_is_computed_is_charged_for_that() -> None:
    """Or who floods and leaves would have every turn."""
    async with crowd() as users:
        await users.ask("a", 1000, output=50)
        users.end("a")
        assert users.read("a") == 1000


@pytest.mark.parametrize("ended", [True, False])
async def test_what_was_used_takes_the_place_of_what_was_expected(ended: bool) -> None:
    """Whether it is told with the answer, or after the request in the gateway's log."""
    async with crowd() as users:
        await users.ask("a", 1000, output=50)
        await users.finish()
        request_id = users._requests["a"][0].record.request_id
        if ended:
            users.end("a")
        assert users.read("a") == 1100
        users.bench.exchanges._charges.note_usage(request_id, Usage(900, None, 20))
        users.bench.exchanges._charges.note_usage(request_id, Usage(900, None, 20))
        assert users.read("a") == 940


async def test_weights_are_as_they_are_set() -> None:
    async with crowd(input_token_weight=3.0, output_token_weight=0.5) as users:
        await users.ask("a", 100, output=50)
        assert users.read("a") == 325


async def test_a_request_that_waits_too_long_is_told_when_to_come_again() -> None:
    async with crowd(fairness_wait_s=0.02) as users:
        await users.ask("a")
        await users.ask("b")
        await wait_until(lambda: "b" in users.replies)
        reply = users.replies["b"]
        assert error_of(reply) == (429, "overloaded")
        assert isinstance(reply, ImmediateReply)
        assert ("retry-after", "5") in reply.headers
        assert b"its turn has not come within 0.02 s" in reply.body
        assert users.bench.notes.refused_turns == [("m", "", "timeout")]
        assert users.waiting == 0
        assert users.read("b") == 0


async def test_a_request_that_is_due_before_its_turn_is_refused_then() -> None:
    async with crowd() as users:
        await users.ask("a")
        await users.ask("b", headers={"x-slo-ttft-ms": "30"})
        await wait_until(lambda: "b" in users.replies)
        assert error_of(users.replies["b"]) == (429, "deadline_missed")
        assert users.bench.notes.refused_turns == [("m", "", "deadline")]


async def test_a_flood_that_fills_the_queue_displaces_its_own_newest_request() -> None:
    async with crowd(fairness_queue=3) as users:
        for number in range(4):
            await users.ask(f"a{number}")
        assert users.waiting == 3
        await users.ask("b")
        assert error_of(users.replies["a3"]) == (429, "overloaded")
        assert "b" not in users.replies
        await users.ask("a4")
        assert error_of(users.replies["a4"]) == (429, "overloaded")
        assert users.bench.notes.refused_turns == [("m", "", "full")] * 2
        await users.finish_all()
        assert users.begun == ["a", "b", "a", "a"]


async def test_of_two_classes_that_is_first_which_is_due_first() -> None:
    classes = (("batch", 600.0), ("interactive", 0.5))
    async with crowd(classes=classes, refuse_late=False) as users:
        await users.ask("a0")
        await users.ask("a1", headers={"x-priority": "batch"})
        await users.ask("b", headers={"x-priority": "batch"})
        await users.ask("a2", headers={"x-priority": "Interactive"})
        await users.ask("c")
        assert users.waiting == 4
        await users.finish_all()
        assert users.begun == ["a", "a", "c", "a", "b"]
        assert sorted(set(users.bench.notes.turns)) == [
            ("m", ""),
            ("m", "batch"),
            ("m", "interactive"),
        ]


async def test_requests_without_a_user_are_one_user() -> None:
    async with crowd(users=UserSource.KEYS) as users:
        for name in ("a", "b", "c"):
            await users.ask(name)
        assert list(users.queues.count_waiting()) == [("m", "", 2, 1)]


async def test_whole_requests_wait_for_room_to_decode_and_not_for_prefill() -> None:
    async with crowd() as users:
        await users.ask("a")
        await users.ask("a1")
        # One pod alone serves a request of several answers; that one has room.
        exchange = users.bench.open()
        await exchange.handle(request_headers("/v1/embeddings", user="b"))
        await exchange.handle(request_body({"model": "m", "input": "hi"}))
        assert exchange.record.decision is not None
        assert exchange.record.decision.whole
        exchange.close()
        assert users.waiting == 1


def fill(users: Crowd, usage: float, waiting: float = 0.0) -> None:
    """Let a decode pod say how much it has to do."""
    samples = users.bench.state.samples
    assert isinstance(samples, dict)
    samples["d"] = EngineSample(
        0.0, 1, running=1.0, waiting=waiting, kv_usage=usage, kv_capacity_tokens=100_000
    )


@pytest.mark.parametrize(
    ("pods", "usage", "waiting", "open_"),
    [
        (PAIR, 0.5, 0, True),
        (PAIR, 0.96, 0, False),
        # What waits at a decode pod may wait for its blocks.
        (PAIR, 0.5, 3, True),
        (WHOLE, 0.5, 0, True),
        (WHOLE, 0.5, 1, False),
        (WHOLE, 0.96, 0, False),
    ],
)
async def test_a_decode_pod_without_room_lets_requests_wait(
    pods: tuple[Pod, ...], usage: float, waiting: float, open_: bool
) -> None:
    async with crowd(pods) as users:
        # Nobody waits for a pod that does nothing for this router, whatever it says.
        fill(users, 1.0)
        await users.ask("a", 10)
        await users.finish_all()
        assert isinstance(users.bench.ledger.load(Leg.DECODE, "d").requests, int)
        fill(users, usage, waiting)
        await users.ask("b", 10)
        assert (users.waiting == 0) == open_
        users.end("a")
        await wait_until(lambda: users.waiting == 0)


async def test_a_pod_gets_as_many_requests_at_a_time_as_is_set() -> None:
    async with crowd(WHOLE, fairness_requests=2) as users:
        for name in ("a1", "a2", "a3", "b"):
            await users.ask(name, 10)
        assert users.waiting == 2
        users.end("a1")
        await wait_until(lambda: users.waiting == 1)
        users.end("a2")
        await wait_until(lambda: users.waiting == 0)
        assert set(users.replies) == {"a1", "a2", "a3", "b"}


async def test_a_flood_whose_media_are_still_encoded_counts_as_work() -> None:
    """It is counted on no pod before its prompts are computed there."""
    stage = Stage(fairness=Fairness.TOKENS, users=UserSource.HEADER)
    bench, turns = stage.bench, stage.bench.exchanges.turns
    assert turns is not None
    bench.ledger.rates = KnownRates()
    encoded = asyncio.Event()

    async def encode(*_: Any) -> None:
        await encoded.wait()

    stage.encode = encode
    text = {"type": "text", "text": "word " * LONG}
    exchanges = [bench.open() for _ in range(3)]

    async def run(number: int) -> None:
        await exchanges[number].handle(request_headers(user="a"))
        await exchanges[number].handle(request_body(chat(text, picture(number))))

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(run(number))
        await wait_until(lambda: bool(stage.encoded))
        assert list(turns.count_waiting()) == [("m", "", 2, 1)]
        assert bench.ledger.load(Leg.PREFILL, "p").requests == 0
        encoded.set()
    assert len(stage.prefilled) == 3
    for exchange in exchanges:
        exchange.close()
    bench.close()


async def test_what_a_decode_pod_alone_serves_sooner_does_not_wait_for_prefill() -> None:
    able = replace(DECODE, computes_prompts=True)
    when_faster = {"aggregation": Aggregation.WHEN_FASTER, "handover_s": 0.05}
    async with crowd((PREFILL, able), **when_faster) as users:
        with users.bench.ledger.start(Leg.PREFILL, "p", 10 * LONG):
            await users.ask("a1", 100)
            decision = users._requests["a1"][0].record.decision
            assert decision is not None
            assert decision.reason == "faster"
            # It decodes now: another prompt would slow that down, nobody knows how much.
            await users.ask("a2", 100)
            assert users.waiting == 1
        await wait_until(lambda: users.begun == ["a"])
        await users.finish_all()


async def test_adapters_of_a_model_wait_together() -> None:
    adapter = replace(PREFILL, uid="p")
    async with crowd((adapter, DECODE)) as users:
        await users.ask("a")
        await users.ask("a1")
        assert len(users.queues._queues) == 1
