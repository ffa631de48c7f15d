"""aibrix's algorithms, as a header, a setting, a model's profile or a list names them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from annotated_pods import run_annotated
from expectations import (
    chat,
    count_received,
    expect_disaggregated,
    expect_error,
    expect_whole,
)

from pdrouter.settings.choices import ALGORITHM_NAMES, STRATEGY_NAMES
from pdrouter.tools.local_stack import LocalStack

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
DEFAULT = "prefix-cache:3, least-request"
CONFIG = {
    "defaultProfile": "plain",
    "profiles": {
        "plain": {},
        "packed": {"routingStrategy": "slo-pack-load"},
        "listed": {"routingStrategy": "least-latency:3,least-kv-cache"},
        "legs": {
            "routingStrategy": "pd",
            "routingConfig": {
                "prefillScorePolicy": "prefix-cache-preble:2,ttft",
                "decodeScorePolicy": "power-of-two",
            },
        },
        "wrong": {"routingStrategy": "least-request:1:1"},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    """Three pairs of pods with these profiles, and a list of algorithms as the setting."""
    directory: Path = tmp_path_factory.mktemp("algorithms")
    async with run_annotated(
        directory,
        [CONFIG] * 3,
        ROUTING_ALGORITHM=DEFAULT,
        PDROUTER_DECISION_DETAIL="true",
        PDROUTER_AGGREGATE="never",
    ) as running:
        yield running


async def ask(
    client: httpx.AsyncClient, strategy: str = "", text: str = "hi", **headers: str
) -> httpx.Response:
    if strategy:
        headers["routing-strategy"] = strategy
    body = chat(messages=[{"role": "user", "content": text}])
    return await client.post(CHAT, json=body, headers={"x-pd-decision-detail": "1", **headers})


def read_detail(response: httpx.Response) -> dict[str, Any]:
    detail: dict[str, Any] = json.loads(response.headers["x-pd-decision-detail"])
    return detail


async def test_each_algorithm_serves_a_request_and_is_told_again(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    for name in ALGORITHM_NAMES:
        response = await ask(client, name)
        whole = expect_whole(stack, response, f"strategy-{name}")
        assert response.headers["routing-strategy"] == name
        assert whole.request.headers["routing-strategy"] == name
        detail = read_detail(response)
        assert detail["decode"]["policy"] == name
        assert detail["decode"]["unit"]


async def test_the_setting_may_be_a_list_whose_parts_are_told(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    text = "a conversation that goes on and on. " * 40
    first = await ask(client, text=text)
    pod = first.headers["target-pod"]
    for turn in range(3):
        response = await ask(client, text=f"{text} And then? {turn}")
        expect_whole(stack, response, "strategy-list")
        assert response.headers["routing-strategy"] == DEFAULT
        assert response.headers["target-pod"] == pod
    decode = read_detail(response)["decode"]
    assert decode["policy"] == "prefix-cache:3,least-request:1"
    assert decode["scores"][pod] == min(decode["scores"].values())
    assert decode["parts"][pod]["match_percent"] == 100
    assert {parts["match_percent"] for parts in decode["parts"].values()} == {0, 100}
    assert all(parts["requests"] == 0 for parts in decode["parts"].values())


@pytest.mark.parametrize(
    ("profile", "reason", "echo"),
    [
        ("packed", "strategy-slo-pack-load", "slo-pack-load"),
        ("listed", "strategy-list", "least-latency:3,least-kv-cache"),
    ],
)
async def test_a_profile_may_name_one_or_a_list(
    client: httpx.AsyncClient, stack: LocalStack, profile: str, reason: str, echo: str
) -> None:
    response = await ask(client, **{"config-profile": profile})
    expect_whole(stack, response, reason)
    assert response.headers["routing-strategy"] == echo


async def test_the_legs_of_pd_may_go_by_algorithms(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    text = "a prompt that comes twice. " * 60
    responses = [await ask(client, text=text, **{"config-profile": "legs"}) for _ in range(3)]
    pairs = [expect_disaggregated(stack, response) for response in responses]
    assert len({prefill.engine for prefill, _ in pairs}) == 1
    detail = read_detail(responses[-1])
    assert detail["prefill"]["policy"] == "prefix-cache-preble:2,ttft:1"
    best = detail["prefill"]["parts"][detail["prefill"]["pod"]]
    assert best["preble_cost"] == 2
    assert best["computed_tokens"] < best["cached_tokens"]
    assert detail["decode"]["policy"] == "power-of-two"
    assert detail["decode"]["candidates"] == 2


async def test_pd_in_a_list_stands_alone_and_says_so(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await ask(client, "least-request:9,pd,random")
    expect_disaggregated(stack, response)
    assert response.headers["routing-strategy"] == "least-request:9,pd,random"
    assert "pd stands alone: the others do not count" in read_detail(response)["notes"]


async def test_what_is_not_measured_is_noted(client: httpx.AsyncClient, stack: LocalStack) -> None:
    response = await ask(client, "least-busy-time:2,slo-least-load:0,throughput")
    expect_whole(stack, response, "strategy-list")
    (note,) = read_detail(response)["notes"]
    assert "least-busy-time: no engine says how busy its GPU is" in note


@pytest.mark.parametrize(
    "strategy",
    [
        "round-robin",
        "least-request,round-robin",
        "least-request,",
        "least-request:1:2",
        "least-request:1000001",
        "least-request:0",
        "random,least-request",
        "slo-fastest",
    ],
)
async def test_anything_else_is_refused_before_any_engine_is_asked(
    client: httpx.AsyncClient, stack: LocalStack, strategy: str
) -> None:
    before = count_received(stack)
    error = expect_error(
        await ask(client, strategy), 400, "invalid_routing_strategy", "routing-strategy"
    )
    if "round-robin" in strategy:
        assert all(name in error["message"] for name in STRATEGY_NAMES)
    assert count_received(stack) == before


async def test_a_wrong_list_of_the_models_is_not_the_clients_fault(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await ask(client, **{"config-profile": "wrong"})
    error = expect_error(response, 503, "invalid_routing_strategy")
    assert "the weight of least-request" in error["message"]
