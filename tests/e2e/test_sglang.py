"""SGLang through the real Envoy: both legs at once, and what becomes of one without the other."""

import json
from dataclasses import replace
from random import Random
from typing import Any

import httpx
import pytest
from expectations import chat, count_received, expect_disaggregated, expect_error
from failures import CHAT, expect_ended, list_ids, run_small_stack, try_first
from together import FAULTS, Case, expect_both_ended, leave, suffer, suffer_many

from pdrouter.engines.split import Leg
from pdrouter.settings.choices import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFILL = tuple(
    EngineConfig(role="prefill", host=host, kv_connector="bootstrap", itl_ms=1)
    for host in ("127.0.0.2", "127.0.0.3")
)
DECODE = (EngineConfig(role="decode", kv_connector="bootstrap", itl_ms=1),) * 2


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    # Pods that are made to fail here must be there for the next test.
    return StackOptions(prefill=PREFILL, decode=DECODE, environment={"PDROUTER_EJECT_AFTER": "0"})


def expect_same(stack: LocalStack, response: httpx.Response) -> dict[str, Any]:
    """Check that both engines got the same bytes; return their members."""
    prefill, decode = expect_disaggregated(stack, response)
    assert prefill.request.body == decode.request.body
    members: dict[str, Any] = json.loads(prefill.request.body)
    return members


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat(), id="chat"),
        pytest.param(CHAT, chat(stream=True, max_tokens=30), id="stream"),
        pytest.param(
            CHAT,
            chat(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"),
            id="tools",
        ),
        pytest.param(CHAT, chat(n=3), id="n"),
        pytest.param(CHAT, chat(n=2, stream=True), id="n-stream"),
        pytest.param(
            "/v1/completions", {"model": "demo", "prompt": ["a", "b"], "n": 2}, id="prompts"
        ),
        pytest.param("/v1/completions", {"model": "demo", "prompt": [[1, 2], [3]]}, id="tokens"),
        pytest.param(
            "/v1/responses", {"model": "demo", "input": "hi", "store": False}, id="responses"
        ),
        pytest.param(
            "/generate",
            {"model": "demo", "text": "hi", "sampling_params": {"max_new_tokens": 3}},
            id="generate",
        ),
        pytest.param(
            "/generate",
            {"model": "demo", "input_ids": [[1, 2], [3]], "sampling_params": {"n": 2}},
            id="generate-batch",
        ),
        pytest.param(
            "/generate", {"model": "demo", "text": ["a", "b"], "stream": True}, id="generate-stream"
        ),
        pytest.param(CHAT, chat(messages=[{"role": "user", "content": "x" * 100_000}]), id="long"),
        pytest.param(
            CHAT, chat(max_tokens=2, user="\u00e9" * 500_000, temperature=0.10), id="1-MB"
        ),
    ],
)
async def test_a_request_goes_over_both(
    stack: LocalStack, client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    data = json.dumps(body, ensure_ascii=False, indent=1).encode()
    headers = {"content-type": "application/json"}
    response = await client.post(path, content=data, headers=headers)
    members = expect_same(stack, response)
    assert {name: members[name] for name in body} == body
    prompts = body.get("prompt") or body.get("input_ids") or body.get("text") or ""
    options = body.get("sampling_params", body)
    items = (len(prompts) if isinstance(prompts, list) else 1) * options.get("n", 1)
    rooms = members["bootstrap_room"] if items > 1 else [members["bootstrap_room"]]
    assert len(set(rooms)) == items
    if body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    elif path == "/generate":
        answer = response.json()
        answers = answer if isinstance(answer, list) else [answer]
        assert len(answers) == items
    elif path != "/v1/responses":
        assert len(response.json()["choices"]) == items


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "demo", "input": "hi"}),
        ("/v1/completions", {"model": "demo", "prompt": "hi", "echo": True}),
        ("/v1/embeddings", {"model": "demo", "input": "hi"}),
        ("/generate", {"model": "demo", "text": "hi", "logprob_start_len": 0}),
    ],
)
async def test_what_needs_one_engine_for_all_of_it_is_refused(
    stack: LocalStack, client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    before = count_received(stack)
    expect_error(await client.post(path, json=body), 400, "cannot_be_split")
    assert count_received(stack) == before


async def test_the_engines_refuse_what_is_wrong(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    response = await client.post(CHAT, json=chat(max_tokens=-1))
    assert response.status_code == 400
    assert response.json()["object"] == "error"
    await expect_both_ended(stack)


async def test_too_many_choices_are_refused_before_an_engine_sees_them(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    before = count_received(stack)
    expect_error(await client.post(CHAT, json=chat(n=10**9)), 400, "invalid_value", "n")
    assert count_received(stack) == before


async def test_a_client_cannot_name_a_room(stack: LocalStack, client: httpx.AsyncClient) -> None:
    hostile: dict[str, Any] = {
        "bootstrap_room": 7,
        "bootstrap_host": "198.51.100.1",
        "routed_dp_rank": 1,
    }
    members = expect_same(stack, await client.post(CHAT, json=chat(**hostile, rid="mine")))
    assert members["bootstrap_room"] != 7
    assert members["bootstrap_host"].startswith("127.0.0.")
    assert not {"routed_dp_rank", "rid"} & members.keys()


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("case", [case for case in FAULTS if not case.hangs], ids=str)
async def test_a_fault_of_a_leg_ends_the_other(
    stack: LocalStack, client: httpx.AsyncClient, case: Case, *, stream: bool
) -> None:
    await suffer(stack, client, case, chat(max_tokens=20, stream=stream))


async def test_what_hangs_ends_with_the_deadline_of_the_prefill_leg() -> None:
    environment = {"AIBRIX_PREFILL_REQUEST_TIMEOUT": "1", "PDROUTER_EJECT_AFTER": "0"}
    prefill, decode = (
        [replace(each, release="old") for each in side] for side in (PREFILL, DECODE)
    )
    async with run_small_stack(environment, prefill=prefill, decode=decode) as (stack, client):
        # What releases hang on, and what they refuse: an end, and nothing is left.
        expect_error(await client.post(CHAT, json=chat(n=2)), 503, "prefill_failed")
        response = await client.post("/v1/messages", json=chat())
        assert (response.status_code, "bootstrap room" in response.text) == (400, True)
        await expect_both_ended(stack)
        for case in FAULTS:
            if case.hangs:
                for stream in (False, True):
                    await suffer(stack, client, case, chat(max_tokens=20, stream=stream))


async def test_a_prefill_pod_that_refuses_costs_another_try(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    gone, other = stack.prefill
    await gone.stop()
    try:
        with try_first(stack, gone, other):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 200, response.text
        request_id = response.headers["x-request-id"]
        assert list_ids(other, request_id) == [f"{request_id}-2"]
        members = json.loads(other.requests[-1].body)
        assert members["bootstrap_host"] == other.host
        assert members["bootstrap_port"] == other.bootstrap_port
        decode = [engine for engine in stack.decode if list_ids(engine, request_id)]
        assert [engine.requests[-1].body for engine in decode] == [other.requests[-1].body]
    finally:
        await gone.start()


async def test_decode_pods_that_refuse_end_the_prefill_leg(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    for engine in stack.decode:
        await engine.stop()
    try:
        response = await client.post(CHAT, json=chat())
        expect_error(response, 503, "upstream_unavailable")
        await expect_both_ended(stack)
    finally:
        for engine in stack.decode:
            await engine.start()


async def test_a_second_decode_pod_joins_where_the_first_refuses() -> None:
    options = {"prefill": PREFILL, "decode": DECODE, "routing": Routing.OVERRIDE_HOST}
    async with run_small_stack({}, **options) as (stack, client):
        gone, other = stack.decode
        await gone.stop()
        with stack.router.ledger.start(Leg.DECODE, other.address, 1_000):
            response = await client.post(CHAT, json=chat())
        assert response.status_code == 200, response.text
        assert list_ids(other, response.headers["x-request-id"])
        await expect_both_ended(stack)


@pytest.mark.parametrize("leg", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_client_that_leaves_ends_all(
    stack: LocalStack, client: httpx.AsyncClient, leg: str, *, stream: bool
) -> None:
    await leave(stack, client, leg, chat(stream=stream))


async def test_a_client_that_leaves_a_stream_ends_all(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    body = chat(stream=True, max_tokens=20_000)
    async with client.stream("POST", CHAT, json=body) as response:
        await anext(response.aiter_raw())
    await expect_both_ended(stack)
    await expect_ended(stack)


async def test_many_requests_with_faults_leave_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    random = Random(13)
    bodies = [
        chat(stream=random.random() < 0.5, n=random.choice([1, 1, 3]), seed=number)
        for number in range(150)
    ]
    await suffer_many(stack, client, bodies, random)
