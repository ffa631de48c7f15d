"""Every way to run Envoy: both routings, response bodies by the router or not, HTTP/1.1 and 2."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PATIENCE_S,
    PREFILL,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    find_sent,
    read_metrics,
)

from pdrouter.engines.split import Leg
from pdrouter.tools.envoy_config import ResponseBodyMode, Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
TOKENS = 12


@pytest.fixture(scope="module", params=Routing)
def routing(request: pytest.FixtureRequest) -> Routing:
    chosen: Routing = request.param
    return chosen


@pytest.fixture(
    scope="module",
    params=[
        (ResponseBodyMode.NONE, True),
        (ResponseBodyMode.STREAMED, True),
        (ResponseBodyMode.STREAMED, False),
    ],
    ids=["no-body", "streamed-and-overridden", "streamed"],
)
def stack_options(request: pytest.FixtureRequest, routing: Routing) -> StackOptions:
    response_body, override = request.param
    return StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        routing=routing,
        response_body=response_body,
        allow_mode_override=override,
    )


@pytest_asyncio.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"], loop_scope="module")
async def client(
    request: pytest.FixtureRequest, stack: LocalStack
) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(stack, http1=not request.param, http2=request.param) as connected:
        yield connected
    await expect_settled(stack)


async def count_messages(stack: LocalStack) -> int:
    """Return how many ext_proc messages Envoy has sent to the router."""
    async with httpx.AsyncClient(timeout=PATIENCE_S, verify=False) as client:
        page = await client.get(f"http://{stack.envoy.admin}/stats?filter=ext_proc")
    counters = dict(line.split(": ") for line in page.text.splitlines())
    for trouble in ("streams_failed", "spurious_msgs_received", "rejected_header_mutations"):
        assert int(counters[f"http.http.ext_proc.{trouble}"]) == 0, page.text
    return int(counters["http.http.ext_proc.stream_msgs_sent"])


def passes_bodies(options: StackOptions) -> bool:
    return options.response_body is ResponseBodyMode.STREAMED and not options.allow_mode_override


async def test_a_plain_request(
    client: httpx.AsyncClient, stack: LocalStack, stack_options: StackOptions
) -> None:
    before = await count_messages(stack)
    response = await client.post(CHAT, json=chat(max_tokens=TOKENS))
    _, decode = expect_disaggregated(stack, response)
    assert response.json()["usage"]["completion_tokens"] == TOKENS
    assert decode.request.headers["target-pod"] == decode.engine.address
    named = decode.request.headers["x-gateway-destination-endpoint"].split(",")
    assert named[0] == decode.engine.address
    assert len(named) == (2 if stack_options.routing is Routing.OVERRIDE_HOST else 1)
    assert set(named) <= {engine.address for engine in stack.decode}
    messages = await count_messages(stack) - before
    # Request headers, request body, response headers.
    assert messages > 3 if passes_bodies(stack_options) else messages == 3


async def test_a_streamed_request(
    client: httpx.AsyncClient, stack: LocalStack, stack_options: StackOptions
) -> None:
    before = await count_messages(stack)
    response = await client.post(CHAT, json=chat(max_tokens=TOKENS, stream=True))
    expect_disaggregated(stack, response)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert len(events) == TOKENS + 2
    assert events[-1] == "data: [DONE]"
    messages = await count_messages(stack) - before
    assert messages > 3 if passes_bodies(stack_options) else messages == 3


async def test_tokens_reach_the_client_while_the_engine_makes_more(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    request = chat(max_tokens=2_000, stream=True)
    async with client.stream("POST", CHAT, json=request) as response:
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith("data: {")
        _, decode = find_sent(stack, response)
        assert decode.request.outcome == "running"
        # The decode pod counts as busy for as long as the client gets tokens.
        loads = stack.router.ledger.snapshot()
        assert loads[decode.engine.address][Leg.DECODE].requests == 1
        assert (await read_metrics(stack)).total("pdrouter_requests_in_flight") == 1


async def test_a_request_that_is_served_whole(client: httpx.AsyncClient, stack: LocalStack) -> None:
    for stream in (False, True):
        response = await client.post(CHAT, json=chat(n=2, stream=stream))
        expect_whole(stack, response, "n")


async def test_an_answer_of_the_router_itself(client: httpx.AsyncClient, stack: LocalStack) -> None:
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "demo"
    expect_error(await client.get("/nothing"), 404, "unknown_path")
    expect_error(await client.post(CHAT, json={}), 400, "invalid_value", "model")
    refused = await client.post(CHAT, json=chat(tools=[]))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, 400)


async def test_an_error_of_the_decode_engine_reaches_the_client_unchanged(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await client.post("/v1/completions", json={"model": "demo", "prompt": "", "n": 2})
    expect_whole(stack, response, "n", status=400)
    assert response.json()["error"]["param"] == "prompt"

    async def counted() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_requests_total", outcome="engine-error", status="400") > 0

    await eventually(counted)


async def test_many_requests_at_once(client: httpx.AsyncClient, stack: LocalStack) -> None:
    responses = await asyncio.gather(
        *(client.post(CHAT, json=chat(stream=bool(i % 2), seed=i)) for i in range(24))
    )
    for response in responses:
        expect_disaggregated(stack, response)
    assert len({response.headers["x-request-id"] for response in responses}) == 24
