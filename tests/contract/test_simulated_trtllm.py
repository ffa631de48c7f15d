"""Simulated TensorRT-LLM engines: context first, generation first, and the signed hand-off."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from simulated_pair import run_pair
from waiting import wait_until

from pdrouter.engines.registry import find_dialect
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NUMBER = 2**62 + 12_345
MESSAGES = [{"role": "user", "content": "Hello, context"}]
BODY: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 3}
KEY = "a key"


class Pair:
    """A context and a generation engine, and both legs of a request."""

    def __init__(
        self, context: SimulatedEngine, generation: SimulatedEngine, client: aiohttp.ClientSession
    ) -> None:
        self.context = context
        self.generation = generation
        self._client = client

    def context_leg(self, body: dict[str, Any] = BODY, **change: Any) -> asyncio.Task[Any]:
        params = {"request_type": "context_only", "disagg_request_id": NUMBER, **change}
        body = body | {"max_tokens": 1, "stream": False, "disaggregated_params": params}
        return asyncio.create_task(self.ask(self.context, body))

    async def generation_leg(
        self, answer: dict[str, Any], body: dict[str, Any] = BODY, **change: Any
    ) -> tuple[int, Any]:
        told = answer["choices"][0]["disaggregated_params"]
        params = {**told, "request_type": "generation_only", **change}
        ids = answer["prompt_token_ids"]
        tokens = {"prompt": ids} if "prompt" in body else {"prompt_token_ids": ids}
        return await self.ask(self.generation, body | tokens | {"disaggregated_params": params})

    def early_leg(self, **change: Any) -> asyncio.Task[Any]:
        params = {
            "request_type": "generation_only",
            "schedule_style": "generation_first",
            "ctx_request_id": NUMBER,
            "disagg_request_id": NUMBER,
            "ctx_info_endpoint": self.context.address,
            **change,
        }
        body = BODY | {"disaggregated_params": params}
        return asyncio.create_task(self.ask(self.generation, body))

    async def ask(self, engine: SimulatedEngine, body: dict[str, Any]) -> tuple[int, Any]:
        path = COMPLETIONS if "prompt" in body else CHAT
        params = body["disaggregated_params"]
        signed = {name: params.get(name) for name in ("ctx_info_endpoint", "encoded_opaque_state")}
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
        digest = hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()
        headers = {"x-trtllm-disagg-auth": params.pop("signature", f"sha256={digest}")}
        url = f"http://{engine.address}{path}"
        async with self._client.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, engine: SimulatedEngine, path: str) -> bytes:
        async with self._client.get(f"http://{engine.address}{path}") as response:
            return await response.read()

    @property
    def violations(self) -> float:
        return sum(
            engine.count("simulation:contract_violations_total")
            for engine in (self.context, self.generation)
        )


@asynccontextmanager
async def running(*faults: Fault, **settings: Any) -> AsyncIterator[Pair]:
    async with run_pair(*faults, **{"kv_connector": "trtllm", **settings}) as engines:
        yield Pair(*engines)


@pytest.mark.parametrize("body", [BODY, {"prompt": "Hello, context", "max_tokens": 3}])
async def test_generation_continues_what_context_has_computed(body: dict[str, Any]) -> None:
    async with running() as pair:
        status, context = await pair.context_leg(body)
        assert (status, context["choices"][0]["finish_reason"]) == (200, "length")
        status, answer = await pair.generation_leg(context, body)
        assert status == 200
        assert answer["usage"]["prompt_tokens"] == context["usage"]["prompt_tokens"]
        assert answer["usage"]["completion_tokens"] == 3
        assert pair.violations == 0
        assert pair.context.count("simulation:kv_handles_outstanding") == 0


async def test_generation_may_come_first() -> None:
    async with running() as pair:
        generation = pair.early_leg()
        await wait_until(lambda: pair.context.count("simulation:rooms_open") == 1)
        assert not generation.done()
        status, _ = await pair.context_leg(schedule_style="generation_first")
        assert (status, (await generation)[0]) == (200, 200)
        assert pair.violations == 0


async def test_a_context_leg_waits_for_generation_that_is_to_come_first() -> None:
    async with running() as pair:
        context = pair.context_leg(schedule_style="generation_first")
        await wait_until(lambda: pair.context.count("simulation:rooms_open") == 1)
        assert not context.done()
        assert (await pair.early_leg())[0] == 200
        assert (await context)[0] == 200


async def test_generation_is_not_told_that_context_has_failed() -> None:
    async with running(Fault(status=500)) as pair:
        generation = pair.early_leg()
        assert (await pair.context_leg(schedule_style="generation_first"))[0] == 500
        await wait_until(lambda: pair.context.count("simulation:rooms_open") == 1)
        assert not generation.done()
        generation.cancel()
        await wait_until(lambda: pair.context.count("simulation:rooms_open") == 0)


@pytest.mark.parametrize("number", [None, "7", 2**42 - 1, 2**63, 1.5e18])
async def test_an_id_that_the_engines_do_not_take_is_refused(number: object) -> None:
    async with running() as pair:
        assert (await pair.context_leg(disagg_request_id=number))[0] == 400
        assert pair.violations == 1


@pytest.mark.parametrize(
    "change",
    [
        {"ctx_request_id": NUMBER + 1},
        {"disagg_request_id": None},
        {"first_gen_tokens": None},
        {"encoded_opaque_state": "AAAA"},
        {"encoded_opaque_state": None},
        {"ctx_info_endpoint": None},
    ],
)
async def test_what_context_has_said_must_arrive_as_it_was(change: dict[str, Any]) -> None:
    async with running() as pair:
        _, context = await pair.context_leg()
        status, answer = await pair.generation_leg(context, **change)
        assert (status, answer["object"]) == (400, "error")
        assert pair.violations == 1


async def test_generation_needs_the_prompt_as_tokens() -> None:
    async with running() as pair:
        _, context = await pair.context_leg()
        for ids in (None, [], [1, 2, 3], context["prompt_token_ids"][::-1]):
            status, _ = await pair.generation_leg(context | {"prompt_token_ids": ids})
            assert status == 400
        assert pair.violations == 4


async def test_an_id_is_used_once() -> None:
    async with running() as pair:
        _, context = await pair.context_leg()
        assert (await pair.context_leg())[0] == 400
        assert (await pair.generation_leg(context))[0] == 200
        assert pair.violations == 1


@pytest.mark.parametrize(
    ("change", "status"), [({}, 200), ({"signature": "sha256=00"}, 401), ({"signature": ""}, 401)]
)
async def test_a_hand_off_is_signed_where_the_engine_has_a_key(
    change: dict[str, Any], status: int
) -> None:
    async with running(auth_key=KEY) as pair:
        _, context = await pair.context_leg()
        assert (await pair.generation_leg(context, **change))[0] == status


async def test_an_engine_serves_requests_whole() -> None:
    async with running() as pair:
        status, answer = await pair.ask(pair.generation, BODY | {"disaggregated_params": {}})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)


async def test_the_load_has_the_names_that_the_router_reads() -> None:
    async with running() as pair:
        dialect = find_dialect("trtllm")
        reading = dialect.read(await pair.get(pair.generation, dialect.path))
        assert (reading.running, reading.waiting, reading.kv_usage) == (0, 0, 0)
        assert not list(pair.generation.requests), "to be scraped is no request"
        info = json.loads(await pair.get(pair.context, "/server_info"))
        assert info["disaggregated_params"]["ctx_info_endpoint"] == [pair.context.address]
