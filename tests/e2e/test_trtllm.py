"""TensorRT-LLM through the real Envoy: context first, signed, and what becomes of failures."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import (
    UNTIL_SETTLED_S,
    chat,
    connect,
    count_received,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    find_sent,
    read_metrics,
)
from failures import CHAT, failing, run_small_stack
from together import expect_both_ended, post, suffer_many, try_another_context

from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMPLETIONS = "/v1/completions"
KEY = "a key that nobody may see"
HEADER = "x-trtllm-disagg-auth"
PREFILL = tuple(
    EngineConfig(
        role="prefill",
        host=host,
        kv_connector="trtllm",
        auth_key=KEY,
        itl_ms=1,
        kv_lease_s=UNTIL_SETTLED_S,
    )
    for host in ("127.0.0.2", "127.0.0.3")
)
DECODE = (EngineConfig(role="decode", kv_connector="trtllm", auth_key=KEY, itl_ms=1),) * 2
# The simulated model writes the one choice, which is one token.
ONE_TOKEN: dict[str, Any] = {"structured_outputs": {"choice": ["ok"]}}


@pytest.fixture(scope="module")
def stack_options(tmp_path_factory: pytest.TempPathFactory) -> StackOptions:
    key = tmp_path_factory.mktemp("secret") / "key"
    key.write_text(f"{KEY}\n")
    environment = {
        "PDROUTER_TRTLLM_AUTH_KEY_FILE": str(key),
        "AIBRIX_TRT_MACHINE_ID": "1023",
        "PDROUTER_EJECT_AFTER": "0",
        "PDROUTER_PREFILL_RESPONSE_TIMEOUT": "2",
    }
    return StackOptions(prefill=PREFILL, decode=DECODE, environment=environment)


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    """A client; the end of the module waits for blocks that faults have left behind."""
    async with connect(stack) as connected:
        yield connected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat(max_completion_tokens=4, min_tokens=2), id="chat"),
        pytest.param(
            CHAT, chat(stream=True, stream_options={"include_usage": True}), id="chat-stream"
        ),
        pytest.param(
            CHAT,
            chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"),
            id="tools",
        ),
        pytest.param(COMPLETIONS, {"model": "demo", "prompt": "hi", "max_tokens": 3}, id="text"),
        pytest.param(
            COMPLETIONS,
            {"model": "demo", "prompt": [1, 2, 3], "max_tokens": 3, "stream": True},
            id="tokens",
        ),
        pytest.param(CHAT, chat(user="\u00e9" * 500_000, temperature=0.10), id="1-MB"),
        pytest.param(CHAT, chat(conversation_params={"conversation_id": "c-1"}), id="conversation"),
    ],
)
async def test_a_request_goes_over_both(
    stack: LocalStack, client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    data = json.dumps(body, ensure_ascii=False, indent=1).encode()
    headers = {"content-type": "application/json", "x-multi-turn-session-id": "s-1"}
    response = await client.post(path, content=data, headers=headers)
    prefill, decode = expect_disaggregated(stack, response)
    context, generation = json.loads(prefill.request.body), json.loads(decode.request.body)
    number = context["disaggregated_params"]["disagg_request_id"]
    assert number >> 53 == 1023
    told = generation["disaggregated_params"]
    assert (told["request_type"], told["ctx_request_id"]) == ("generation_only", number)
    assert decode.request.headers[HEADER].startswith("sha256=")
    changed = {"max_tokens", "max_completion_tokens", "min_tokens", "stream", "stream_options"}
    assert {name: context[name] for name in body.keys() - changed} == {
        name: body[name] for name in body.keys() - changed
    }
    assert {name: generation[name] for name in body.keys() - {"prompt"}} == {
        name: body[name] for name in body.keys() - {"prompt"}
    }
    for leg in (prefill, decode):
        assert leg.request.headers["x-multi-turn-session-id"] == "s-1"
    if body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    assert HEADER not in response.headers


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, chat(n=2), "n"),
        (COMPLETIONS, {"model": "demo", "prompt": ["a", "b"]}, "several-prompts"),
        ("/v1/messages", chat(), "single-pod-path"),
        ("/v1/responses", {"model": "demo", "input": "hi", "store": False}, "single-pod-path"),
    ],
)
async def test_what_the_wire_cannot_split_is_served_whole(
    stack: LocalStack, client: httpx.AsyncClient, path: str, body: dict[str, Any], reason: str
) -> None:
    expect_whole(stack, await client.post(path, json=body), reason)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_first_token_may_be_the_last(
    stack: LocalStack, client: httpx.AsyncClient, path: str
) -> None:
    body = chat(**ONE_TOKEN) if path == CHAT else {"model": "demo", "prompt": "hi", **ONE_TOKEN}
    plain = await client.post(path, json=body)
    assert (plain.status_code, plain.headers["content-type"]) == (200, "application/json")
    assert plain.headers["x-pd-decision"] == "disaggregated"
    assert "target-pod" not in plain.headers
    answer = plain.json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert not {"disaggregated_params", "prompt_token_ids"} & {*choice, *answer}
    (sent,) = find_sent(stack, plain)
    assert sent.engine in stack.prefill
    stream = await client.post(
        path, json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert stream.headers["content-type"].startswith("text/event-stream")
    first, usage, done, _ = stream.text.split("\n\n")
    (told,) = json.loads(first.removeprefix("data: "))["choices"]
    assert told["finish_reason"] == "stop"
    assert (told["delta"]["content"] if path == CHAT else told["text"]) == "ok"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 1
    assert done == "data: [DONE]"
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_requests_total", outcome="ok", status="200") > 0
    await expect_settled(stack)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("leg", "fault", "status", "code"),
    [
        ("prefill", Fault(status=400), 400, ""),
        ("prefill", Fault(status=500), 502, "prefill_failed"),
        ("prefill", Fault(drop=True), 502, "prefill_failed"),
        ("prefill", Fault(status=500, times=1), 200, ""),
        ("decode", Fault(status=400), 400, ""),
        ("decode", Fault(status=500), 500, ""),
        ("decode", Fault(drop=True), 503, "no_engine_answer"),
    ],
)
async def test_a_leg_that_fails(
    stack: LocalStack,
    client: httpx.AsyncClient,
    leg: str,
    fault: Fault,
    status: int,
    code: str,
    stream: bool,
) -> None:
    engines = stack.prefill if leg == "prefill" else stack.decode
    with failing(engines[:1] if fault.times else engines, fault):
        response = await client.post(CHAT, json=chat(stream=stream))
    assert response.status_code == status, response.text
    if code.startswith("prefill"):
        expect_error(response, status, code)
    elif status == 400:
        # The engine's own words, flat as they are.
        assert response.json()["message"] == "Simulated fault: status 400"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_context_pod_that_refuses_costs_another_try(
    stack: LocalStack, client: httpx.AsyncClient, stream: bool
) -> None:
    await try_another_context(stack, client, chat(stream=stream))


async def test_context_pods_that_all_refuse_are_an_error_before_a_generation_leg(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    before = count_received(stack)
    for engine in stack.prefill:
        await engine.stop()
    try:
        expect_error(await client.post(CHAT, json=chat()), 502, "prefill_failed")
    finally:
        for engine in stack.prefill:
            await engine.start()
    assert count_received(stack) == before


async def test_generation_pods_that_refuse_are_the_gateways_error(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    for engine in stack.decode:
        await engine.stop()
    try:
        expect_error(await client.post(CHAT, json=chat()), 503, "upstream_unavailable")
    finally:
        for engine in stack.decode:
            await engine.start()


@pytest.mark.parametrize(
    "fault", [Fault(hang_after_head=True), Fault(drop_after_tokens=2)], ids=["hangs", "drops"]
)
async def test_an_answer_that_stops_in_the_middle_leaves_nothing(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault
) -> None:
    body = chat(stream=True, max_tokens=20)
    with failing(stack.decode, fault):
        if fault.hang_after_head:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(CHAT, json=body, timeout=1)
        else:
            ending = await post(client, body)
            assert (ending.status, ending.cut) == (200, True)
    await expect_both_ended(stack)


async def test_a_context_engine_that_hangs_costs_another_try(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    with failing(stack.prefill, Fault(hang=True)):
        response = await client.post(CHAT, json=chat())
    expect_error(response, 504, "prefill_timeout")


async def test_a_client_that_leaves_ends_the_generation_leg(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    with failing(stack.decode, Fault(hang=True)), pytest.raises(httpx.ReadTimeout):
        await client.post(CHAT, json=chat(), timeout=1)
    await expect_settled(stack)


async def test_many_requests_with_faults_leave_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    random = Random(15)
    bodies = [
        chat(stream=random.random() < 0.5, seed=number, **random.choice([{}, {}, ONE_TOKEN]))
        for number in range(200)
    ]
    await suffer_many(stack, client, bodies, random)
    await expect_settled(stack)


@pytest.mark.parametrize(("key", "signed"), [("another key", True), (None, False)])
async def test_an_engine_with_a_key_refuses_what_is_not_signed_with_it(
    tmp_path: Path, key: str | None, signed: bool
) -> None:
    environment = {}
    if key is not None:
        (tmp_path / "key").write_text(key)
        environment["PDROUTER_TRTLLM_AUTH_KEY_FILE"] = str(tmp_path / "key")
    # Unchecked in the end: the engine counts a wrong signature as a broken contract, which it is.
    options = StackOptions(prefill=PREFILL[:1], decode=DECODE[:1], environment=environment)
    async with run_stack(options) as stack, connect(stack) as client:
        response = await client.post(CHAT, json=chat())
        assert response.status_code == 401
        assert HEADER in response.json()["message"]
        _, generation = find_sent(stack, response)
        assert (HEADER in generation.request.headers) is signed


async def test_without_a_key_nothing_is_signed() -> None:
    prefill, decode = ([replace(each, auth_key="") for each in side] for side in (PREFILL, DECODE))
    async with run_small_stack({}, prefill=prefill, decode=decode) as (stack, client):
        _, decode_leg = expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        assert HEADER not in decode_leg.request.headers
