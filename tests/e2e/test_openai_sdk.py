"""The OpenAI SDK as a client, sync and async, and the two other APIs that get two legs."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import httpx
import openai
import pytest
import pytest_asyncio
from expectations import (
    chat,
    connect,
    count_received,
    expect_disaggregated,
    expect_error,
    expect_settled,
    run_checked_stack,
)

from pdrouter.openai.stored_responses import create_response_id
from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "Why is the sky blue? " * 8
MESSAGES = [{"role": "user", "content": PROMPT}]
ANSWER = re.compile(r"([0-9a-f]{8})-0 \1-1 \1-2 \1-3")
"""Four tokens of a simulated engine."""


class Sdk(Protocol):
    """One face over the sync and the async client: methods by their dotted name."""

    async def call(self, method: str, *arguments: Any, **members: Any) -> Any: ...

    async def collect(self, method: str, **members: Any) -> list[Any]: ...

    async def close(self) -> None: ...


class SyncSdk:
    def __init__(self, **options: Any) -> None:
        self._client = openai.OpenAI(**options)

    async def call(self, method: str, *arguments: Any, **members: Any) -> Any:
        return await asyncio.to_thread(self._method(method), *arguments, **members)

    async def collect(self, method: str, **members: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(self._method(method)(stream=True, **members)))

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = attrgetter(name)(self._client)
        return method


class AsyncSdk:
    def __init__(self, **options: Any) -> None:
        self._client = openai.AsyncOpenAI(**options)

    async def call(self, method: str, *arguments: Any, **members: Any) -> Any:
        result = attrgetter(method)(self._client)(*arguments, **members)
        # `models.list` gives pages: they are awaited, too, for the first.
        return await result

    async def collect(self, method: str, **members: Any) -> list[Any]:
        stream = await attrgetter(method)(self._client)(stream=True, **members)
        return [event async for event in stream]

    async def close(self) -> None:
        await self._client.close()


@pytest_asyncio.fixture(params=[SyncSdk, AsyncSdk], ids=["sync", "async"], loop_scope="module")
async def sdk(request: pytest.FixtureRequest, stack: LocalStack) -> AsyncIterator[Sdk]:
    client: Sdk = request.param(
        base_url=f"{stack.url}/v1", api_key="sk-client", max_retries=0, timeout=30
    )
    yield client
    await client.close()
    await expect_settled(stack)


async def test_chat(sdk: Sdk) -> None:
    answer = await sdk.call(
        "chat.completions.create", model="demo", messages=MESSAGES, max_tokens=4
    )
    assert answer.object == "chat.completion"
    assert answer.model == "demo"
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert ANSWER.fullmatch(choice.message.content)
    assert answer.usage.completion_tokens == 4
    # All but the last prompt token came from the prefill engine.
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


async def test_chat_with_the_newer_name_of_the_limit(sdk: Sdk) -> None:
    answer = await sdk.call(
        "chat.completions.create", model="demo", messages=MESSAGES, max_completion_tokens=4
    )
    assert ANSWER.fullmatch(answer.choices[0].message.content)


async def test_chat_stream(sdk: Sdk) -> None:
    chunks = await sdk.collect(
        "chat.completions.create", model="demo", messages=MESSAGES, max_tokens=4
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert ANSWER.fullmatch("".join(deltas))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


async def test_chat_stream_with_usage(sdk: Sdk) -> None:
    *chunks, last = await sdk.collect(
        "chat.completions.create",
        model="demo",
        messages=MESSAGES,
        max_tokens=4,
        stream_options={"include_usage": True},
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 4
    assert last.usage.total_tokens == last.usage.prompt_tokens + 4


async def test_completions(sdk: Sdk) -> None:
    answer = await sdk.call("completions.create", model="demo", prompt=PROMPT, max_tokens=4)
    assert answer.object == "text_completion"
    assert ANSWER.fullmatch(answer.choices[0].text)
    assert answer.usage.completion_tokens == 4


async def test_completions_stream_with_usage(sdk: Sdk) -> None:
    *chunks, last = await sdk.collect(
        "completions.create",
        model="demo",
        prompt=PROMPT,
        max_tokens=4,
        stream_options={"include_usage": True},
    )
    assert ANSWER.fullmatch("".join(chunk.choices[0].text for chunk in chunks))
    assert last.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("members", "decision"),
    [({"store": False}, "disaggregated"), ({}, "aggregated;reason=stateful-responses")],
    ids=["stateless", "stored"],
)
async def test_responses_get_two_legs_only_if_they_leave_nothing_behind(
    sdk: Sdk, members: dict[str, Any], decision: str
) -> None:
    raw = await sdk.call(
        "responses.with_raw_response.create",
        model="demo",
        input=PROMPT,
        max_output_tokens=4,
        **members,
    )
    assert raw.headers["x-pd-decision"] == decision
    answer = raw.parse()
    assert ANSWER.fullmatch(answer.output_text)
    assert answer.usage.output_tokens == 4


async def test_responses_that_are_kept_can_be_used_later(sdk: Sdk) -> None:
    first = await sdk.call("responses.create", model="demo", input=PROMPT, max_output_tokens=4)
    follow = await sdk.call(
        "responses.create", model="demo", input="And then?", previous_response_id=first.id
    )
    for response in (first, follow):
        again = await sdk.call("responses.retrieve", response.id)
        assert (again.id, again.output_text) == (response.id, response.output_text)
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await sdk.call("responses.cancel", response.id)
        await sdk.call("responses.delete", response.id)
        with pytest.raises(openai.NotFoundError, match="not found") as missing:
            await sdk.call("responses.retrieve", response.id)
        assert missing.value.param == "response_id"
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.call(
            "responses.create", model="demo", input="hi", previous_response_id=unknown_id()
        )
    assert caught.value.code == "previous_response_not_found"


def unknown_id() -> str:
    """The id of a response that a pod has kept that is gone."""
    return create_response_id("10.0.0.9:8000", "")


async def test_responses_stream(sdk: Sdk) -> None:
    events = await sdk.collect(
        "responses.create", model="demo", input=PROMPT, max_output_tokens=4, store=False
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert ANSWER.fullmatch("".join(deltas))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == 4


async def test_embeddings(sdk: Sdk) -> None:
    answer = await sdk.call("embeddings.create", model="demo", input=["one", "two"])
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert all(0 <= number <= 1 for item in answer.data for number in item.embedding)


async def test_models(sdk: Sdk) -> None:
    page = await sdk.call("models.list")
    assert [model.id for model in page.data] == ["demo"]
    model = await sdk.call("models.retrieve", "demo")
    assert (model.id, model.object) == ("demo", "model")


@pytest.mark.parametrize(
    ("method", "members", "error", "code", "param"),
    [
        (
            "chat.completions.create",
            {"model": "absent", "messages": MESSAGES},
            openai.NotFoundError,
            "model_not_found",
            "model",
        ),
        ("models.retrieve", {"model": "absent"}, openai.NotFoundError, "model_not_found", "model"),
        (
            "chat.completions.create",
            {"model": "demo", "messages": []},
            openai.BadRequestError,
            "invalid_value",
            "messages",
        ),
        (
            "completions.create",
            {"model": "demo", "prompt": []},
            openai.BadRequestError,
            "invalid_value",
            "prompt",
        ),
        # The router does not know this API, and says so.
        ("files.list", {}, openai.NotFoundError, "unknown_path", None),
    ],
)
async def test_errors_are_the_exceptions_of_the_sdk(
    sdk: Sdk,
    stack: LocalStack,
    method: str,
    members: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    before = count_received(stack)
    with pytest.raises(error) as raised:
        await sdk.call(method, **members)
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.type == "invalid_request_error"
    assert raised.value.request_id
    assert count_received(stack) == before


async def test_an_error_of_the_engine_reaches_the_client_unchanged(
    sdk: Sdk, stack: LocalStack
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await sdk.call("chat.completions.create", model="demo", messages=MESSAGES, tools=[])
    assert raised.value.param == "tools"
    assert raised.value.type == "Bad Request"
    request_id = raised.value.request_id
    # The prefill engine refused it; the decode engine never saw it.
    refused = [r for e in stack.prefill for r in e.requests if request_id in r.headers.values()]
    assert [request.status for request in refused] == [400]
    assert not [r for e in stack.decode for r in e.requests if request_id in r.headers.values()]


async def test_a_wrong_key_is_an_authentication_error(stack_options: StackOptions) -> None:
    options = replace(stack_options, environment={"AIBRIX_AUTH_BEARER_TOKEN": "sk-right"})
    async with run_checked_stack(options) as stack:
        for kind in (SyncSdk, AsyncSdk):
            wrong: Sdk = kind(base_url=f"{stack.url}/v1", api_key="sk-wrong", max_retries=0)
            for method, members in (
                ("chat.completions.create", {"model": "demo", "messages": MESSAGES}),
                ("models.list", {}),
            ):
                with pytest.raises(openai.AuthenticationError) as raised:
                    await wrong.call(method, **members)
                assert raised.value.code == "invalid_api_key"
                assert raised.value.type == "authentication_error"
                assert "sk-" not in str(raised.value)
            await wrong.close()
            assert count_received(stack) == 0
        for kind in (SyncSdk, AsyncSdk):
            right: Sdk = kind(base_url=f"{stack.url}/v1", api_key="sk-right", max_retries=0)
            await right.call("models.list")
            await right.call("chat.completions.create", model="demo", messages=MESSAGES)
            await right.close()
        async with connect(stack) as client:
            path = "/v1/chat/completions"
            expect_error(await client.post(path, json=chat()), 401, "invalid_api_key", "api_key")
            for headers in ({"x-api-key": "sk-right"}, {"authorization": "bearer  sk-right"}):
                answer = await client.post(path, json=chat(), headers=headers)
                expect_disaggregated(stack, answer)


def read_events(text: str) -> Iterator[tuple[str, Any]]:
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        yield fields.get("event", ""), None if data == "[DONE]" else json.loads(data)


MESSAGES_REQUEST = {"model": "demo", "max_tokens": 4, "system": "Be brief.", "messages": MESSAGES}
GENERATE_REQUEST = {
    "model": "demo",
    "token_ids": list(range(64)),
    "sampling_params": {"max_tokens": 4},
}


async def test_messages(client: httpx.AsyncClient, stack: LocalStack) -> None:
    response = await client.post("/v1/messages", json=MESSAGES_REQUEST)
    expect_disaggregated(stack, response)
    answer = response.json()
    assert answer["type"] == "message"
    assert ANSWER.fullmatch(answer["content"][0]["text"])
    assert answer["usage"]["output_tokens"] == 4
    assert answer["usage"]["cache_read_input_tokens"] > 0


async def test_messages_stream(client: httpx.AsyncClient, stack: LocalStack) -> None:
    response = await client.post("/v1/messages", json={**MESSAGES_REQUEST, "stream": True})
    expect_disaggregated(stack, response)
    events = list(read_events(response.text))
    assert [events[0][0], events[-1][0]] == ["message_start", "message_stop"]
    deltas = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert ANSWER.fullmatch("".join(deltas))


async def test_generate(client: httpx.AsyncClient, stack: LocalStack) -> None:
    response = await client.post("/inference/v1/generate", json=GENERATE_REQUEST)
    expect_disaggregated(stack, response)
    assert len(response.json()["choices"][0]["token_ids"]) == 4


async def test_generate_stream(client: httpx.AsyncClient, stack: LocalStack) -> None:
    plain = await client.post("/inference/v1/generate", json=GENERATE_REQUEST)
    response = await client.post(
        "/inference/v1/generate", json={**GENERATE_REQUEST, "stream": True}
    )
    expect_disaggregated(stack, response)
    *chunks, (_, done) = read_events(response.text)
    assert done is None
    tokens = [token for _, data in chunks for token in data["choices"][0]["token_ids"]]
    assert tokens == plain.json()["choices"][0]["token_ids"]
