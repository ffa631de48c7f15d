"""Every path that clients of aibrix ask for, from web pages too; and what the router refuses."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from expectations import (
    DECODE,
    PREFILL,
    connect,
    count_received,
    eventually,
    expect_error,
    expect_settled,
    expect_whole,
    find_sent,
    read_metrics,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"authorization": "Bearer secret"}
PAGE = "https://chat.example.com"
TURNS = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT = "/v1/chat/completions"
PAINTER = "painter"


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        environment={"AIBRIX_AUTH_BEARER_TOKEN": "secret"},
        cors_origins=(PAGE, "https://*.example.org"),
    )


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(stack, headers=KEY) as connected:
        yield connected
    await expect_settled(stack)


# aibrix's table, whose gateway takes no query string; whether the answer may be a stream.
JSON_PATHS: list[tuple[str, dict[str, Any], bool]] = [
    (CHAT, {"messages": TURNS}, True),
    ("/v1/messages", {"messages": TURNS, "max_tokens": 4}, True),
    ("/v1/responses", {"input": "hi", "store": False}, True),
    ("/v1/completions", {"prompt": "hi"}, True),
    ("/v1/embeddings", {"input": ["hi", "ho"]}, False),
    ("/v1/rerank", {"query": "hi", "documents": ["a", "b"]}, False),
    ("/v1/classify", {"input": "hi"}, False),
    ("/v1/images/generations", {"prompt": "a cat"}, False),
    ("/v1/video/generations", {"prompt": "a cat"}, False),
]


@pytest.mark.parametrize(("path", "members", "streams"), JSON_PATHS)
@pytest.mark.parametrize("query", ["", "?api-version=1&x"])
async def test_a_path_of_aibrix_leads_to_an_engine(
    client: httpx.AsyncClient,
    stack: LocalStack,
    path: str,
    members: dict[str, Any],
    streams: bool,
    query: str,
) -> None:
    for stream in (False, True) if streams else (False,):
        body = {"model": "demo", **members, **({"stream": True} if stream else {})}
        response = await client.post(path + query, json=body)
        last = find_sent(stack, response)[-1]
        assert last.request.path == path + query
        assert last.engine in stack.decode
        # What the engine says is the answer: vLLM calls this one `/classify`.
        assert response.status_code == (404 if path == "/v1/classify" else 200), response.text
        assert response.headers["content-type"].startswith("text/event-stream") is stream


@pytest.mark.parametrize("name", ["transcriptions", "translations"])
async def test_a_recording_of_twelve_megabytes_is_transcribed(
    client: httpx.AsyncClient, stack: LocalStack, name: str
) -> None:
    """aibrix ends at four."""
    sound = bytes(range(256)) * 48_000
    path = f"/v1/audio/{name}?x=1"
    fields, files = {"model": " demo ", "stream": "True"}, {"file": ("x.wav", sound)}
    response = await client.post(path, data=fields, files=files)

    whole = expect_whole(stack, response, "single-pod-path")
    assert whole.request.path == path
    assert sound in whole.request.body
    assert b"\r\n\r\ndemo\r\n" in whole.request.body
    assert response.text.endswith("data: [DONE]\n\n")


async def test_xdit_gets_its_own_paths(client: httpx.AsyncClient, stack: LocalStack) -> None:
    """As the engine of the pod says it; roles of such pods mean nothing."""
    content = yaml.safe_load(stack.endpoints_file.read_text())
    addresses = [engine.address for engine in stack.decode]
    roleset = {"name": "r", "prefill": addresses[:1], "decode": addresses[1:]}
    content["models"].append({"name": PAINTER, "engine": "xdit", "rolesets": [roleset]})
    stack.endpoints_file.write_text(yaml.safe_dump(content))

    async def expect_painter() -> None:
        listed = (await client.get("/v1/models")).json()["data"]
        assert PAINTER in [model["id"] for model in listed]

    await eventually(expect_painter)
    for asked, own in (
        ("/v1/images/generations?n=1", "/generate?n=1"),
        ("/v1/video/generations", "/generatevideo"),
        ("/v1/images/edits", "/v1/images/edits"),
    ):
        body = json.dumps({"model": PAINTER, "prompt": "a cat"}).encode()
        response = await client.post(
            asked, content=body, headers={"content-type": "application/json"}
        )
        (sent,) = find_sent(stack, response)
        assert (sent.request.path, sent.request.body) == (own, body)
        assert response.headers["x-pd-decision"] == "aggregated;reason=single-pod-path"


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v1/files", "metadata service"),
        ("POST", "/v1/files", "metadata service"),
        ("GET", "/v1/batches/batch_1", "metadata service"),
        ("POST", "/v1/videos", "/v1/videos/sync"),
        ("GET", "/v1/videos/video_1/content", "/v1/videos/sync"),
        ("GET", "/v1/realtime?model=demo", "WebSocket"),
        ("POST", "/v1/moderations", "/v1/classify"),
        ("POST", "/v1/load_lora_adapter", "ModelAdapter"),
        ("POST", "/v1/unload_lora_adapter", "ModelAdapter"),
        ("POST", "/v1/v1/load_lora_adapter/", "ModelAdapter"),
        ("POST", "/sleep?level=1", "one engine"),
        ("POST", "/collective_rpc", "one engine"),
        ("POST", "/v1/runtime/models/wake", "one engine"),
    ],
)
async def test_what_is_known_elsewhere_is_refused_with_the_reason(
    client: httpx.AsyncClient, stack: LocalStack, method: str, path: str, says: str
) -> None:
    before = count_received(stack)
    body = {"model": "demo", "lora_name": "x", "lora_path": "/etc"} if method == "POST" else None
    error = expect_error(await client.request(method, path, json=body), 404, "unknown_path")
    assert says in error["message"]
    assert count_received(stack) == before


async def test_a_web_socket_is_refused(client: httpx.AsyncClient) -> None:
    handshake = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    answer = await client.get("/v1/realtime?model=demo", headers=handshake)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "upgrade_not_supported"


# --- Web pages -------------------------------------------------------------------------------


def ask(method: str, headers: str, origin: str = PAGE) -> dict[str, str]:
    """Return what a browser asks before a request that not every page may make."""
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }


@pytest.mark.parametrize("origin", [PAGE, "https://a.example.org", "https://a.b.example.org"])
async def test_a_page_is_told_that_it_may_ask(stack: LocalStack, origin: str) -> None:
    """It has no key yet, and neither the router nor an engine is asked."""
    before = count_received(stack)
    async with connect(stack) as browser:
        for method, path in (("POST", CHAT), ("DELETE", "/v1/responses/resp_1"), ("POST", "/x")):
            asked = ask(method, "authorization,content-type,x-stainless-os,x-own", origin)
            answer = await browser.options(path, headers=asked)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert method in answer.headers["access-control-allow-methods"].split(", ")
            allowed = answer.headers["access-control-allow-headers"].split(", ")
            assert {"authorization", "content-type", "x-stainless-os", "*"} <= set(allowed)
            assert "x-request-id" not in answer.headers
            assert "access-control-allow-credentials" not in answer.headers
    assert count_received(stack) == before

    async def counted() -> None:
        metrics = await read_metrics(stack)
        preflights = metrics.total("pdrouter_requests_total", outcome="local-reply", status="200")
        assert preflights >= 3
        assert metrics.total("gateway_request_model_success_total", model="") >= preflights
        assert metrics.total("gateway_request_model_fail_total", status_code="200") == 0

    await eventually(counted)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://chat.example.com", "https://example.org", "null"]
)
async def test_another_page_is_not(
    stack: LocalStack, client: httpx.AsyncClient, origin: str
) -> None:
    body = {"model": "demo", "messages": TURNS}
    for answer in (
        await client.options(CHAT, headers=ask("POST", "authorization", origin)),
        await client.post(CHAT, json=body, headers={"origin": origin}),
        await client.get("/nothing", headers={"origin": origin}),
    ):
        assert "access-control-allow-origin" not in answer.headers


async def test_a_page_may_read_every_answer(client: httpx.AsyncClient, stack: LocalStack) -> None:
    """Errors among them, whoever gives them: else it would see none of what they say."""
    page = {"origin": PAGE}
    body = {"model": "demo", "messages": TURNS, "max_tokens": 2}
    async with connect(stack) as without_key:
        answers = [
            (200, await client.post(CHAT, json=body, headers=page)),
            (200, await client.post(CHAT, json={**body, "stream": True}, headers=page)),
            (200, await client.get("/v1/models", headers=page)),
            (404, await client.post(CHAT, json={**body, "model": "absent"}, headers=page)),
            (404, await client.get("/nothing", headers=page)),
            (400, await client.post(CHAT, json={**body, "max_tokens": -1}, headers=page)),
            (413, await client.post(CHAT, content=b"x" * 2**24, headers=page)),
            (401, await without_key.post(CHAT, json=body, headers=page)),
        ]
    for status, answer in answers:
        assert answer.status_code == status, answer.text
        assert answer.headers["access-control-allow-origin"] == PAGE, status
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-pd-decision"} <= set(exposed)
        assert {"x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests"} <= set(exposed)
