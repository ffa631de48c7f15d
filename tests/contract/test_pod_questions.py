"""A pod that was left out is asked by the router itself: against simulated engines."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import pytest
from waiting import LONGER_S, wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engines.split import Leg
from pdrouter.load.failures import EjectionRules, FailureMemory
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.pod_questions import PodQuestions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

LIMITS = ClientLimits(connect_s=LONGER_S, response_s=LONGER_S, answer_bytes=64 * 1024)
CHAT = "/v1/chat/completions"


class Bench:
    """An engine, a memory in which it has failed, and who asks it."""

    def __init__(self, served: SimulatedEngine, client: EngineClient, **of_pod: Any) -> None:
        self.engine = served
        self.now = 1000.0
        rules = EjectionRules(after=3, backoff_s=10, asks=True)
        self.memory = FailureMemory(rules, lambda: self.now, Random(0))
        cache = PodCache()
        given = {
            "uid": "p",
            "name": "p",
            "ip": served.host,
            "port": served.port,
            "model": "m",
            "role": Role.DECODE,
        }
        cache.replace([Pod.create(**{**given, **of_pod})])
        self.questions = PodQuestions(client, cache, PodOutcomes(self.memory))

    def fail(self, path: str = CHAT, model: str = "", times: int = 1) -> None:
        for _ in range(times):
            self.memory.note_failure(
                "p", Leg.DECODE, "status-500", self.now, model=model, path=path
            )

    def was_asked(self, **results: int) -> bool:
        return self.memory.asked == results

    @property
    def ejected(self) -> bool:
        return "p" in self.memory.list_ejected()


@asynccontextmanager
async def asking(*faults: Fault, **of_pod: Any) -> AsyncIterator[Bench]:
    config = EngineConfig(role="decode", models=("m",), itl_ms=1)
    async with SimulatedEngine(config, *faults) as engine, EngineClient(LIMITS) as client:
        bench = Bench(engine, client, **of_pod)
        task = asyncio.create_task(bench.questions.run())
        try:
            yield bench
            assert engine.count("simulation:contract_violations_total") == 0
        finally:
            task.cancel()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, CHAT),
        ("/v1/completions", "/v1/completions"),
        ("/v1/messages", "/v1/messages"),
        ("/v1/responses", "/v1/completions"),
        ("/inference/v1/generate", "/v1/completions"),
    ],
)
async def test_a_doubt_is_asked_about_at_once_with_one_token_of_the_same_path(
    path: str, asked: str
) -> None:
    async with asking() as bench:
        bench.fail(path)
        await wait_until(lambda: bench.memory.calm)
        (request,) = bench.engine.requests
        members = json.loads(request.body)
        assert (request.path, members["model"], members["max_tokens"]) == (asked, "m", 1)
        assert request.outcome == "answered"
        assert bench.memory.asked == {"answered": 1}


async def test_questions_of_two_routers_have_ids_of_their_own() -> None:
    # An engine refuses an id that it is working on, and may mix up the answers.
    async with asking(Fault(slow_s=0.1)) as bench, EngineClient(LIMITS) as client:
        other = Bench(bench.engine, client)
        task = asyncio.create_task(other.questions.run())
        for each in (bench, other):
            each.fail()
        await wait_until(lambda: bench.memory.calm and other.memory.calm)
        task.cancel()
        ids = [request.headers["x-request-id"] for request in bench.engine.requests]
        assert len(set(ids)) == 2
        assert bench.engine.count("simulation:duplicate_request_ids_total") == 0


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=503), Fault(status=429), Fault(drop=True)],
    ids=["500", "503", "429", "drop"],
)
async def test_a_pod_that_fails_the_question_is_ejected(fault: Fault) -> None:
    async with asking(fault) as bench:
        bench.fail()
        await wait_until(lambda: bench.ejected)
        assert bench.memory.asked == {"failed": 1}


async def test_so_is_one_that_refuses_connections() -> None:
    async with asking() as bench:
        await bench.engine.stop()
        bench.fail()
        await wait_until(lambda: bench.ejected)
        assert bench.memory.asked == {"failed": 1}


@pytest.mark.parametrize("status", [400, 401, 404, 501])
async def test_an_engine_that_will_not_do_it_is_there(status: int) -> None:
    async with asking(Fault(status=status)) as bench:
        bench.fail()
        await wait_until(lambda: bench.memory.calm)
        assert bench.memory.asked == {"answered": 1}


async def test_an_ejected_pod_is_asked_when_its_time_is_over_and_again() -> None:
    async with asking(Fault(status=500)) as bench:
        bench.fail(times=3)
        for number in (1, 2):
            bench.now += 10
            await wait_until(partial(bench.was_asked, failed=number))
        assert bench.memory.look("m")[Leg.DECODE]
        bench.engine.faults.clear()
        bench.now += 10
        await wait_until(lambda: not bench.memory.look("m")[Leg.DECODE])
        assert bench.ejected


async def test_what_it_asks_for_is_waited() -> None:
    async with asking(Fault(status=429, retry_after="60")) as bench:
        bench.fail()
        await wait_until(lambda: bench.ejected)
        (said,) = bench.memory.describe("p")
        assert said["seconds_until_trial"] == 60


async def test_an_adapter_that_it_lacks_is_asked_for_by_name() -> None:
    async with asking() as bench:
        bench.fail(model="adapter", times=3)
        bench.now += 10
        await wait_until(lambda: bench.memory.asked == {"failed": 1})
        (request,) = bench.engine.requests
        assert json.loads(request.body)["model"] == "adapter"


@pytest.mark.parametrize(
    "of_pod",
    [{"ready": False}, {"role": Role.PREFILL}, {"role": Role.OTHER}, {"engine": "sglang"}],
)
async def test_who_gets_no_such_requests_is_not_asked(of_pod: dict[str, Any]) -> None:
    async with asking(Fault(status=500), **of_pod) as bench:
        bench.fail()
        await wait_until(lambda: bench.memory.calm)
        assert not bench.engine.requests
