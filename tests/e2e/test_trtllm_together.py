"""TensorRT-LLM, generation first, through the real Envoy: both legs at once, neither hangs."""

import json
from random import Random
from typing import Any

import httpx
import pytest
from expectations import chat, expect_disaggregated, expect_whole
from failures import CHAT
from together import FAULTS, Case, leave, suffer, suffer_many, try_another_context

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "a key"
PREFILL = tuple(
    EngineConfig(role="prefill", host=host, kv_connector="trtllm", auth_key=KEY, itl_ms=1)
    for host in ("127.0.0.2", "127.0.0.3")
)
DECODE = (EngineConfig(role="decode", kv_connector="trtllm", auth_key=KEY, itl_ms=1),) * 2


@pytest.fixture(scope="module")
def stack_options(tmp_path_factory: pytest.TempPathFactory) -> StackOptions:
    key = tmp_path_factory.mktemp("secret") / "key"
    key.write_text(KEY)
    environment = {
        "PDROUTER_TRTLLM_ORDER": "generation-first",
        "PDROUTER_TRTLLM_AUTH_KEY_FILE": str(key),
        "PDROUTER_EJECT_AFTER": "0",
        # What hangs ends with it; else it is far away.
        "AIBRIX_PREFILL_REQUEST_TIMEOUT": "2",
    }
    return StackOptions(prefill=PREFILL, decode=DECODE, environment=environment)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat(max_completion_tokens=4), id="chat"),
        pytest.param(CHAT, chat(stream=True, max_tokens=30), id="stream"),
        pytest.param(
            "/v1/completions", {"model": "demo", "prompt": [1, 2], "max_tokens": 3}, id="tokens"
        ),
        pytest.param(CHAT, chat(user="\u00e9" * 500_000, temperature=0.10), id="1-MB"),
    ],
)
async def test_a_request_goes_over_both(
    stack: LocalStack, client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    data = json.dumps(body, ensure_ascii=False, indent=1).encode()
    headers = {"content-type": "application/json"}
    response = await client.post(path, content=data, headers=headers)
    prefill, decode = expect_disaggregated(stack, response)
    context, generation = json.loads(prefill.request.body), json.loads(decode.request.body)
    number = context["disaggregated_params"]["disagg_request_id"]
    assert generation.pop("disaggregated_params") == {
        "request_type": "generation_only",
        "schedule_style": "generation_first",
        "ctx_request_id": number,
        "disagg_request_id": number,
        "ctx_info_endpoint": prefill.engine.address,
        "ctx_dp_rank": 0,
    }
    assert generation == body
    if body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")


async def test_several_choices_are_served_whole(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")


@pytest.mark.parametrize(
    ("case", "stream"),
    [
        pytest.param(case, stream, id=f"{case}-{'stream' if stream else 'plain'}")
        for case in FAULTS
        # The context leg is not streamed: its answer cannot break off after a head.
        if case.leg == "decode"
        or not (case.fault.hang_after_head or case.fault.drop_after_tokens is not None)
        for stream in (False, True)
        # What hangs takes its time: once for each is enough.
        if not case.hangs or stream is (case.leg == "decode")
    ],
)
async def test_a_fault_of_a_leg_ends_the_other(
    stack: LocalStack, client: httpx.AsyncClient, case: Case, *, stream: bool
) -> None:
    await suffer(stack, client, case, chat(max_tokens=20, stream=stream))


async def test_a_context_pod_that_refuses_costs_another_try(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    await try_another_context(stack, client, chat())


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_a_client_that_leaves_ends_all(
    stack: LocalStack, client: httpx.AsyncClient, leg: str
) -> None:
    await leave(stack, client, leg, chat())


async def test_the_first_token_may_be_the_last(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    body = chat(structured_outputs={"choice": ["ok"]})
    response = await client.post(CHAT, json=body)
    expect_disaggregated(stack, response)
    assert response.json()["choices"][0]["message"]["content"] == "ok"


async def test_many_requests_with_faults_leave_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    random = Random(14)
    bodies = [chat(stream=random.random() < 0.5, seed=number) for number in range(200)]
    await suffer_many(stack, client, bodies, random)
