"""Simulated engines whose legs may run at once: NIXL push (Neuron's write mode) and Mooncake."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from simulated_pair import run_pair
from waiting import wait_until

from pdrouter.tools.simulation.config import KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.transfers import TransferStore

GENEROUS_S = 20.0
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello, there"}], "max_tokens": 3}
WIRES: tuple[KvConnector, ...] = ("nixl-push", "mooncake")


class Pair:
    """A prefill and a decode engine, and both legs of a request."""

    def __init__(
        self, prefill: SimulatedEngine, decode: SimulatedEngine, client: aiohttp.ClientSession
    ) -> None:
        self.prefill = prefill
        self.decode = decode
        self._client = client

    def prefill_leg(self, transfer_id: object = "xfer-1") -> asyncio.Task[tuple[int, Any]]:
        params = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
        body = BODY | {"max_tokens": 1, "kv_transfer_params": params}
        return asyncio.create_task(self._ask(self.prefill, body))

    def decode_leg(self, transfer_id: object = "xfer-1", **change: Any) -> asyncio.Task[Any]:
        if self.prefill.config.kv_connector == "mooncake":
            where: dict[str, Any] = {
                "remote_bootstrap_addr": f"http://{self.prefill.host}:{self.prefill.bootstrap_port}"
            }
        else:
            where = {
                "remote_host": self.prefill.host,
                "remote_port": self.prefill.port,
                "tp_size": 1,
                "remote_request_id": "prefill-1",
            }
        params = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "remote_engine_id": self.prefill.config.engine_id,
            "transfer_id": transfer_id,
            **where,
            **change,
        }
        body = BODY | {"kv_transfer_params": params, "messages": change.pop("messages", None)}
        body["messages"] = body["messages"] or BODY["messages"]
        return asyncio.create_task(self._ask(self.decode, body))

    async def refused_leg(self, params: object) -> tuple[int, Any]:
        body = BODY | {"kv_transfer_params": params, "model": "another"}
        return await self._ask(self.decode, body)

    async def _ask(self, engine: SimulatedEngine, body: dict[str, Any]) -> tuple[int, Any]:
        async with self._client.post(f"http://{engine.address}{CHAT}", json=body) as response:
            return response.status, await response.json()

    async def query(self) -> Any:
        url = f"http://{self.prefill.host}:{self.prefill.bootstrap_port}/query"
        async with self._client.get(url) as response:
            return await response.json()

    @property
    def outstanding(self) -> float:
        return self.prefill.count("simulation:kv_handles_outstanding")

    @property
    def violations(self) -> float:
        return sum(
            engine.count("simulation:contract_violations_total")
            for engine in (self.prefill, self.decode)
        )


@asynccontextmanager
async def running(
    kv_connector: KvConnector, *faults: Fault, **settings: Any
) -> AsyncIterator[Pair]:
    async with run_pair(*faults, kv_connector=kv_connector, **settings) as engines:
        yield Pair(*engines)


@pytest.mark.parametrize("wire", WIRES)
async def test_either_leg_may_come_first(wire: KvConnector) -> None:
    async with running(wire) as pair:
        status, _ = await pair.prefill_leg("a")
        assert (status, pair.outstanding) == (200, 1)
        assert (await pair.decode_leg("a"))[0] == 200
        decode = pair.decode_leg("b")
        await wait_until(lambda: pair.outstanding == 1)
        assert not decode.done()
        assert (await pair.prefill_leg("b"))[0] == 200
        assert (await decode)[0] == 200
        assert (pair.outstanding, pair.violations) == (0, 0)


async def test_a_push_answer_says_whose_blocks_they_are_and_names_none() -> None:
    async with running("nixl-push") as pair:
        _, answer = await pair.prefill_leg()
        params = answer["kv_transfer_params"]
        assert params["transfer_mode"] == "push"
        assert params["remote_engine_id"] == pair.prefill.config.engine_id
        assert "remote_block_ids" not in params


async def test_mooncake_answers_nothing_and_is_asked_for_its_engine_id() -> None:
    async with running("mooncake") as pair:
        _, answer = await pair.prefill_leg()
        assert answer.get("kv_transfer_params") is None
        assert await pair.query() == {"0": {"engine_id": pair.prefill.config.engine_id}}


@pytest.mark.parametrize("wire", WIRES)
async def test_blocks_that_nobody_asks_for_are_given_up(wire: KvConnector) -> None:
    async with running(wire, kv_lease_s=0.05) as pair:
        await pair.prefill_leg()
        await wait_until(lambda: pair.outstanding == 0)
        assert pair.prefill.count("vllm:nixl_num_kv_expired_reqs_total") == 1
        late = pair.decode_leg()
        await wait_until(lambda: pair.outstanding == 1)
        assert not late.done()
        late.cancel()
        await wait_until(lambda: pair.outstanding == 0)


async def test_a_restart_loses_the_blocks_and_the_ids() -> None:
    async with running("nixl-push") as pair:
        await pair.prefill_leg()
        await pair.prefill.stop()
        assert pair.outstanding == 0
        await pair.prefill.start()
        assert (await pair.prefill_leg())[0] == 200
        assert (await pair.prefill_leg())[0] == 400


async def test_a_push_leg_that_decode_refuses_frees_the_blocks() -> None:
    async with running("nixl-push") as pair:
        _, answer = await pair.prefill_leg()
        handle = answer["kv_transfer_params"]
        assert (await pair.refused_leg(handle))[0] == 404
        assert (pair.outstanding, pair.violations) == (0, 0)
        # It cannot be told twice, but nothing breaks.
        assert (await pair.refused_leg(handle))[0] == 404
        assert pair.violations == 0


async def test_a_release_of_another_engines_blocks_is_refused() -> None:
    async with running("nixl-push") as pair:
        _, answer = await pair.prefill_leg()
        handle = answer["kv_transfer_params"] | {"remote_engine_id": "another"}
        assert (await pair.refused_leg(handle))[0] == 500
        assert (pair.outstanding, pair.violations) == (1, 1)


async def test_blocks_that_are_being_written_must_not_be_freed() -> None:
    store = TransferStore("engine", GENEROUS_S, lambda: None)
    store.begin("x")
    decode = asyncio.create_task(store.register("engine", "x", "digest"))
    await wait_until(lambda: store.outstanding(0.0) == 1)
    store.finish("x", "digest", tokens=1, now=0.0, request_id="r")
    assert store.free("engine", "r") == "in_use"
    assert await decode == "ok"
    assert store.free("engine", "r") == "gone"


@pytest.mark.parametrize("missing", ["remote_engine_id", "remote_request_id", "tp_size"])
async def test_a_half_filled_push_handle_breaks_a_decode_engine_that_refuses(missing: str) -> None:
    async with running("nixl-push") as pair:
        _, answer = await pair.prefill_leg()
        handle = answer["kv_transfer_params"]
        del handle[missing]
        assert (await pair.refused_leg(handle))[0] == 500
        assert (pair.outstanding, pair.violations) == (1, 1)


@pytest.mark.parametrize("wire", WIRES)
async def test_decode_is_not_told_that_prefill_has_failed(wire: KvConnector) -> None:
    async with running(wire, Fault(status=500)) as pair:
        decode = pair.decode_leg()
        assert (await pair.prefill_leg())[0] == 500
        await wait_until(lambda: pair.outstanding == 1)
        assert not decode.done()
        decode.cancel()
        await wait_until(lambda: pair.outstanding == 0)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_id_is_used_once(wire: KvConnector) -> None:
    async with running(wire) as pair:
        await pair.prefill_leg()
        status, answer = await pair.prefill_leg()
        assert (status, answer["error"]["param"]) == (400, "kv_transfer_params")
        first, second = pair.decode_leg("b"), pair.decode_leg("b")
        await wait_until(lambda: pair.violations == 2)
        for leg in (first, second):
            leg.cancel()


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("transfer_id", [None, "", 7])
async def test_a_leg_without_an_id_is_refused(wire: KvConnector, transfer_id: object) -> None:
    async with running(wire) as pair:
        assert (await pair.prefill_leg(transfer_id))[0] == 400
        assert (await pair.decode_leg(transfer_id))[0] == 400
        assert pair.violations == 2


@pytest.mark.parametrize(
    ("wire", "missing"),
    [
        *(("nixl-push", name) for name in ("remote_engine_id", "remote_host", "remote_port")),
        ("nixl-push", "tp_size"),
        ("nixl-push", "remote_request_id"),
        ("mooncake", "remote_engine_id"),
        ("mooncake", "remote_bootstrap_addr"),
    ],
)
async def test_what_the_scheduler_looks_up_must_be_there(wire: KvConnector, missing: str) -> None:
    async with running(wire) as pair:
        await pair.prefill_leg()
        assert (await pair.decode_leg(**{missing: None}))[0] == 500
        assert pair.violations == 1


@pytest.mark.parametrize("wire", WIRES)
async def test_blocks_of_another_engine_or_prompt_are_refused(wire: KvConnector) -> None:
    other = [{"role": "user", "content": "Another prompt"}]
    async with running(wire) as pair:
        assert (await pair.decode_leg(remote_engine_id="another"))[0] == 500
        await pair.prefill_leg()
        assert (await pair.decode_leg(messages=other))[0] == 500
        assert pair.violations == 2
