"""What a request's steps take, and which of that is the router's own time."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from exchanges import PARAMS, Bench, request_body, request_headers

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.steps import Step, StepTimes


@dataclass(slots=True)
class Clock:
    """Stands still but for those who wait."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_steps_may_be_described_while_another_begins() -> None:
    """A thread writes the debug pages, of requests that are open too."""

    class Growing(dict[str, float]):
        def items(self) -> Any:
            for pair in super().items():
                self[f"after {pair[0]}"] = 1.0
                yield pair

    assert StepTimes(Growing(parse=0.25)).describe() == {"parse": 250.0}


def test_a_step_is_timed_however_it_is_left_and_what_is_done_again_is_added_up(
    clock: Clock,
) -> None:
    steps = StepTimes()
    with Step(steps, "parse"):
        clock.now += 0.25
    with suppress(ValueError), Step(steps, "parse"):
        clock.now += 0.5
        raise ValueError
    with Step(steps, "prefill", waits=True):
        clock.now += 2.0
    assert steps.describe() == {"parse": 750.0, "prefill": 2000.0}
    assert steps.waited_s == 2.0


def test_a_step_may_be_ended_by_who_knows_when_it_began(clock: Clock) -> None:
    steps = StepTimes(intervals=[])
    clock.now += 0.25
    steps.end("parse", 100.0)
    clock.now += 2.0
    steps.end("prefill", 100.25, waits=True)
    assert steps.describe() == {"parse": 250.0, "prefill": 2000.0}
    assert steps.waited_s == 2.0
    assert steps.intervals == [("parse", 100.0, 100.25), ("prefill", 100.25, 102.25)]


@dataclass(slots=True)
class SlowTokenizers:
    """Stands for `PromptTokenizers`: a thread that is busy."""

    clock: Clock

    def can_count(self, request: InferenceRequest) -> bool:
        del request
        return True

    async def count(self, request: InferenceRequest) -> int | None:
        del request
        self.clock.now += 80.0
        return 7


@dataclass(slots=True)
class SlowRoutes:
    """Stands for a check of a model's own route, which asks the API server."""

    clock: Clock

    async def check(self, model: str) -> None:
        del model
        self.clock.now += 40.0


async def test_waiting_is_none_of_the_routers_own_time(clock: Clock) -> None:
    bench = Bench(tokenizers=SlowTokenizers(clock))  # type: ignore[arg-type]

    def answer() -> EngineAnswer:
        clock.now += 20.0
        return EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")

    bench.prefill.answer = answer
    await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert (record.steps.seconds["tokens"], record.prefill_s) == (80.0, 20.0)
    assert record.overhead_s == 0.0
    assert list(record.steps.seconds) == [
        "parse",
        "tokens",
        "describe",
        "route",
        "prefill",
        "hand-over",
    ]


async def test_a_post_that_is_sent_again_is_waited_for_twice(clock: Clock) -> None:
    bench = Bench()
    good = bench.prefill.answer

    def answer() -> EngineAnswer:
        clock.now += 20.0
        if len(bench.prefill.posts) == 1:
            raise PostFailed(FailureKind.TRANSPORT, "closed while it was idle", stale=True)
        return good()  # type: ignore[no-any-return]

    bench.prefill.answer = answer
    await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert len(bench.prefill.posts) == 2
    assert (record.prefill_s, record.overhead_s) == (40.0, 0.0)


async def test_to_write_the_body_of_a_side_leg_is_the_routers_own_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = NixlPull.side_body

    def write_slowly(*args: Any, **named: Any) -> Pieces:
        clock.now += 5.0
        return write(*args, **named)

    monkeypatch.setattr(NixlPull, "side_body", write_slowly)
    bench = Bench()
    await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert (record.prefill_s, record.overhead_s) == (0.0, 5.0)


async def test_nor_is_asking_for_a_models_own_route(clock: Clock) -> None:
    bench = Bench(routing_algorithm=None)
    shared = bench.exchanges.shared
    dispatcher = replace(shared.dispatcher, routes=SlowRoutes(clock))
    bench.exchanges.shared = replace(shared, dispatcher=dispatcher)
    bench.exchange = bench.open()
    bench.notes.open = 1
    await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert record.steps.seconds["route-check"] == 40.0
    assert record.overhead_s == 0.0
