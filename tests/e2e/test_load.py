"""Hundreds of requests at once, over pods that fail, come and go: each is answered rightly."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import pytest
from expectations import UNTIL_SETTLED_S, chat, connect, engines_of, read_metrics, run_checked_stack
from failures import CHAT, FOLLOW_ENDPOINTS, list_pods

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.prompts import prompt_digest

CLIENTS = 200
REQUESTS_PER_CLIENT = 4

PREFILL = tuple(
    EngineConfig(role="prefill", host=f"127.0.0.{number}", kv_lease_s=UNTIL_SETTLED_S, slots=1_000)
    for number in (2, 3, 4)
)
DECODE = (EngineConfig(role="decode", itl_ms=10, slots=1_000),) * 3
ENVIRONMENT = {"PDROUTER_PREFILL_RESPONSE_TIMEOUT": "2", **FOLLOW_ENDPOINTS}

PREFILL_FAULTS = (
    Fault(status=500),
    Fault(status=503, times=20),
    Fault(status=400, times=5),
    Fault(drop=True, times=20),
    Fault(hang=True, times=5),
    Fault(slow_s=0.3),
    Fault(null_params=True),
    Fault(empty_blocks=True, times=20),
    Fault(omit_params=("remote_engine_id",), times=20),
)
DECODE_FAULTS = (
    Fault(status=500, times=10),
    Fault(drop=True, times=5),
    Fault(slow_s=0.3, times=20),
    Fault(drop_after_tokens=3, times=5),
)
ERRORS = {400, 500, 502, 503, 504}
INVALID: Sequence[dict[str, Any]] = (
    {"messages": []},
    {"messages": "none"},
    {"model": ""},
    {"model": "unknown"},
)


@dataclass
class Crowd:
    """Clients, each with its own requests, and what became of them.

    Attributes:
        stack: what they talk to.
        random: decides what they do.
        outcomes: how often what happened.
    """

    stack: LocalStack
    random: Random
    outcomes: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Let all clients do their work."""
        async with (
            connect(self.stack, limits=httpx.Limits(max_connections=None)) as http1,
            connect(self.stack, http1=False, http2=True) as http2,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(CLIENTS):
                tasks.create_task(self._be_client(http1, http2, number))

    async def _be_client(
        self, http1: httpx.AsyncClient, http2: httpx.AsyncClient, number: int
    ) -> None:
        for turn in range(REQUESTS_PER_CLIENT):
            content = f"client {number}, turn {turn}: " + "word " * self.random.randint(1, 200)
            body = chat(
                messages=[{"role": "user", "content": content}],
                max_tokens=self.random.randint(1, 30),
            )
            send = self.random.choices(
                (self._stream, self._ask, self._leave, self._err), (50, 30, 10, 10)
            )[0]
            # httpx has no way to leave a single stream of an HTTP/2 connection.
            client = http2 if number % 4 == 0 and send != self._leave else http1
            self.outcomes[await send(client, body)] += 1

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await client.post(CHAT, json=body)
        if response.status_code != 200:
            return judge_error(response.status_code, response.content)
        content = response.json()["choices"][0]["message"]["content"]
        assert content.split(" ") == expected_words(body)
        return "answered"

    async def _stream(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        words: list[str] = []
        try:
            async with client.stream("POST", CHAT, json=body | {"stream": True}) as response:
                if response.status_code != 200:
                    return judge_error(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        assert words == expected_words(body)
                        return "streamed"
                    if line.startswith('data: {"error"'):
                        # The blocks could not be fetched: some connections are closed too early.
                        return "in the stream: " + judge_error(500, line[6:].encode())
                    words += read_words(line)
        except httpx.RemoteProtocolError:
            assert words == expected_words(body)[: len(words)]
            return "broken off"
        pytest.fail(f"a stream ended without [DONE] after {words}")

    async def _leave(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        try:
            async with asyncio.timeout(self.random.uniform(0, 0.3)):
                await self._stream(client, body | {"max_tokens": 1_000})
        except TimeoutError:
            return "left"
        return "ended before leaving"

    async def _err(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await client.post(CHAT, json=body | self.random.choice(INVALID))
        assert response.status_code in {400, 404}
        return judge_error(response.status_code, response.content)


def judge_error(status: int, content: bytes) -> str:
    """Check that an answer is an error as OpenAI's clients understand it."""
    assert status in ERRORS | {404}, status
    error = json.loads(content)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return f"{status} {error['code']}"


def expected_words(body: dict[str, Any]) -> list[str]:
    """Return what a simulated engine answers to a request."""
    digest = prompt_digest(CHAT, body)[:8]
    return [f"{digest}-{index}" for index in range(body["max_tokens"])]


def read_words(line: str) -> list[str]:
    """Return the words in a line of a stream."""
    if not line.startswith("data: "):
        assert not line
        return []
    chunk = json.loads(line.removeprefix("data: "))
    content = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
    return content.split()


async def disturb(stack: LocalStack, random: Random) -> None:
    """Change faults and pods, until cancelled."""
    while True:
        show_fault(random.choice(stack.prefill), PREFILL_FAULTS, random)
        show_fault(random.choice(stack.decode), DECODE_FAULTS, random)
        prefill = random.sample(stack.prefill, random.randint(1, len(stack.prefill)))
        decode = random.sample(stack.decode, random.randint(1, len(stack.decode)))
        await list_pods(stack, {"default": (prefill, decode)})
        random.choice(engines_of(stack)).close_idle_connections()
        await asyncio.sleep(random.uniform(0, 0.2))


def show_fault(engine: SimulatedEngine, faults: Sequence[Fault], random: Random) -> None:
    """Let an engine show one of some faults, or none."""
    if random.random() < 0.5:
        engine.faults.set(random.choice(faults))
    else:
        engine.faults.clear()


async def test_a_crowd_over_failing_pods_gets_right_answers_and_leaves_nothing_behind() -> None:
    options = StackOptions(prefill=PREFILL, decode=DECODE, environment=ENVIRONMENT)
    async with run_checked_stack(options) as stack:
        crowd = Crowd(stack, Random(1))
        disturbance = asyncio.create_task(disturb(stack, Random(2)))
        try:
            await crowd.run()
        finally:
            disturbance.cancel()
            await asyncio.wait([disturbance])
        assert disturbance.cancelled()
        for engine in engines_of(stack):
            engine.faults.clear()
        await list_pods(stack, {"default": (stack.prefill, stack.decode)})
        assert crowd.outcomes.total() == CLIENTS * REQUESTS_PER_CLIENT
        metrics = await read_metrics(stack)
    # What was to be withstood has happened.
    assert crowd.outcomes["streamed"] > CLIENTS
    assert crowd.outcomes["answered"] > CLIENTS / 2
    assert crowd.outcomes["left"] > 0
    assert metrics.total("pdrouter_prefill_failures_total") > 0
    assert metrics.total("pdrouter_handoff_failures_total") > 0
    assert metrics.total("pdrouter_endpoints_reloads_total", result="ok") > 1
