"""A simulated prefill engine and a decode engine, alone: no router is between them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
from waiting import WAIT_S

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

EnginePair: TypeAlias = tuple[SimulatedEngine, SimulatedEngine, aiohttp.ClientSession]


@asynccontextmanager
async def run_pair(
    *faults: Fault, only_decode: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[EnginePair]:
    """Run two fast engines, each at an address of its own, and a client of both.

    Args:
        faults: those of the prefill engine.
        only_decode: settings in which the decode engine differs.
        settings: settings of both.
    """
    options = {"prefill_tokens_per_s": 0, "itl_ms": 1, **settings}
    prefill = SimulatedEngine(EngineConfig(role="prefill", host="127.0.0.2", **options), *faults)
    options |= only_decode or {}
    decode = SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3", **options))
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    async with prefill, decode, aiohttp.ClientSession(timeout=timeout) as client:
        yield prefill, decode, client
