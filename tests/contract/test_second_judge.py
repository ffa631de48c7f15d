"""Another gateway before the simulated engines: what it sends they take, and it is what we send.

The gateway is SMG, the successor of SGLang's router. It speaks three of our wires, was written by
others from the engines themselves, and needs no accelerator. `pip install -e '.[judge]'` installs
it; without it this file is skipped. It leaves out what is null before the prefill leg, of which
only old engines take notice.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import aiohttp
import pytest
from factories import make_pod, make_request
from loopback import find_free_ports

from pdrouter.cluster.pods import Role
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Leg, Placement
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.legs import SimulatedLeg

pytestmark = pytest.mark.skipif(find_spec("smg") is None, reason="SMG is not installed")

PATIENCE_S = 30.0
CHAT = "/v1/chat/completions"
MODEL = "simulated-model"
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello, there"}],
    "max_tokens": 3,
}
NAMES: dict[KvConnector, str | None] = {
    "bootstrap": None,
    "mooncake": "MooncakeConnector",
    "nixl": "NixlConnector",
}
"""What SMG calls the connectors."""


class Gateway(NamedTuple):
    """SMG in front of a prefill and a decode engine."""

    url: str
    client: aiohttp.ClientSession
    prefill: SimulatedEngine
    decode: SimulatedEngine

    async def ask(self, **members: Any) -> int:
        async with self.client.post(self.url + CHAT, json=BODY | members) as response:
            await response.read()
            return response.status

    def sent(self, engine: SimulatedEngine) -> list[dict[str, Any]]:
        return [json.loads(each.body) for each in engine.requests if each.method == "POST"]

    async def add(self, engine: SimulatedEngine) -> None:
        config = engine.config
        spec = {
            "url": f"http://{engine.address}",
            "worker_type": config.role,
            "runtime_type": config.engine,
            "kv_connector": NAMES[config.kv_connector],
            "kv_engine_id": config.engine_id,
            "bootstrap_port": engine.bootstrap_port or None,
        }
        known = {name: value for name, value in spec.items() if value is not None}
        async with self.client.post(self.url + "/workers", json=known) as response:
            assert response.status == 202, await response.text()


@asynccontextmanager
async def running(wire: KvConnector) -> AsyncIterator[Gateway]:
    options: dict[str, Any] = {"kv_connector": wire, "prefill_tokens_per_s": 0, "itl_ms": 1}
    prefill = SimulatedEngine(EngineConfig(role="prefill", host="127.0.0.2", **options))
    decode = SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3", **options))
    port = find_free_ports(2)
    command = [sys.executable, "-m", "smg", "launch", "--pd-disaggregation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(port + 1)]
    command += ["--model-path", MODEL, "--disable-retries", "--log-level", "error"]
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with prefill, decode, aiohttp.ClientSession(timeout=timeout) as client:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        gateway = Gateway(f"http://127.0.0.1:{port}", client, prefill, decode)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await start(gateway)
            yield gateway
        finally:
            process.kill()
            await process.wait()


async def start(gateway: Gateway) -> None:
    """Wait until the gateway answers, knows both engines, and has sent a request over them."""
    for engine in (gateway.prefill, gateway.decode):
        while True:
            try:
                await gateway.add(engine)
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
            else:
                break
    while await gateway.ask() == 503:
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("wire", NAMES)
async def test_another_gateway_sends_what_engines_take_and_what_we_send(wire: KvConnector) -> None:
    async with running(wire) as gateway:
        theirs = gateway.sent(gateway.prefill)[0], gateway.sent(gateway.decode)[0]
        for members in ({}, {"stream": True}, {"n": 2}, {"max_tokens": 1}, {"temperature": 0.5}):
            assert await gateway.ask(**members) == 200, members
        engines = (gateway.prefill, gateway.decode)
        for name in ("contract_violations", "prompt_mismatches", "unexpected_role"):
            assert not sum(engine.count(f"simulation:{name}_total") for engine in engines), name
        legs = [[each.leg for each in engine.requests] for engine in engines]
        for found, leg in zip(legs, (SimulatedLeg.PREFILL, SimulatedLeg.DECODE), strict=True):
            assert found.count(leg) >= 4
        for mine, other in zip(split(wire, gateway), theirs, strict=False):
            assert reduce(mine) == reduce(other)


def split(wire: KvConnector, gateway: Gateway) -> list[dict[str, Any]]:
    """Return the legs of a request as our split for this wire writes them.

    The last leg of NIXL's has what the prefill engine has answered.
    """
    engine, config = gateway.prefill.config.engine, gateway.prefill.config
    port = gateway.prefill.bootstrap_port
    prefill = make_pod("p", ip=gateway.prefill.host, engine=engine, bootstrap_port=port or None)
    decode = make_pod("d", Role.DECODE, ip=gateway.decode.host, engine=engine)
    known = {"0": json.dumps(config.engine_id).encode()}
    placement = Placement({Leg.PREFILL: prefill, Leg.DECODE: decode}, "id-1", known)
    writer = Splits("mooncake" if wire == "mooncake" else "nixl").find(engine, None)
    request = make_request(CHAT, json.dumps(BODY).encode())
    side: dict[str, Any] = json.loads(bytes(writer.side_body(Leg.PREFILL, request, placement)))
    if wire == "nixl":
        # By it, an answer tells whether the engine is one that pushes.
        del side["kv_transfer_params"]["transfer_id"]
        return [side]
    return [side, json.loads(bytes(writer.last_body(request, placement, ())))]


def reduce(leg: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing, and of names that are given at random keep that they are there.

    SMG spells out defaults of requests; we ask for token ids where engines may give them.
    """
    kept = {name: value for name, value in leg.items() if value not in (None, False)}
    kept.pop("return_token_ids", None)
    params = kept.get("kv_transfer_params")
    if params is not None:
        kept["kv_transfer_params"] = {
            name: "random" if name == "transfer_id" else value
            for name, value in params.items()
            if value is not None
        }
    if "bootstrap_room" in kept:
        kept["bootstrap_room"] = "random"
    return kept
