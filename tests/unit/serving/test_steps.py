"""What a request's steps take, and which of that is the router's own time."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from exchanges import PARAMS, Bench, request_body, request_headers

from pdrouter.openai.request import InferenceRequest
from pdrouter.serving.engine_client import EngineAnswer
from pdrouter.serving.steps import StepTimes


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


def test_a_step_is_timed_however_it_is_left_and_what_is_done_again_is_added_up(
    clock: Clock,
) -> None:
    steps = StepTimes()
    with steps.time("parse"):
        clock.now += 0.25
    with suppress(ValueError), steps.time("parse"):
        clock.now += 0.5
        raise ValueError
    with steps.time("prefill", waits=True):
        clock.now += 2.0
    assert steps.describe() == {"parse": 750.0, "prefill": 2000.0}
    assert steps.waited_s == 2.0


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


async def test_nor_is_asking_for_a_models_own_route(clock: Clock) -> None:
    bench = Bench(routing_algorithm=None)
    bench.exchanges.dispatcher = replace(bench.exchanges.dispatcher, routes=SlowRoutes(clock))
    bench.exchange = bench.open()
    bench.notes.open = 1
    await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert record.steps.seconds["route-check"] == 40.0
    assert record.overhead_s == 0.0
