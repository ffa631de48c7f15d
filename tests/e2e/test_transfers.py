"""Engines whose legs meet by the id of a transfer: NIXL push, Neuron's write mode, and Mooncake."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
import pytest
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    expect_disaggregated,
    expect_whole,
    run_checked_stack,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig, KvConnector

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
WIRES: tuple[KvConnector, ...] = ("nixl-push", "mooncake")


def speak(
    wire: KvConnector, prefill: Sequence[EngineConfig] = PREFILL
) -> tuple[list[EngineConfig], list[EngineConfig]]:
    """Return prefill and decode engines that know one wire only."""
    return (
        [replace(config, kv_connector=wire, bootstrap_port=8998) for config in prefill],
        [replace(config, kv_connector=wire) for config in DECODE],
    )


class Wire(NamedTuple):
    """An installation, and a client of it."""

    stack: LocalStack
    client: httpx.AsyncClient


@asynccontextmanager
async def run_wire(
    wire: KvConnector, name: str = "", prefill: Sequence[EngineConfig] = PREFILL, **environment: str
) -> AsyncIterator[Wire]:
    engines = speak(wire, prefill)
    options = StackOptions(
        prefill=engines[0],
        decode=engines[1],
        environment={"AIBRIX_KV_CONNECTOR_TYPE": name or wire, **environment},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        yield Wire(stack, client)


def read_params(request: Any) -> dict[str, Any]:
    params: dict[str, Any] = json.loads(request.body)["kv_transfer_params"]
    return params


@pytest.mark.parametrize("wire", WIRES)
async def test_all_kinds_of_requests_are_split(wire: KvConnector) -> None:
    async with run_wire(wire, prefill=PREFILL[:1]) as (stack, client):
        for path, request in (
            (CHAT, chat()),
            (CHAT, chat()),
            (CHAT, chat(stream=True)),
            (COMPLETIONS, {"model": "demo", "prompt": "Why?", "max_tokens": 4}),
            (CHAT, chat(padding="x" * 1_000_000)),
        ):
            response = await client.post(path, json=request)
            asked, sent = expect_disaggregated(stack, response)
            asked_params, params = read_params(asked.request), read_params(sent.request)
            assert asked_params["transfer_id"] == params["transfer_id"]
            if request.get("stream"):
                assert response.text.endswith("data: [DONE]\n\n")
        expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")
