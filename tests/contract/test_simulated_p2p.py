"""Simulated engines with vLLM's P2P tier: alone (OffloadingConnector), and beside NIXL."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from simulated_pair import run_pair
from waiting import wait_until

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.prompts import prefix_blocks

CHAT = "/v1/chat/completions"
LONG = "It was a dark and stormy night. " * 20
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 3}
LATER: dict[str, Any] = BODY | {
    "messages": [*BODY["messages"], {"role": "user", "content": "And then?"}]
}
NULLS = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
NIXL_PREFILL = {"do_remote_decode": True, "do_remote_prefill": False, **NULLS}


class Tier:
    """Two engines that are peers: either may have any leg."""

    def __init__(
        self, prefill: SimulatedEngine, decode: SimulatedEngine, client: aiohttp.ClientSession
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self._client = client

    def prefill_leg(
        self, number: object = "a", *, rank: str | None = None, **params: Any
    ) -> asyncio.Task[tuple[int, Any]]:
        params = {"remote_decoder": {"kv_request_id": number}, **params}
        return self.ask(self.prefill, params, {"max_tokens": 1}, rank)

    def decode_leg(
        self, number: object = "a", body: Mapping[str, Any] = BODY, **member: Any
    ) -> asyncio.Task[tuple[int, Any]]:
        return self.ask(self.decode, {"remote_prefiller": self.point(number, **member)}, body)

    def point(
        self, number: object, engine: SimulatedEngine | None = None, **member: Any
    ) -> dict[str, Any]:
        engine = engine or self.prefill
        address = {"remote_host": engine.host, "remote_port": engine.bootstrap_port}
        return {"kv_request_id": number, **address, **member}

    def ask(
        self,
        engine: SimulatedEngine,
        params: Mapping[str, Any] | None,
        change: Mapping[str, Any] = BODY,
        rank: str | None = None,
    ) -> asyncio.Task[tuple[int, Any]]:
        headers = {} if rank is None else {"x-data-parallel-rank": rank}
        body = BODY | {"kv_transfer_params": params} | dict(change)

        async def send() -> tuple[int, Any]:
            url = f"http://{engine.address}{CHAT}"
            async with self._client.post(url, json=body, headers=headers) as response:
                return response.status, await response.json()

        return asyncio.create_task(send())

    def count(self, name: str) -> float:
        return sum(engine.count(name) for engine in (self.prefill, self.decode))

    @property
    def outstanding(self) -> float:
        return self.count("simulation:kv_handles_outstanding")

    @property
    def violations(self) -> float:
        return self.count("simulation:contract_violations_total")

    @property
    def recomputed(self) -> float:
        return self.count("simulation:recomputed_prompts_total")


@asynccontextmanager
async def running(*faults: Fault, **settings: Any) -> AsyncIterator[Tier]:
    async with run_pair(
        *faults, only_decode={"data_parallel_size": 1}, **{"kv_connector": "offloading", **settings}
    ) as engines:
        yield Tier(*engines)


def cached(answer: Any) -> int:
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_either_leg_may_come_first() -> None:
    async with running() as tier:
        status, answer = await tier.prefill_leg("a")
        assert (status, answer.get("kv_transfer_params"), tier.outstanding) == (200, None, 1)
        status, answer = await tier.decode_leg("a")
        assert (status, cached(answer)) == (200, answer["usage"]["prompt_tokens"] - 1)
        decode = tier.decode_leg("b")
        await wait_until(lambda: tier.outstanding == 1)
        assert not decode.done()
        assert (await tier.prefill_leg("b"))[0] == 200
        assert (await decode)[0] == 200
        assert (tier.outstanding, tier.violations, tier.recomputed) == (0, 0, 0)


async def test_blocks_that_nobody_fetches_are_given_up() -> None:
    async with running(kv_lease_s=0.05) as tier:
        await tier.prefill_leg()
        await wait_until(lambda: tier.outstanding == 0)
        assert cached((await tier.decode_leg())[1]) == 0
        assert (tier.violations, tier.recomputed) == (0, 1)


async def test_decode_is_not_told_that_prefill_has_failed() -> None:
    async with running(Fault(status=500)) as tier:
        decode = tier.decode_leg()
        assert (await tier.prefill_leg())[0] == 500
        await wait_until(lambda: tier.outstanding == 1)
        assert not decode.done()
        decode.cancel()
        await wait_until(lambda: tier.outstanding == 0)


@pytest.mark.parametrize("member", [{}, {"remote_port": 1}, {"remote_host": "127.0.0.99"}])
async def test_decode_computes_the_prompt_when_its_patience_is_over(member: dict[str, Any]) -> None:
    async with running(peer_timeout_s=0.05) as tier:
        status, answer = await tier.decode_leg(**member)
        assert (status, cached(answer)) == (200, 0)
        assert (tier.recomputed, tier.violations, tier.outstanding) == (1, 0, 0)


async def test_an_id_is_used_once() -> None:
    async with running() as tier:
        await tier.prefill_leg()
        status, answer = await tier.prefill_leg()
        assert (status, answer["error"]["param"]) == (400, "kv_transfer_params")
        first, second = tier.decode_leg("b"), tier.decode_leg("b")
        await wait_until(lambda: tier.violations == 2)
        for leg in (first, second):
            leg.cancel()


async def test_blocks_of_another_prompt_are_refused() -> None:
    async with running() as tier:
        await tier.prefill_leg()
        assert (await tier.decode_leg(body=LATER))[0] == 500
        assert tier.violations == 1


@pytest.mark.parametrize(
    "member",
    [
        {"kv_request_id": None},
        {"kv_request_id": 7},
        {"remote_host": None},
        {"remote_port": None},
        {"remote_port": "7777"},
    ],
)
async def test_a_half_filled_member_is_refused(member: dict[str, Any]) -> None:
    async with running() as tier:
        assert (await tier.decode_leg(**member))[0] == 400
        source = tier.point("s", tier.decode, **member)
        assert (await tier.prefill_leg(remote_kv_source=source))[0] == 400
        assert tier.violations == 2


async def test_an_empty_member_asks_for_a_leg_too() -> None:
    async with running() as tier:
        for name in ("remote_decoder", "remote_prefiller", "remote_kv_source"):
            assert (await tier.ask(tier.prefill, {name: {}}, {"max_tokens": 1}))[0] == 400
        assert tier.violations == 3


@pytest.mark.parametrize("number", [None, "", 7])
async def test_a_prefill_leg_without_an_id_is_refused(number: object) -> None:
    async with running() as tier:
        assert (await tier.prefill_leg(number))[0] == 400
        assert (tier.violations, tier.outstanding) == (1, 0)


async def test_members_that_exclude_each_other_are_refused() -> None:
    async with running() as tier:
        prefiller, source = tier.point("a"), tier.point("b")
        for params in (
            {"remote_decoder": {"kv_request_id": "a"}, "remote_prefiller": prefiller},
            {"remote_prefiller": prefiller, "remote_kv_source": source},
            NIXL_PREFILL,
            {"remote_decoder": {"kv_request_id": "a"}, "transfer_id": "a"},
        ):
            assert (await tier.ask(tier.decode, params))[0] == 400, params
        assert tier.violations == 4


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 2},
        {"max_tokens": 1, "min_tokens": 2},
        {"max_tokens": 1, "stream": True},
        {"max_tokens": 1, "n": 2},
    ],
)
async def test_a_prefill_leg_generates_one_token(change: dict[str, Any]) -> None:
    async with running() as tier:
        params = {"remote_decoder": {"kv_request_id": "a"}}
        assert (await tier.ask(tier.prefill, params, change))[0] == 400
        assert (tier.violations, tier.outstanding) == (1, 0)


async def test_several_choices_would_share_one_transfer() -> None:
    async with running() as tier:
        await tier.prefill_leg()
        assert (await tier.decode_leg(body={"n": 2}))[0] == 400
        assert tier.violations == 1


async def test_a_request_without_members_is_served_whole() -> None:
    async with running() as tier:
        assert (await tier.ask(tier.decode, None))[0] == 200
        assert (tier.violations, tier.recomputed) == (0, 0)


async def test_each_rank_has_its_port_and_its_blocks() -> None:
    async with running(data_parallel_size=2, peer_timeout_s=0.3) as tier:
        second: dict[str, Any] = {"remote_port": tier.prefill.bootstrap_port + 1}
        assert (await tier.prefill_leg("a", rank="1"))[0] == 200
        assert cached((await tier.decode_leg("a", **second))[1]) > 0
        await tier.prefill_leg("b", rank="1")
        assert cached((await tier.decode_leg("b"))[1]) == 0
        assert (tier.recomputed, tier.violations) == (1, 0)


@pytest.mark.parametrize("rank", [None, "2", "-1", "one"])
async def test_a_rank_is_named_where_there_are_several(rank: str | None) -> None:
    async with running(data_parallel_size=2) as tier:
        assert (await tier.prefill_leg(rank=rank))[0] == 400
        assert tier.violations == 1


async def test_a_source_gives_the_beginning_of_a_prompt_that_it_has() -> None:
    async with running() as tier:
        source = tier.point("s", tier.decode)
        _, first = await tier.prefill_leg("a", remote_kv_source=source)
        assert cached(first) == 0
        await tier.ask(tier.decode, None)
        later = {"remote_decoder": {"kv_request_id": "b"}}
        later["remote_kv_source"] = tier.point("t", tier.decode)
        status, answer = await tier.ask(tier.prefill, later, LATER | {"max_tokens": 1})
        assert status == 200
        assert 0 < cached(answer) < answer["usage"]["prompt_tokens"]
        assert tier.prefill.count("simulation:kv_source_lookups_total") == 2
        assert (tier.violations, tier.recomputed) == (0, 0)


async def test_a_source_goes_alone_with_a_request_that_has_no_other_leg() -> None:
    async with running() as tier:
        await tier.ask(tier.prefill, None)
        _, answer = await tier.ask(tier.decode, {"remote_kv_source": tier.point("s")})
        assert cached(answer) > 0


async def test_a_source_that_is_not_there_is_a_miss() -> None:
    async with running() as tier:
        gone = tier.point("s", tier.decode, remote_port=1)
        status, answer = await tier.prefill_leg(remote_kv_source=gone)
        assert (status, cached(answer), tier.violations) == (200, 0, 0)


async def test_a_restart_loses_what_others_may_ask_for() -> None:
    async with running() as tier:
        await tier.ask(tier.prefill, None)
        await tier.prefill.stop()
        await tier.prefill.start()
        _, answer = await tier.ask(tier.decode, {"remote_kv_source": tier.point("s")})
        assert cached(answer) == 0


async def test_a_source_is_another_engine_and_has_an_id_of_its_own() -> None:
    async with running() as tier:
        own = tier.point("s", tier.prefill)
        assert (await tier.prefill_leg("a", remote_kv_source=own))[0] == 400
        same = tier.point("b", tier.decode)
        assert (await tier.prefill_leg("b", remote_kv_source=same))[0] == 400
        assert tier.violations == 2


async def test_nixl_hands_over_what_the_tier_has_fetched() -> None:
    async with running(kv_connector="nixl", p2p_pull=True) as tier:
        await tier.ask(tier.decode, None)
        params = NIXL_PREFILL | {"remote_kv_source": tier.point("s", tier.decode)}
        status, answer = await tier.ask(tier.prefill, params, {"max_tokens": 1})
        assert (status, tier.outstanding) == (200, 1)
        assert cached(answer) > 0
        handle = answer["kv_transfer_params"]
        assert (await tier.ask(tier.decode, handle))[0] == 200
        assert (tier.outstanding, tier.violations) == (0, 0)


async def test_a_nixl_decode_leg_names_no_source() -> None:
    async with running(kv_connector="nixl", p2p_pull=True) as tier:
        _, answer = await tier.ask(tier.prefill, NIXL_PREFILL, {"max_tokens": 1})
        handle = answer["kv_transfer_params"] | {"remote_kv_source": tier.point("s")}
        assert (await tier.ask(tier.decode, handle))[0] == 400
        assert tier.violations == 1


def test_a_tier_beside_another_connector_is_unknown() -> None:
    with pytest.raises(ValueError, match="p2p_pull"):
        EngineConfig(kv_connector="mooncake", p2p_pull=True)


def test_a_longer_prompt_begins_with_the_blocks_of_a_shorter() -> None:
    short, long = prefix_blocks(BODY, 16), prefix_blocks(LATER, 16)
    assert len(short) == len(BODY["messages"][0]["content"]) // 64
    assert long[: len(short)] == short
    assert not set(prefix_blocks(BODY | {"cache_salt": "x"}, 16)) & set(short)
    assert prefix_blocks({"prompt": "too short"}, 16) == ()
