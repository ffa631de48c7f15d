"""What a simulated engine keeps of `/v1/responses`, as vLLM does, and how strictly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

PATH = "/v1/responses"
BODY = {"model": "simulated-model", "input": "hi", "max_output_tokens": 3}


@asynccontextmanager
async def run_engine(**config: Any) -> AsyncIterator[tuple[SimulatedEngine, httpx.AsyncClient]]:
    async with (
        SimulatedEngine(EngineConfig(**config)) as engine,
        httpx.AsyncClient(base_url=f"http://{engine.address}", timeout=20) as client,
    ):
        yield engine, client


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_kept_under_the_id_that_the_request_gives(*, stream: bool) -> None:
    async with run_engine() as (_, client):
        body = {**BODY, "request_id": "resp_1", "stream": stream}
        assert (await client.post(PATH, json=body)).status_code == 200
        kept = (await client.get(f"{PATH}/resp_1")).json()
        assert (kept["id"], kept["status"]) == ("resp_1", "incomplete")
        inputs = (await client.get(f"{PATH}/resp_1/input_items")).json()
        assert inputs["data"][0]["content"] == "hi"
        streamed = await client.get(f"{PATH}/resp_1", params={"stream": "true"})
        assert streamed.text.startswith("event: response.completed\n")
        follow = await client.post(PATH, json={**BODY, "previous_response_id": "resp_1"})
        assert follow.json()["id"].startswith("resp_")
        gone = await client.delete(f"{PATH}/resp_1")
        assert gone.json() == {"id": "resp_1", "object": "response", "deleted": True}
        assert (await client.get(f"{PATH}/resp_1")).status_code == 404


async def test_what_is_not_kept_is_not_found() -> None:
    async with run_engine() as (engine, client):
        await client.post(PATH, json={**BODY, "request_id": "resp_1", "store": False})
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            answer = await client.request(method, f"{PATH}/resp_1{path}")
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "Response with id 'resp_1' not found."
        follow = await client.post(PATH, json={**BODY, "previous_response_id": "resp_1"})
        assert (follow.status_code, follow.json()["error"]["param"]) == (404, "response_id")
        assert engine.violations == {}


async def test_no_answer_takes_the_place_of_another() -> None:
    async with run_engine() as (engine, client):
        body = {**BODY, "request_id": "resp_1"}
        statuses = [(await client.post(PATH, json=body)).status_code for _ in range(2)]
        assert statuses == [200, 400]
        assert engine.violations == {"response_id_reused": 1}


async def test_an_answer_is_made_in_the_background_until_it_is_cancelled() -> None:
    async with run_engine(itl_ms=20) as (_, client):
        body = {**BODY, "background": True, "max_output_tokens": 5}
        quick = await client.post(PATH, json={**body, "request_id": "resp_1"})
        assert quick.json()["status"] == "queued"

        async def status(name: str) -> str:
            return str((await client.get(f"{PATH}/{name}")).json()["status"])

        long = {**body, "request_id": "resp_2", "max_output_tokens": 5000}
        assert (await client.post(PATH, json=long)).json()["status"] == "queued"
        cancelled = await client.post(f"{PATH}/resp_2/cancel")
        assert cancelled.json()["status"] == "cancelled"
        assert await status("resp_2") == "cancelled"
        for _ in range(200):
            if await status("resp_1") == "incomplete":
                break
            await asyncio.sleep(0.05)
        assert await status("resp_1") == "incomplete"
        late = await client.post(f"{PATH}/resp_1/cancel")
        assert (late.status_code, late.json()["error"]["message"]) == (
            400,
            "Cannot cancel a synchronous response.",
        )


async def test_what_is_made_in_the_background_must_be_kept() -> None:
    async with run_engine() as (_, client):
        answer = await client.post(PATH, json={**BODY, "background": True, "store": False})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")


async def test_an_engine_that_has_started_again_keeps_nothing() -> None:
    async with run_engine() as (engine, client):
        await client.post(PATH, json={**BODY, "request_id": "resp_1"})
        await engine.stop()
        await engine.start()
        assert (await client.get(f"{PATH}/resp_1")).status_code == 404
