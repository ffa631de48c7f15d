"""Models that sleep are woken, not too often, and who asks for one is told when to come again."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from factories import make_pod

from pdrouter.cluster.pods import Inactive, Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.wakes import Wakes


@dataclass
class Runtime:
    """Takes the place of the client, and of all runtimes."""

    status: int = 200
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(
        self,
        address: str,
        path: str,
        headers: object,
        body: Pieces,
        total_s: float,
        *,
        plain: bool,
    ) -> EngineAnswer:
        assert plain  # It is no engine that answers there.
        self.asked.append((address, path, msgspec.json.decode(bytes(body))))
        await self.answers.wait()
        if not self.status:
            raise PostFailed(FailureKind.CONNECT, "it is away")
        return EngineAnswer(self.status, {}, b"")


@dataclass
class Bench:
    runtime: Runtime
    wakes: Wakes
    now: float = 0.0

    async def ask(self, *, times: int = 1, pod: Pod | None = None, model: str = "m") -> None:
        for _ in range(times):
            refused = self.wakes.turn_away(pod or make_sleeping(), model)
            assert (refused.status, refused.code) == (503, "model_inactive")
            assert ("retry-after", "10") in refused.headers
            await asyncio.sleep(0)

    async def answer(self) -> None:
        self.runtime.answers.set()
        while self.wakes.outstanding:
            await asyncio.sleep(0)
        self.runtime.answers.clear()


def make_sleeping(name: str = "w", inactive: Inactive = Inactive.SLEEPING, **changes: Any) -> Pod:
    pod = make_pod(name, Role.BOTH, ready=False, **changes)
    return replace(pod, uid=f"{pod.uid}#claim", name=f"{pod.name}#claim", inactive=inactive)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    runtime = Runtime()
    made = Bench(runtime, Wakes(runtime, lambda: made.now))  # type: ignore[arg-type]
    async with made.wakes:
        yield made


async def test_one_wish_at_a_time_and_none_soon_after(bench: Bench) -> None:
    await bench.ask(times=3)
    assert len(bench.runtime.asked) == 1
    await bench.answer()
    bench.now = 9.9
    await bench.ask(times=2)
    assert len(bench.runtime.asked) == 1
    bench.now = 10.1
    await bench.ask(times=2)
    assert len(bench.runtime.asked) == 2


async def test_another_pods_is_another_wish(bench: Bench) -> None:
    await bench.ask(times=2)
    await bench.ask(times=2, pod=make_sleeping("other", ip="fd00::7"), model="n")
    (first, path, said), (second, _, also) = bench.runtime.asked
    assert (first, second) == ("10.0.0.1:8080", "[fd00::7]:8080")
    assert path == "/v1/runtime/models/wake"
    assert (said["model_name"], also["model_name"]) == ("m", "n")
    assert said["operation_id"].startswith("gateway-wake/uid-w/m/")


@pytest.mark.parametrize("inactive", [Inactive.ACTIVATING, Inactive.FAILED])
async def test_only_those_that_sleep_are_woken(bench: Bench, inactive: Inactive) -> None:
    refused = bench.wakes.turn_away(make_sleeping(inactive=inactive), "m")
    await asyncio.sleep(0)
    assert refused.status == 503
    assert bool(refused.headers) is (inactive is Inactive.ACTIVATING)
    assert bench.runtime.asked == []
    assert bench.wakes.turn_away(make_sleeping(ip=""), "m").status == 503
    await asyncio.sleep(0)
    assert bench.runtime.asked == []


@pytest.mark.parametrize(
    ("status", "said"), [(404, "status 404"), (500, "status 500"), (0, "away")]
)
async def test_what_fails_is_said_and_asked_again_later(
    bench: Bench, caplog: pytest.LogCaptureFixture, status: int, said: str
) -> None:
    bench.runtime.status = status
    await bench.ask()
    await bench.answer()
    (line,) = [record.getMessage() for record in caplog.records]
    assert said in line
    assert "pod w " in line
    bench.now = 11.0
    await bench.ask()
    assert len(bench.runtime.asked) == 2
