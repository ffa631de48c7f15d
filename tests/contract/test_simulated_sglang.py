"""Simulated SGLang engines over real sockets: rooms, and what neither leg is told of the other."""

import asyncio
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

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello, rooms"}], "max_tokens": 3}


class Pair:
    """A prefill and a decode engine, and requests to them."""

    def __init__(
        self, prefill: SimulatedEngine, decode: SimulatedEngine, client: aiohttp.ClientSession
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self._client = client

    def body(self, room: object, **members: Any) -> dict[str, Any]:
        return {
            **BODY,
            "bootstrap_host": self.prefill.host,
            "bootstrap_port": self.prefill.bootstrap_port,
            "bootstrap_room": room,
            **members,
        }

    async def ask(
        self, engine: SimulatedEngine, body: dict[str, Any], path: str = CHAT
    ) -> tuple[int, Any]:
        async with self._client.post(f"http://{engine.address}{path}", json=body) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()

    async def read_metrics(self, engine: SimulatedEngine) -> str:
        async with self._client.get(f"http://{engine.address}/metrics") as response:
            return await response.text()

    def start(self, engine: SimulatedEngine, body: dict[str, Any]) -> asyncio.Task[Any]:
        return asyncio.create_task(self.ask(engine, body))

    @property
    def rooms(self) -> float:
        return self.prefill.count("simulation:rooms_open")


@asynccontextmanager
async def running(*faults: Fault, **settings: Any) -> AsyncIterator[Pair]:
    async with run_pair(*faults, **{"kv_connector": "bootstrap", **settings}) as engines:
        yield Pair(*engines)


@pytest.mark.parametrize("first", ["prefill", "decode"])
@pytest.mark.parametrize("members", [{}, {"stream": True}], ids=["plain", "streamed"])
async def test_the_legs_meet_whichever_comes_first(first: str, members: dict[str, Any]) -> None:
    async with running() as pair:
        legs = [pair.prefill, pair.decode] if first == "prefill" else [pair.decode, pair.prefill]
        earlier = pair.start(legs[0], pair.body(7, **members))
        await wait_until(lambda: pair.rooms == 1)
        assert (await pair.ask(legs[1], pair.body(7, **members)))[0] == 200
        assert (await earlier)[0] == 200
        assert pair.rooms == 0


async def test_prefill_computes_one_token_and_decode_all() -> None:
    async with running() as pair:
        prefill = pair.start(pair.prefill, pair.body(7))
        _, decoded = await pair.ask(pair.decode, pair.body(7))
        _, prefilled = await prefill
        assert prefilled["usage"]["completion_tokens"] == 1
        assert decoded["usage"]["completion_tokens"] == 3


async def test_each_choice_of_each_prompt_has_a_room() -> None:
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 2}
    async with running() as pair:
        meeting = {
            "bootstrap_host": [pair.prefill.host] * 4,
            "bootstrap_port": [pair.prefill.bootstrap_port] * 4,
            "bootstrap_room": [1, 2, 3, 4],
        }
        path = "/v1/completions"
        answers = await asyncio.gather(
            pair.ask(pair.prefill, body | meeting, path),
            pair.ask(pair.decode, body | meeting, path),
        )
        assert [status for status, _ in answers] == [200, 200]
        assert len(answers[1][1]["choices"]) == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bootstrap_room": None}, "bootstrap_value"),
        ({"bootstrap_room": 2**63}, "bootstrap_value"),
        ({"bootstrap_room": -1}, "bootstrap_value"),
        ({"bootstrap_room": "7"}, "bootstrap_value"),
        ({"bootstrap_room": [7, 8]}, "bootstrap_length"),
        ({"n": 2}, "bootstrap_length"),
        ({"bootstrap_host": ""}, "bootstrap_value"),
        ({"bootstrap_host": "fd00::7"}, "bootstrap_ipv6"),
        ({"bootstrap_port": "8998"}, "bootstrap_value"),
        (
            {
                "n": 2,
                "bootstrap_room": [7, 7],
                "bootstrap_host": ["127.0.0.2"] * 2,
                "bootstrap_port": [1] * 2,
            },
            "bootstrap_shared_room",
        ),
    ],
)
async def test_a_meeting_that_cannot_be_is_refused(change: dict[str, Any], reason: str) -> None:
    async with running() as pair:
        for engine in (pair.prefill, pair.decode):
            status, answer = await pair.ask(engine, pair.body(7, **change))
            assert (status, answer["object"]) == (400, "error")
            assert f'violations_total{{reason="{reason}"}} 1.0' in await pair.read_metrics(engine)
        assert pair.rooms == 0


@pytest.mark.parametrize("rank", [1, 4, -1, "0"])
async def test_a_rank_that_the_room_is_not_of_is_refused(rank: object) -> None:
    async with running(data_parallel_size=4) as pair:
        status, _ = await pair.ask(pair.prefill, pair.body(6, routed_dp_rank=rank))
        assert status == 400
        assert 'reason="bootstrap_rank"} 1.0' in await pair.read_metrics(pair.prefill)
        legs = (pair.body(6, routed_dp_rank=2), pair.body(6, disagg_prefill_dp_rank=2))
        answers = await asyncio.gather(*map(pair.ask, (pair.prefill, pair.decode), legs))
        assert [status for status, _ in answers] == [200, 200]


@pytest.mark.parametrize("name", ["bootstrap_host", "bootstrap_port", "bootstrap_room"])
async def test_a_request_without_a_meeting_is_refused(name: str) -> None:
    async with running() as pair:
        body = pair.body(7)
        del body[name]
        for engine in (pair.prefill, pair.decode):
            assert (await pair.ask(engine, body))[0] == 400
            assert engine.count("simulation:contract_violations_total") == 1


async def test_a_room_is_used_once() -> None:
    async with running() as pair:
        await asyncio.gather(
            pair.ask(pair.prefill, pair.body(7)), pair.ask(pair.decode, pair.body(7))
        )
        status, answer = await pair.ask(pair.prefill, pair.body(7))
        assert (status, answer["param"]) == (400, "bootstrap_room")


async def test_two_prompts_in_one_room_are_found() -> None:
    async with running() as pair:
        other = pair.body(7, messages=[{"role": "user", "content": "Another prompt"}])
        prefill = pair.start(pair.prefill, pair.body(7))
        assert (await pair.ask(pair.decode, other))[0] == 500
        await prefill
        assert pair.decode.count("simulation:contract_violations_total") == 1


async def test_decode_is_not_told_that_prefill_has_failed() -> None:
    async with running(Fault(status=500)) as pair:
        decode = pair.start(pair.decode, pair.body(7))
        assert (await pair.ask(pair.prefill, pair.body(7)))[0] == 500
        await wait_until(lambda: pair.rooms == 1)
        assert not decode.done()
        decode.cancel()
        await wait_until(lambda: pair.rooms == 0)


async def test_decode_hangs_where_prefill_is_cut_off() -> None:
    async with running(prefill_tokens_per_s=1) as pair:
        prefill = pair.start(pair.prefill, pair.body(7))
        decode = pair.start(pair.decode, pair.body(7, stream=True))
        await wait_until(lambda: pair.prefill.count("sglang:num_running_reqs") == 1)
        prefill.cancel()
        await wait_until(lambda: pair.prefill.count("simulation:aborted_requests_total") == 1)
        assert pair.rooms == 1
        decode.cancel()
        await wait_until(lambda: pair.rooms == 0)


async def test_either_leg_gives_up_in_the_end() -> None:
    async with running(peer_timeout_s=0.05) as pair:
        assert (await pair.ask(pair.prefill, pair.body(7)))[0] == 500
        assert (await pair.ask(pair.decode, pair.body(8)))[0] == 500
        assert pair.prefill.count("simulation:room_timeouts_total") == 1
        await wait_until(lambda: pair.rooms == 0)


async def test_a_stream_that_hangs_has_its_headers() -> None:
    async with running(Fault(hang_after_head=True)) as pair:
        prefill = pair.start(pair.prefill, pair.body(7, stream=True))
        await wait_until(lambda: bool(pair.prefill.requests))
        decode = pair.start(pair.decode, pair.body(7))
        await wait_until(lambda: pair.rooms == 1)
        assert not prefill.done()
        for leg in (prefill, decode):
            leg.cancel()


async def test_the_load_has_the_names_that_the_router_reads() -> None:
    async with running() as pair:
        page = await pair.read_metrics(pair.decode)
        reading = find_dialect("sglang").read(page.encode())
        assert (reading.running, reading.waiting, reading.kv_usage) == (0, 0, 0)
        assert reading.kv_capacity_tokens == 16 * 16_384


async def test_it_is_told_from_a_vllm_by_its_paths_and_its_card() -> None:
    async with running() as pair, aiohttp.ClientSession() as client:
        base = f"http://{pair.prefill.address}"
        async with client.get(f"{base}/server_info") as response:
            assert (await response.json())["disaggregation_mode"] == "prefill"
        async with client.get(f"{base}/version") as response:
            assert response.status == 404
        async with client.get(f"{base}/v1/models") as response:
            assert (await response.json())["data"][0]["owned_by"] == "sglang"
