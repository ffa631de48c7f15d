"""Simulated engines over real sockets: both legs, refusals, leases, faults, disconnects."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from waiting import wait_until

from pdrouter.tools.simulation.api_requests import Api
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.prompts import prompt_digest

GENEROUS_S = 20.0
MODEL = "simulated-model"
EMPTY_HANDLE: dict[str, Any] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PROMPT = "a prompt that is a little longer than one block of sixteen tokens, and that is enough"
MESSAGES = [{"role": "user", "content": PROMPT}]
BODIES: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"model": MODEL, "messages": MESSAGES, "max_tokens": 3},
    Api.COMPLETIONS: {"model": MODEL, "prompt": PROMPT, "max_tokens": 3},
    Api.MESSAGES: {"model": MODEL, "messages": MESSAGES, "max_tokens": 3},
    Api.RESPONSES: {"model": MODEL, "input": PROMPT, "max_output_tokens": 3},
    Api.GENERATE: {"token_ids": list(range(20)), "sampling_params": {"max_tokens": 3}},
}
ONE_TOKEN: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"max_tokens": 1},
    Api.COMPLETIONS: {"max_tokens": 1},
    Api.MESSAGES: {"max_tokens": 1},
    Api.RESPONSES: {"max_output_tokens": 1},
    Api.GENERATE: {"sampling_params": {"max_tokens": 1}},
}


def prefill_body(api: Api = Api.CHAT) -> dict[str, Any]:
    return BODIES[api] | ONE_TOKEN[api] | {"stream": False, "kv_transfer_params": EMPTY_HANDLE}


class Http:
    """Posts JSON and reads whole answers."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def send(
        self,
        engine: SimulatedEngine,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        url = f"http://{engine.address}{path}"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.text()

    async def ask(
        self, engine: SimulatedEngine, path: str, body: object = None, **options: Any
    ) -> tuple[int, Any]:
        status, text = await self.send(engine, path, body, **options)
        return status, json.loads(text)

    async def handle(self, engine: SimulatedEngine, api: Api = Api.CHAT) -> dict[str, Any]:
        status, answer = await self.ask(engine, api, prefill_body(api))
        assert status == 200, answer
        params: dict[str, Any] = answer["kv_transfer_params"]
        return params


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    timeout = aiohttp.ClientTimeout(total=GENEROUS_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield Http(session)


@pytest.fixture
async def prefill() -> AsyncIterator[SimulatedEngine]:
    config = EngineConfig(role="prefill", host="127.0.0.2", prefill_tokens_per_s=0)
    async with SimulatedEngine(config) as engine:
        yield engine


@pytest.fixture
async def decode() -> AsyncIterator[SimulatedEngine]:
    config = EngineConfig(role="decode", host="127.0.0.3", prefill_tokens_per_s=0, itl_ms=1)
    async with SimulatedEngine(config) as engine:
        yield engine


@contextlib.asynccontextmanager
async def running(*faults: Fault, **settings: Any) -> AsyncIterator[SimulatedEngine]:
    config = EngineConfig(**{"prefill_tokens_per_s": 0, "itl_ms": 1} | settings)
    async with SimulatedEngine(config, *faults) as engine:
        yield engine


def events(stream: str) -> list[Any]:
    """Give the data of all events, `[DONE]` as it is."""
    lines = [line.removeprefix("data: ") for line in stream.split("\n") if line.startswith("data")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def read_until_cut(content: aiohttp.StreamReader, *, into: bytearray) -> None:
    async for line in content:
        into.extend(line)


def assert_contract_kept(*engines: SimulatedEngine) -> None:
    for engine in engines:
        for name in ("contract_violations", "prompt_mismatches", "unexpected_role"):
            assert engine.count(f"simulation:{name}_total") == 0


# --- both legs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("api", BODIES)
async def test_two_legs_give_the_answer_of_one_engine(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, api: Api, *, stream: bool
) -> None:
    handle = await http.handle(prefill, api)
    assert prefill.count("simulation:kv_handles_outstanding") == 1
    body = BODIES[api] | {"stream": stream, "kv_transfer_params": handle}
    status, text = await http.send(decode, api, body)
    assert status == 200
    start = prompt_digest(api, body)[:8]
    if api is not Api.GENERATE:
        assert f"{start}-0" in text
        assert f"{start}-2" in text
        assert f"{start}-3" not in text
    assert '"error":{' not in text
    assert prefill.count("simulation:kv_handles_outstanding") == 0
    assert_contract_kept(prefill, decode)
    assert [record.leg for record in (*prefill.requests, *decode.requests)] == [
        "prefill",
        "decode",
    ]


async def test_a_handle_has_what_vllm_hands_out_and_an_integer_no_float_can_hold(
    http: Http, prefill: SimulatedEngine
) -> None:
    handle = await http.handle(prefill)
    assert handle["do_remote_prefill"] is True
    assert handle["remote_engine_id"] == prefill.config.engine_id
    assert (handle["remote_host"], handle["remote_port"]) == (prefill.host, prefill.port)
    assert len(handle["remote_block_ids"][0]) == 2
    assert handle["remote_request_id"]
    cookie = handle["remote_xfer_cookie"]
    assert int(float(cookie)) != cookie


async def test_cached_tokens_are_those_that_came_from_the_prefill_engine(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(prefill)}
    _, answer = await http.ask(decode, Api.CHAT, body)
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    _, alone = await http.ask(decode, Api.CHAT, BODIES[Api.CHAT])
    assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert alone["choices"] == answer["choices"]
    assert alone["kv_transfer_params"] is None


async def test_an_engine_for_both_legs_can_fetch_from_itself(http: Http) -> None:
    async with running(role="both") as engine:
        body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(engine)}
        assert (await http.send(engine, Api.CHAT, body))[0] == 200
        assert_contract_kept(engine)


async def test_legs_of_the_legacy_neuron_connector(http: Http) -> None:
    async with (
        running(role="prefill", kv_connector="neuron-legacy", host="127.0.0.2") as prefill,
        running(role="decode", kv_connector="neuron-legacy") as decode,
    ):
        body = BODIES[Api.CHAT]
        _, handle = await http.ask(prefill, Api.CHAT, body | {"max_tokens": 1})
        assert handle["kv_transfer_params"] is None
        legs = body | {"disagg_prefill_resp": handle}
        altered = body | {"disagg_prefill_resp": handle | {"created": 1}}
        assert (await http.send(decode, Api.CHAT, altered))[0] == 500
        status, answer = await http.ask(decode, Api.CHAT, legs)
        assert status == 200
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert (await http.send(decode, Api.CHAT, legs))[0] == 500
        status, refused = await http.ask(prefill, Api.CHAT, body)
        assert (status, refused["error"]["param"]) == (400, "max_tokens")


async def test_an_engine_without_connector_answers_a_prefill_leg_with_null_params(
    http: Http,
) -> None:
    async with running(kv_connector="none") as engine:
        status, answer = await http.ask(engine, Api.CHAT, prefill_body())
        assert (status, answer["kv_transfer_params"]) == (200, None)


async def test_old_engines_hand_out_no_request_id_and_no_partial_block(http: Http) -> None:
    async with (
        running(role="prefill", release="old", host="127.0.0.2") as prefill,
        running(role="decode", release="old") as decode,
    ):
        handle = await http.handle(prefill)
        assert "remote_request_id" not in handle
        body = BODIES[Api.CHAT] | {"kv_transfer_params": handle}
        assert (await http.send(decode, Api.CHAT, body))[0] == 200
        short = prefill_body() | {"messages": [{"role": "user", "content": "short"}]}
        _, answer = await http.ask(prefill, Api.CHAT, short)
        assert answer["kv_transfer_params"]["remote_block_ids"] == []
        assert prefill.count("simulation:kv_handles_outstanding") == 0


# --- what breaks the contract --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": True}, "stream"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"n": 2}, "n"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params"),
    ],
)
async def test_a_prefill_leg_that_breaks_the_contract_gets_a_400(
    http: Http, prefill: SimulatedEngine, change: dict[str, Any], param: str
) -> None:
    status, answer = await http.ask(prefill, Api.CHAT, prefill_body() | change)
    assert status == 400
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, 400)
    assert prefill.count("simulation:contract_violations_total") == 1
    assert prefill.count("simulation:kv_handles_outstanding") == 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "change",
    [{"remote_block_ids": []}, {"remote_request_id": None}, {"remote_host": None}],
    ids=["no blocks", "no request id", "no host"],
)
async def test_a_decode_leg_that_would_kill_an_engine_gets_a_500_and_is_counted(
    http: Http,
    prefill: SimulatedEngine,
    decode: SimulatedEngine,
    change: dict[str, Any],
    *,
    stream: bool,
) -> None:
    handle = await http.handle(prefill) | change
    body = BODIES[Api.CHAT] | {"stream": stream, "kv_transfer_params": handle}
    status, answer = await http.ask(decode, Api.CHAT, body)
    assert status == 500
    assert "EngineCore contract violated" in answer["error"]["message"]
    assert decode.count("simulation:contract_violations_total") == 1


async def failed_decode(
    http: Http, decode: SimulatedEngine, handle: dict[str, Any], **change: Any
) -> None:
    body = BODIES[Api.CHAT] | {"kv_transfer_params": handle} | change
    failures = decode.count("vllm:nixl_num_failed_transfers_total")
    status, answer = await http.ask(decode, Api.CHAT, body)
    assert status == 500
    assert answer == {
        "error": {
            "message": "Internal server error",
            "type": "InternalServerError",
            "param": None,
            "code": 500,
        }
    }
    assert decode.count("vllm:nixl_num_failed_transfers_total") == failures + 1


async def test_a_handle_is_good_for_one_decode(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    handle = await http.handle(prefill)
    body = BODIES[Api.CHAT] | {"kv_transfer_params": handle}
    assert (await http.send(decode, Api.CHAT, body))[0] == 200
    await failed_decode(http, decode, handle)
    assert prefill.count("simulation:contract_violations_total") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"remote_xfer_cookie": 2**53},
        {"tp_size": 2},
        {"remote_engine_id": "another"},
        {"remote_block_ids": [[9_999]]},
    ],
)
async def test_a_handle_that_was_changed_is_refused(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, change: dict[str, Any]
) -> None:
    await failed_decode(http, decode, await http.handle(prefill) | change)
    assert prefill.count("simulation:contract_violations_total") == 1


REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"model": "another"}, 404),
    ({"min_tokens": 4}, 400),
    ({"max_tokens": 100_000}, 400),
]
"""What vLLM refuses with its request model behind it, and its scheduler before it."""


@pytest.mark.parametrize(("change", "status"), REFUSED)
async def test_a_decode_leg_that_is_refused_frees_the_blocks(
    http: Http,
    prefill: SimulatedEngine,
    decode: SimulatedEngine,
    change: dict[str, Any],
    status: int,
) -> None:
    handle = await http.handle(prefill)
    body = BODIES[Api.CHAT] | {"kv_transfer_params": handle} | change
    assert (await http.send(decode, Api.CHAT, body))[0] == status
    assert prefill.count("simulation:kv_handles_outstanding") == 0
    assert prefill.count("simulation:kv_releases_total") == 1
    assert_contract_kept(prefill, decode)
    # Whoever fetches them now gets the blocks of others.
    await failed_decode(http, decode, handle)
    assert prefill.count("simulation:contract_violations_total") == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"tools": []}, id="by the request model"),
        pytest.param({"n": [], "max_tokens": "x"}, id="as no request"),
    ],
)
async def test_a_decode_leg_that_is_refused_too_early_frees_nothing(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, change: dict[str, Any]
) -> None:
    body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(prefill)} | change
    assert (await http.send(decode, Api.CHAT, body))[0] == 400
    assert prefill.count("simulation:kv_handles_outstanding") == 1


async def test_old_engines_free_nothing_when_they_refuse(http: Http) -> None:
    async with (
        running(role="prefill", host="127.0.0.2", release="old") as prefill,
        running(role="decode", host="127.0.0.3", release="old") as decode,
    ):
        body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(prefill)}
        assert (await http.send(decode, Api.CHAT, body | {"model": "another"}))[0] == 404
        assert prefill.count("simulation:kv_handles_outstanding") == 1


@pytest.mark.parametrize("name", ["remote_engine_id", "remote_request_id", "remote_port"])
async def test_a_half_filled_handle_breaks_a_decode_engine_that_refuses(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, name: str
) -> None:
    handle = await http.handle(prefill)
    del handle[name]
    body = BODIES[Api.CHAT] | {"kv_transfer_params": handle, "model": "another"}
    assert (await http.send(decode, Api.CHAT, body))[0] == 500
    assert decode.count("simulation:contract_violations_total") == 1


async def test_a_prefill_engine_that_has_gone_cannot_be_told_of_a_release(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(prefill)}
    await prefill.stop()
    assert (await http.send(decode, Api.CHAT, body | {"model": "another"}))[0] == 404
    assert decode.count("vllm:nixl_num_failed_notifications_total") == 1


async def test_a_handle_of_another_engine_is_refused(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    async with running(role="prefill", host="127.0.0.2") as other:
        handle = await http.handle(prefill)
        await failed_decode(http, decode, handle | {"remote_port": other.port})
        assert other.count("simulation:contract_violations_total") == 1


async def test_another_prompt_on_the_decode_leg_is_refused(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    handle = await http.handle(prefill)
    await failed_decode(http, decode, handle, temperature=0.5)
    assert prefill.count("simulation:prompt_mismatches_total") == 1


async def test_a_decode_leg_may_bring_the_ids_of_its_prompts_tokens_and_of_no_other(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    asking = prefill_body() | {"return_token_ids": True}
    for change, status in (([], 200), ([1], 500)):
        _, answer = await http.ask(prefill, Api.CHAT, asking)
        ids = answer["prompt_token_ids"]
        assert len(ids) >= answer["usage"]["prompt_tokens"]
        handle = answer["kv_transfer_params"] | {"prompt_token_ids": ids + change}
        body = BODIES[Api.CHAT] | {"kv_transfer_params": handle}
        assert (await http.send(decode, Api.CHAT, body))[0] == status
    assert decode.count("simulation:contract_violations_total") == 1
    assert "prompt_token_ids" not in (await http.ask(prefill, Api.CHAT, prefill_body()))[1]
    async with running(release="old") as old:
        assert "prompt_token_ids" not in (await http.ask(old, Api.CHAT, asking))[1]


async def test_blocks_expire_with_the_lease(http: Http, decode: SimulatedEngine) -> None:
    async with running(role="prefill", host="127.0.0.2", kv_lease_s=0.02) as prefill:
        handle = await http.handle(prefill)
        await wait_until(lambda: prefill.count("simulation:kv_handles_outstanding") == 0)
        await failed_decode(http, decode, handle)
        assert prefill.count("vllm:nixl_num_kv_expired_reqs_total") == 1
        assert prefill.count("vllm:nixl_num_notifications_after_expiry_total") == 1
        assert prefill.count("simulation:contract_violations_total") == 0


async def test_leases_can_be_ended_before_their_time(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    handle = await http.handle(prefill)
    assert prefill.count("simulation:kv_handles_outstanding") == 1
    prefill.end_leases()
    assert prefill.count("simulation:kv_handles_outstanding") == 0
    await failed_decode(http, decode, handle)
    assert prefill.count("vllm:nixl_num_kv_expired_reqs_total") == 1


async def test_an_engine_that_starts_again_has_its_address_but_not_its_blocks(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    address, lost = prefill.address, await http.handle(prefill)
    await prefill.stop()
    assert prefill.count("simulation:kv_handles_outstanding") == 0
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.handle(prefill)
    await prefill.start()
    assert prefill.address == address
    # Who was told of blocks by an engine that has ended is not to blame.
    await failed_decode(http, decode, lost)
    assert_contract_kept(prefill, decode)
    body = BODIES[Api.CHAT] | {"kv_transfer_params": await http.handle(prefill)}
    assert (await http.send(decode, Api.CHAT, body))[0] == 200
    assert_contract_kept(prefill, decode)


@pytest.mark.parametrize("side_channel_host", ["localhost", "0.0.0.0"])
async def test_a_side_channel_host_must_be_rewritten(
    http: Http, decode: SimulatedEngine, side_channel_host: str
) -> None:
    settings = {"role": "prefill", "host": "127.0.0.2", "side_channel_host": side_channel_host}
    async with running(**settings) as prefill:
        handle = await http.handle(prefill)
        assert handle["remote_host"] == side_channel_host
        await failed_decode(http, decode, handle)
        body = BODIES[Api.CHAT] | {"kv_transfer_params": handle | {"remote_host": prefill.host}}
        assert (await http.send(decode, Api.CHAT, body))[0] == 200
        assert_contract_kept(prefill, decode)


async def test_blocks_go_only_to_an_engine_of_the_same_version(http: Http) -> None:
    settings = {"role": "prefill", "host": "127.0.0.2", "revision": "2"}
    async with (
        running(**settings) as prefill,
        running(role="decode", revision="1") as old,
        running(role="decode", revision="2") as new,
    ):
        handle = await http.handle(prefill)
        await failed_decode(http, old, handle)
        assert prefill.count("simulation:contract_violations_total") == 1
        body = BODIES[Api.CHAT] | {"kv_transfer_params": handle}
        assert (await http.send(new, Api.CHAT, body))[0] == 200


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS, Api.GENERATE])
async def test_a_failed_load_ends_a_stream_with_an_error_event(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, api: Api
) -> None:
    handle = await http.handle(prefill, api) | {"tp_size": 2}
    body = BODIES[api] | {"stream": True, "kv_transfer_params": handle}
    status, text = await http.send(decode, api, body)
    assert status == 200
    error, done = events(text)
    assert (error["error"]["code"], done) == (500, "[DONE]")


@pytest.mark.parametrize("api", [Api.MESSAGES, Api.RESPONSES])
async def test_a_failed_load_ends_a_stream_of_named_events_with_one(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine, api: Api
) -> None:
    handle = await http.handle(prefill, api) | {"tp_size": 2}
    body = BODIES[api] | {"stream": True, "kv_transfer_params": handle}
    status, text = await http.send(decode, api, body)
    assert status == 200
    assert text.startswith("event: error\n")
    assert events(text)[0]["error"]["code"] == 500


async def test_requests_of_the_other_role_are_served_and_counted(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    assert (await http.send(prefill, Api.CHAT, BODIES[Api.CHAT]))[0] == 200
    assert prefill.count("simulation:unexpected_role_total") == 1
    assert (await http.send(decode, Api.CHAT, prefill_body()))[0] == 200
    assert decode.count("simulation:unexpected_role_total") == 1


async def test_several_prompts_in_a_leg_are_a_violation(
    http: Http, prefill: SimulatedEngine, decode: SimulatedEngine
) -> None:
    several = {"prompt": [PROMPT, PROMPT]}
    legs = prefill_body(Api.COMPLETIONS) | several
    assert (await http.send(prefill, Api.COMPLETIONS, legs))[0] == 400
    handle = await http.handle(prefill, Api.COMPLETIONS)
    body = BODIES[Api.COMPLETIONS] | several | {"kv_transfer_params": handle}
    assert (await http.send(decode, Api.COMPLETIONS, body))[0] == 500
    _, whole = await http.ask(decode, Api.COMPLETIONS, BODIES[Api.COMPLETIONS] | several)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]


async def test_a_request_id_must_be_unique_while_it_runs(http: Http) -> None:
    async with running(itl_ms=1) as engine:
        headers = {"X-Request-Id": "twice"}
        url = f"http://{engine.address}{Api.CHAT}"
        long = BODIES[Api.CHAT] | {"max_tokens": 30_000, "stream": True}
        async with http.session.post(url, json=long, headers=headers) as first:
            assert first.status == 200
            status, answer = await http.ask(engine, Api.CHAT, BODIES[Api.CHAT], headers=headers)
            assert status == 400
            assert "twice already running" in answer["error"]["message"]
        await wait_until(lambda: engine.count("vllm:num_requests_running") == 0)
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT], headers=headers))[0] == 200
        assert engine.count("simulation:duplicate_request_ids_total") == 1


# --- the HTTP surface ----------------------------------------------------------------------------


async def test_unknown_paths_and_methods_are_refused_as_the_framework_does(
    http: Http, decode: SimulatedEngine
) -> None:
    assert await http.ask(decode, "/nope", {}) == (404, {"detail": "Not Found"})
    assert await http.ask(decode, Api.CHAT, method="GET") == (
        405,
        {"detail": "Method Not Allowed"},
    )


async def test_a_body_that_is_not_json_is_refused(http: Http, decode: SimulatedEngine) -> None:
    url = f"http://{decode.address}{Api.CHAT}?x=1"
    headers = {"content-type": "application/json", "X-Twice": "a"}
    async with http.session.post(url, data=b"{\xff", headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "Bad Request"
    (record,) = decode.requests
    assert (record.path, record.body, record.status) == (f"{Api.CHAT}?x=1", b"{\xff", 400)
    assert record.headers["x-twice"] == "a"
    _, shown = await http.ask(decode, "/simulation/requests", method="GET")
    assert shown[0]["body_base64"] == "e/8="
    await http.ask(decode, "/simulation/requests", method="DELETE")
    assert not decode.requests


async def test_a_body_of_many_megabytes_arrives_unchanged(http: Http) -> None:
    async with running(max_model_len=10_000_000) as engine:
        body = json.dumps(BODIES[Api.COMPLETIONS] | {"prompt": "x" * 8_000_000}).encode()
        url = f"http://{engine.address}{Api.COMPLETIONS}"
        headers = {"content-type": "application/json"}
        async with http.session.post(url, data=io.BytesIO(body), headers=headers) as response:
            assert response.status == 200
        assert engine.requests[0].body == body


async def test_usage_comes_in_an_extra_chunk_if_it_is_wanted(
    http: Http, decode: SimulatedEngine
) -> None:
    body = BODIES[Api.CHAT] | {"stream": True, "n": 2}
    _, text = await http.send(decode, Api.CHAT, body)
    *chunks, done = events(text)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    ends = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert [(end["index"], end["finish_reason"]) for end in ends] == [(0, "length"), (1, "length")]

    body["stream_options"] = {"include_usage": True}
    _, text = await http.send(decode, Api.CHAT, body)
    *chunks, usage, _ = events(text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)


async def test_a_stream_of_messages_has_anthropics_events(
    http: Http, decode: SimulatedEngine
) -> None:
    _, text = await http.send(decode, Api.MESSAGES, BODIES[Api.MESSAGES] | {"stream": True})
    names = [event["type"] for event in events(text)]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events(text)[-2]["usage"]["output_tokens"] == 3


async def test_a_stream_of_responses_is_numbered(http: Http, decode: SimulatedEngine) -> None:
    _, text = await http.send(decode, Api.RESPONSES, BODIES[Api.RESPONSES] | {"stream": True})
    got = events(text)
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    assert (got[0]["type"], got[-1]["type"]) == ("response.created", "response.completed")


@pytest.mark.parametrize(
    ("path", "body", "member"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}, "data"),
        ("/pooling", {"input": "a"}, "data"),
        ("/classify", {"input": ["a"]}, "data"),
        ("/score", {"text_1": "a", "text_2": ["b", "c"]}, "data"),
        ("/rerank", {"query": "a", "documents": ["b", "c"], "top_n": 1}, "results"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}, "results"),
        ("/tokenize", {"prompt": "abcdefgh"}, "tokens"),
        ("/tokenize", {"messages": MESSAGES}, "tokens"),
        ("/detokenize", {"tokens": [1, 2]}, "prompt"),
    ],
)
async def test_paths_of_one_engine(
    http: Http, decode: SimulatedEngine, path: str, body: dict[str, Any], member: str
) -> None:
    status, answer = await http.ask(decode, path, {"model": MODEL} | body)
    assert status == 200
    assert answer[member]
    status, refused = await http.ask(decode, path, {"model": MODEL})
    assert (status, refused["error"]["type"]) == (400, "Bad Request")
    status, refused = await http.ask(decode, path, {"model": "nope"} | body)
    assert (status, refused["error"]["type"]) == (404, "NotFoundError")


async def test_health_version_models_and_metrics(http: Http, decode: SimulatedEngine) -> None:
    assert await http.send(decode, "/health", method="GET") == (200, "")
    assert (await http.ask(decode, "/version", method="GET"))[1]["version"]
    _, models = await http.ask(decode, "/v1/models", method="GET")
    assert models["data"][0]["id"] == MODEL
    await http.send(decode, Api.CHAT, BODIES[Api.CHAT])
    _, metrics = await http.send(decode, "/metrics", method="GET")
    for line in (
        f'vllm:num_requests_running{{model_name="{MODEL}"}} 0.0',
        f'vllm:num_requests_waiting{{model_name="{MODEL}"}} 0.0',
        f'vllm:kv_cache_usage_perc{{model_name="{MODEL}"}} 0.0',
        f'vllm:generation_tokens_total{{model_name="{MODEL}"}} 3.0',
        f'vllm:request_prefill_time_seconds_count{{model_name="{MODEL}"}} 1.0',
        f'vllm:time_to_first_token_seconds_count{{model_name="{MODEL}"}} 1.0',
        f'vllm:nixl_num_kv_expired_reqs_total{{model_name="{MODEL}"}} 0.0',
        "simulation:kv_handles_outstanding 0.0",
    ):
        assert line in metrics.splitlines()


async def test_held_blocks_count_as_cache_in_use(http: Http, prefill: SimulatedEngine) -> None:
    await http.handle(prefill)
    assert 0 < prefill.count("vllm:kv_cache_usage_perc") < 1


async def test_the_openai_client_is_content(http: Http, decode: SimulatedEngine) -> None:
    del http
    async with openai.AsyncOpenAI(
        base_url=f"http://{decode.address}/v1", api_key="none", max_retries=0, timeout=GENEROUS_S
    ) as client:
        chat = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=2
        )
        assert chat.choices[0].message.content
        assert chat.usage is not None
        assert chat.usage.total_tokens == 3
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hi"}],
                max_tokens=2,
                stream=True,
            )
        ]
        assert "".join(pieces) == chat.choices[0].message.content
        completion = await client.completions.create(model=MODEL, prompt="hi", max_tokens=2)
        assert completion.choices[0].finish_reason == "length"
        response = await client.responses.create(model=MODEL, input="hi", max_output_tokens=2)
        async with client.responses.stream(
            model=MODEL, input="hi", max_output_tokens=2
        ) as streamed:
            final = await streamed.get_final_response()
        assert final.output_text == response.output_text != ""
        embeddings = await client.embeddings.create(model=MODEL, input=["a", "b"])
        floats = await client.embeddings.create(model=MODEL, input="a", encoding_format="float")
        assert embeddings.data[0].embedding == pytest.approx(floats.data[0].embedding)
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="nope", prompt="hi")


# --- load, faults, disconnects -------------------------------------------------------------------


async def test_requests_wait_for_a_slot_in_order(http: Http) -> None:
    async with running(slots=1, itl_ms=1) as engine:
        long = BODIES[Api.CHAT] | {"max_tokens": 30_000, "stream": True}
        async with http.session.post(f"http://{engine.address}{Api.CHAT}", json=long) as first:
            await first.content.readline()
            waiting = [
                asyncio.create_task(http.send(engine, Api.CHAT, BODIES[Api.CHAT])) for _ in range(2)
            ]
            await wait_until(lambda: engine.count("vllm:num_requests_waiting") == 2)
            assert engine.count("vllm:num_requests_running") == 1
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
        assert engine.count("vllm:num_requests_waiting") == 0
        assert engine.count("vllm:num_requests_running") == 0
        assert engine.requests[0].outcome == "aborted"


@pytest.mark.parametrize(
    "settings",
    [{"prefill_tokens_per_s": 0.1}, {"slots": 1, "prefill_tokens_per_s": 0.1}],
    ids=["running", "running and waiting"],
)
async def test_a_client_that_leaves_a_prefill_leg_leaves_nothing(
    http: Http, settings: dict[str, Any]
) -> None:
    async with running(role="prefill", **settings) as engine:
        calls = [asyncio.create_task(http.handle(engine)) for _ in range(2)]
        await wait_until(lambda: len(engine.requests) == 2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await wait_until(lambda: engine.count("simulation:aborted_requests_total") == 2)
        for gauge in (
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc",
            "simulation:kv_handles_outstanding",
        ):
            assert engine.count(gauge) == 0
        assert {record.outcome for record in engine.requests} == {"aborted"}


async def test_a_fault_is_set_shown_used_up_and_cleared(http: Http) -> None:
    async with running(Fault(status=500)) as engine:
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT]))[0] == 500
        path = "/simulation/faults"
        shown = await http.ask(engine, path, {"status": 503, "times": 2}, method="PUT")
        assert shown == (200, [{"status": 503, "times": 2}])
        status, answer = await http.ask(engine, Api.CHAT, BODIES[Api.CHAT])
        assert (status, answer["error"]["type"]) == (503, "ServiceUnavailableError")
        assert await http.ask(engine, path, method="GET") == (200, [{"status": 503, "times": 1}])
        assert await http.ask(engine, path, method="DELETE") == (200, [])
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT]))[0] == 200
        assert (await http.send(engine, path, {"nonsense": 1}, method="PUT"))[0] == 400


async def test_a_fault_can_make_an_engine_unhealthy(http: Http) -> None:
    async with running(Fault(status=503, path="/health")) as engine:
        assert (await http.send(engine, "/health", method="GET"))[0] == 503
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT]))[0] == 200


@pytest.mark.parametrize(
    ("fault", "blocks"), [(Fault(null_params=True), None), (Fault(empty_blocks=True), [])]
)
async def test_faults_of_the_handle(
    http: Http, prefill: SimulatedEngine, fault: Fault, blocks: list[int] | None
) -> None:
    prefill.faults.set(fault)
    _, answer = await http.ask(prefill, Api.CHAT, prefill_body())
    params = answer["kv_transfer_params"]
    assert (params and params["remote_block_ids"]) == blocks


async def test_a_member_can_be_left_out_of_the_handle(http: Http, prefill: SimulatedEngine) -> None:
    prefill.faults.set(Fault(omit_params=("remote_port",)))
    assert "remote_port" not in await http.handle(prefill)


async def test_a_slow_engine_answers_after_all(http: Http) -> None:
    async with running(Fault(slow_s=0.01)) as engine:
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT]))[0] == 200


async def test_an_engine_that_hangs_holds_the_request_until_the_client_leaves(
    http: Http,
) -> None:
    async with running(Fault(hang=True)) as engine:
        call = asyncio.create_task(http.send(engine, Api.CHAT, BODIES[Api.CHAT]))
        await wait_until(lambda: len(engine.requests) == 1)
        assert engine.requests[0].outcome == "running"
        call.cancel()
        await wait_until(lambda: engine.requests[0].outcome == "aborted")
        assert engine.count("simulation:aborted_requests_total") == 1


async def test_an_engine_can_stop_while_it_hangs(http: Http) -> None:
    async with running(Fault(hang=True)) as engine:
        call = asyncio.create_task(http.send(engine, Api.CHAT, BODIES[Api.CHAT]))
        await wait_until(lambda: len(engine.requests) == 1)
        async with asyncio.timeout(GENEROUS_S):
            await engine.stop()
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_a_dropped_request_gets_no_answer(http: Http) -> None:
    async with running(Fault(drop=True, times=1)) as engine:
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.send(engine, Api.CHAT, BODIES[Api.CHAT])
        assert engine.requests[0].outcome == "dropped"
        assert engine.count("simulation:aborted_requests_total") == 0
        assert (await http.send(engine, Api.CHAT, BODIES[Api.CHAT]))[0] == 200


async def test_a_stream_can_be_cut_in_the_middle(http: Http) -> None:
    async with running(Fault(drop_after_tokens=2)) as engine:
        body = BODIES[Api.CHAT] | {"stream": True, "max_tokens": 5}
        url = f"http://{engine.address}{Api.CHAT}"
        received = bytearray()
        async with http.session.post(url, json=body) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await read_until_cut(response.content, into=received)
        start = prompt_digest(Api.CHAT, body)[:8]
        assert f"{start}-1".encode() in received
        assert f"{start}-2".encode() not in received
        assert engine.count("vllm:num_requests_running") == 0
        assert engine.requests[0].outcome == "dropped"


async def test_idle_connections_are_closed_on_request(http: Http) -> None:
    del http
    async with running() as engine:
        reader, writer = await asyncio.open_connection(engine.host, engine.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        engine.close_idle_connections()
        async with asyncio.timeout(GENEROUS_S):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_the_request_to_close_idle_connections_is_itself_answered(http: Http) -> None:
    async with running() as engine:
        assert (await http.send(engine, "/simulation/close-idle"))[0] == 200
        assert (await http.send(engine, "/health", method="GET"))[0] == 200


async def test_a_port_in_use_stops_the_start() -> None:
    async with running() as engine:
        with pytest.raises(OSError, match="in use"):
            async with running(port=engine.port):
                pass


# --- the command ---------------------------------------------------------------------------------

COMMAND = """
import argparse, asyncio, sys
from pdrouter.tools.simulation.command import add_arguments, run
parser = argparse.ArgumentParser()
add_arguments(parser)
sys.exit(asyncio.run(run(parser.parse_args())))
"""


async def command(*options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        COMMAND,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_command_serves_until_it_is_told_to_stop(http: Http) -> None:
    options = ["--role", "decode", "--host", "127.0.0.1", "--port", "0", "--model", "m"]
    process = await command(*options, "--fault", "status=503", "--fault", "times=1")
    async with asyncio.timeout(GENEROUS_S):
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("decode engine of m at http://127.0.0.1:")
        assert b"made up" in await process.stdout.readline()
        url = f"{line.split()[-1]}{Api.COMPLETIONS}"
        statuses = []
        for _ in range(2):
            async with http.session.post(url, json={"model": "m", "prompt": "x"}) as response:
                statuses.append(response.status)
        assert statuses == [503, 200]
        os.kill(process.pid, signal.SIGTERM)
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--slots", "0"], 2, "slots"),
        (["--fault", "speed=1"], 2, "speed"),
        (["--host", "192.0.2.1"], 1, "no such address"),
    ],
)
async def test_the_command_names_what_is_wrong(options: list[str], code: int, named: str) -> None:
    process = await command("--port", "0", *options)
    async with asyncio.timeout(GENEROUS_S):
        _, errors = await process.communicate()
    assert process.returncode == code
    assert named in errors.decode()
