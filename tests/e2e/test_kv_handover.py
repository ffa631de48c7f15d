"""How the blocks get from one engine to the other: KV connectors, their names, their addresses."""

import json
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_settled,
    expect_whole,
    read_metrics,
    run_checked_stack,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack, write_endpoints
from pdrouter.tools.simulation.config import EngineConfig, KvConnector

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
PROMPT = "Why is the sky blue? " * 8


def announce(host: str, configs: Sequence[EngineConfig] = PREFILL) -> list[EngineConfig]:
    """Return engines that put this host in their handles."""
    return [replace(config, side_channel_host=host) for config in configs]


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "127.0.0.1", "::", "::1", "127.1.2.3"])
async def test_a_host_that_leads_nowhere_becomes_the_address_of_the_prefill_pod(host: str) -> None:
    options = StackOptions(prefill=announce(host), decode=DECODE)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        prefill, decode = expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        params = json.loads(decode.request.body)["kv_transfer_params"]
        assert params["remote_host"] == prefill.engine.host
        assert params["remote_port"] == prefill.engine.port


@pytest.mark.parametrize("host", ["192.0.2.1", "prefill.invalid"])
async def test_any_host_becomes_the_address_of_the_prefill_pod_if_the_operator_says_so(
    host: str,
) -> None:
    options = StackOptions(
        prefill=announce(host),
        decode=DECODE,
        environment={"PDROUTER_REWRITE_REMOTE_HOST": "always"},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))


async def test_a_useful_host_may_stay_as_it_is() -> None:
    options = StackOptions(
        prefill=PREFILL, decode=DECODE, environment={"PDROUTER_REWRITE_REMOTE_HOST": "never"}
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))


async def test_without_the_rewrite_a_decode_engine_looks_for_the_blocks_on_its_own_node() -> None:
    # Nobody fetches these blocks: they wait for the end of their lease. An address of the node, as
    # "localhost" is, but one at which no other test's engine may have the same port.
    prefill = [replace(config, kv_lease_s=0.1) for config in announce("127.1.2.3")]
    options = StackOptions(
        prefill=prefill, decode=DECODE, environment={"PDROUTER_REWRITE_REMOTE_HOST": "never"}
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        response = await client.post(CHAT, json=chat())
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "InternalServerError"
        # The router did its part.
        assert response.headers["x-pd-decision"] == "disaggregated"
        stream = await client.post(CHAT, json=chat(stream=True))
        assert stream.status_code == 200
        assert '"code":500' in stream.text
        assert sum(engine.count("vllm:nixl_num_failed_transfers_total") for engine in stack.decode)


def speak(connector: KvConnector) -> tuple[list[EngineConfig], list[EngineConfig]]:
    """Return prefill and decode engines that know one wire only."""
    return (
        [replace(config, kv_connector=connector) for config in PREFILL],
        [replace(config, kv_connector=connector) for config in DECODE],
    )


async def expect_wire(stack: LocalStack, client: httpx.AsyncClient, member: str) -> None:
    """Check that all kinds of split requests work, and in which member the handle travels."""
    for path, request in (
        (CHAT, chat()),
        (CHAT, chat(stream=True)),
        (COMPLETIONS, {"model": "demo", "prompt": PROMPT, "max_tokens": 4}),
    ):
        prefill, decode = expect_disaggregated(stack, await client.post(path, json=request))
        body = json.loads(decode.request.body)
        assert {"kv_transfer_params", "disagg_prefill_resp"} & body.keys() == {member}
        asks = "kv_transfer_params" in json.loads(prefill.request.body)
        assert asks == (member == "kv_transfer_params")
    expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")


@pytest.mark.parametrize(
    ("environment", "connector"),
    [
        ({}, "nixl"),
        ({"AIBRIX_KV_CONNECTOR_TYPE": "shfs"}, "nixl"),
        ({"AIBRIX_KV_CONNECTOR_TYPE": "nixl"}, "nixl"),
        ({"AIBRIX_KV_CONNECTOR_TYPE": "neuron-legacy"}, "neuron-legacy"),
        (
            {"AIBRIX_KV_CONNECTOR_TYPE": "nixl", "PDROUTER_NIXL_MEANS": "neuron-legacy"},
            "neuron-legacy",
        ),
        # The setting is about the name `nixl` alone.
        (
            {"AIBRIX_KV_CONNECTOR_TYPE": "shfs", "PDROUTER_NIXL_MEANS": "neuron-legacy"},
            "nixl",
        ),
    ],
)
async def test_settings_say_which_wire_the_engines_speak(
    environment: dict[str, str], connector: KvConnector
) -> None:
    prefill, decode = speak(connector)
    options = StackOptions(prefill=prefill, decode=decode, environment=environment)
    member = "kv_transfer_params" if connector == "nixl" else "disagg_prefill_resp"
    async with run_checked_stack(options) as stack, connect(stack) as client:
        await expect_wire(stack, client, member)


async def test_the_endpoints_file_says_which_wire_a_models_engines_speak() -> None:
    prefill, decode = speak("neuron-legacy")
    options = StackOptions(
        prefill=prefill, decode=decode, environment={"PDROUTER_ENDPOINTS_POLL": "0.02"}
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        write_endpoints(
            stack.endpoints_file,
            stack.model,
            stack.prefill,
            stack.decode,
            kv_connector="neuron-legacy",
        )

        async def read_again() -> None:
            metrics = await read_metrics(stack)
            assert metrics.total("pdrouter_endpoints_reloads_total", result="ok") == 1

        await eventually(read_again)
        await expect_wire(stack, client, "disagg_prefill_resp")


async def test_strict_engines_find_out_the_wrong_wire() -> None:
    prefill, decode = speak("neuron-legacy")
    async with run_stack(StackOptions(prefill=prefill, decode=decode)) as stack:
        async with connect(stack) as client:
            assert (await client.post(CHAT, json=chat())).status_code == 400
        violations = "simulation:contract_violations_total"
        assert sum(engine.count(violations) for engine in stack.prefill) == 1


async def test_engines_of_an_old_release_hand_over_what_is_longer_than_a_block() -> None:
    prefill = [replace(config, release="old") for config in PREFILL]
    decode = [replace(config, release="old") for config in DECODE]
    options = StackOptions(prefill=prefill, decode=decode)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        long = {"model": "demo", "prompt": PROMPT}
        _, sent = expect_disaggregated(stack, await client.post(COMPLETIONS, json=long))
        params = json.loads(sent.request.body)["kv_transfer_params"]
        assert "remote_request_id" not in params
        short = {"model": "demo", "prompt": "Hi"}
        response = await client.post(COMPLETIONS, json=short)
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "aggregated;reason=handoff-empty-blocks"


async def test_engines_that_write_blocks_are_served_one_leg_after_the_other() -> None:
    prefill, decode = speak("nixl-push")
    options = StackOptions(prefill=prefill, decode=decode)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        for members in ({}, {"stream": True}, {"seed": 1}):
            response = await client.post(CHAT, json=chat(**members))
            asked, sent = expect_disaggregated(stack, response)
            params = json.loads(sent.request.body)["kv_transfer_params"]
            asked_by = json.loads(asked.request.body)["kv_transfer_params"]["transfer_id"]
            assert (params["transfer_mode"], params["transfer_id"]) == ("push", asked_by)
            assert "remote_block_ids" not in params
        expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")


async def test_decode_gets_the_ids_of_a_chats_tokens_if_it_is_set() -> None:
    """The strict engines know which are the prompt's; the client's answer has none."""
    options = StackOptions(
        prefill=[replace(config, max_model_len=200_000) for config in PREFILL],
        decode=[replace(config, max_model_len=200_000) for config in DECODE],
        environment={"PDROUTER_PASS_TOKEN_IDS": "auto"},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        long = {"messages": [{"role": "user", "content": "Why is the sky blue? " * 20_000}]}
        parameters = {"type": "object", "properties": {"place": {"type": "string"}}}
        function = {"name": "find", "parameters": parameters}
        tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        for members in ({}, {"stream": True}, tools, long):
            response = await client.post(CHAT, json=chat(**members))
            asked, sent = expect_disaggregated(stack, response)
            assert json.loads(asked.request.body)["return_token_ids"] is True
            body = json.loads(sent.request.body)
            assert len(body["kv_transfer_params"].pop("prompt_token_ids")) >= 32
            assert "return_token_ids" not in body
            assert "prompt_token_ids" not in response.text
        for own in (False, True):
            response = await client.post(CHAT, json=chat(return_token_ids=own))
            asked, sent = expect_disaggregated(stack, response)
            assert json.loads(asked.request.body)["return_token_ids"] is own
            assert (
                "prompt_token_ids" in json.loads(sent.request.body)["kv_transfer_params"]
            ) is own
            assert ("prompt_token_ids" in response.json()) is own
        text = {"model": "demo", "prompt": PROMPT, "max_tokens": 4}
        asked, _ = expect_disaggregated(stack, await client.post(COMPLETIONS, json=text))
        assert "return_token_ids" not in json.loads(asked.request.body)


async def test_engines_that_know_nothing_of_token_ids_are_served_as_ever() -> None:
    options = StackOptions(
        prefill=[replace(config, release="old") for config in PREFILL],
        decode=[replace(config, release="old") for config in DECODE],
        environment={"PDROUTER_PASS_TOKEN_IDS": "auto"},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        request = chat(messages=[{"role": "user", "content": PROMPT}])
        _, sent = expect_disaggregated(stack, await client.post(CHAT, json=request))
        assert "prompt_token_ids" not in json.loads(sent.request.body)["kv_transfer_params"]


async def test_engines_without_a_connector_compute_everything_twice() -> None:
    prefill, decode = speak("none")
    options = StackOptions(prefill=prefill, decode=decode)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        response = await client.post(CHAT, json=chat())
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "aggregated;reason=handoff-null-params"
        await expect_settled(stack)
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_handoff_failures_total", reason="null-params") == 1
