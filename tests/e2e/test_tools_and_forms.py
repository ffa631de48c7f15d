"""Calls of tools, JSON of a schema, probabilities, counted tokens, recordings and images."""

import io
import json
import math
import wave
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import pytest_asyncio
from expectations import count_received, expect_disaggregated, expect_error, expect_whole

from pdrouter.tools.local_stack import LocalStack

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: list[Any] = [{"role": "user", "content": "How warm is it in Paris? " * 8}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3},
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 2, "maximum": 3},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}},
]
NAMED = {"type": "function", "function": {"name": "get_time"}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(stack: LocalStack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("auto", "get_weather"),
        ("required", "get_weather"),
        (NAMED, "get_time"),
    ],
)
async def test_a_tool_is_called(
    sdk: openai.AsyncOpenAI, client: httpx.AsyncClient, stack: LocalStack, choice: Any, name: str
) -> None:
    body = {"model": "demo", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice}
    expect_disaggregated(stack, await client.post("/v1/chat/completions", json=body))
    answer = await sdk.chat.completions.create(**body)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.content is None
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert (call.function.name, bool(call.id)) == (name, True)
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, SCHEMA if name == "get_weather" else {"type": "object"})

    async with sdk.chat.completions.stream(**body) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls is not None
    (streamed,) = final.choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments


async def test_a_result_is_answered_with_text(sdk: openai.AsyncOpenAI) -> None:
    first = await sdk.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS)
    assert first.choices[0].message.tool_calls is not None
    call = first.choices[0].message.tool_calls[0]
    turns = [*MESSAGES, first.choices[0].message.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": "22"})
    second = await sdk.chat.completions.create(model="demo", messages=turns, tools=TOOLS)
    assert second.choices[0].message.content
    assert second.choices[0].finish_reason == "stop"


async def test_a_tool_is_called_in_the_responses_api(sdk: openai.AsyncOpenAI) -> None:
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": SCHEMA}]
    options: Any = {"model": "demo", "input": "How warm is it?", "tools": tools, "store": False}
    answer = await sdk.responses.create(**options)
    (call,) = answer.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    async with sdk.responses.stream(**options) as stream:
        (streamed,) = (await stream.get_final_response()).output
    assert streamed.type == "function_call"
    assert (streamed.name, streamed.arguments) == ("get_weather", call.arguments)


async def test_a_tool_is_called_in_anthropics_api(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    body = {
        "model": "demo",
        "max_tokens": 99,
        "messages": MESSAGES,
        "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    }
    response = await client.post("/v1/messages", json=body)
    expect_disaggregated(stack, response)
    (block,) = response.json()["content"]
    assert (block["type"], block["name"]) == ("tool_use", "get_weather")
    assert response.json()["stop_reason"] == "tool_use"
    jsonschema.validate(block["input"], SCHEMA)

    response = await client.post("/v1/messages", json={**body, "stream": True})
    events = [
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: ")
    ]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == block["input"]


async def test_a_limit_cuts_a_call(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, max_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_the_answer_is_json_of_the_schema(
    sdk: openai.AsyncOpenAI, client: httpx.AsyncClient
) -> None:
    chat = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, response_format=FORMAT, max_tokens=200
    )
    jsonschema.validate(json.loads(chat.choices[0].message.content or ""), SCHEMA)
    assert chat.choices[0].finish_reason == "stop"
    chunks = await sdk.chat.completions.create(
        model="demo", messages=MESSAGES, response_format=FORMAT, stream=True
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
    assert text == chat.choices[0].message.content
    text_format: Any = {"format": {"type": "json_schema", "name": "weather", "schema": SCHEMA}}
    response = await sdk.responses.create(model="demo", input="?", text=text_format, store=False)
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    body = {"model": "demo", "prompt": "?" * 99, "response_format": {"type": "json_object"}}
    completion = (await client.post("/v1/completions", json=body)).json()
    assert isinstance(json.loads(completion["choices"][0]["text"]), dict)


async def test_probabilities_are_plausible(sdk: openai.AsyncOpenAI) -> None:
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 4}
    answer = await sdk.chat.completions.create(logprobs=True, top_logprobs=3, **options)
    assert answer.choices[0].logprobs is not None
    tokens = answer.choices[0].logprobs.content or []
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    for token in tokens:
        likely = [one.logprob for one in token.top_logprobs]
        assert (token.top_logprobs[0].token, likely[0]) == (token.token, token.logprob)
        assert likely == sorted(likely, reverse=True)
        assert sum(map(math.exp, likely)) <= 1
        assert bytes(token.bytes or ()).decode() == token.token
        assert len({one.token for one in token.top_logprobs}) == 3
    chunks = await sdk.chat.completions.create(
        logprobs=True, top_logprobs=3, stream=True, **options
    )
    streamed = [
        token
        async for chunk in chunks
        for choice in chunk.choices
        for token in (choice.logprobs and choice.logprobs.content) or ()
    ]
    assert streamed == tokens

    completion = await sdk.completions.create(
        model="demo", prompt="?" * 99, logprobs=2, max_tokens=3
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == completion.choices[0].text
    assert [len(top) for top in logprobs.top_logprobs or ()] == [2, 2, 2]
    starts = [len("".join((logprobs.tokens or [])[:index])) for index in range(3)]
    assert logprobs.text_offset == starts


async def test_nothing_is_told_of_probabilities_unless_asked(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=2)
    assert answer.choices[0].logprobs is None


async def test_tokens_are_counted(client: httpx.AsyncClient, stack: LocalStack) -> None:
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 5}
    response = await client.post("/v1/messages/count_tokens", json=body)
    expect_whole(stack, response, "single-pod-path")
    answer = (await client.post("/v1/messages", json=body)).json()
    usage = answer["usage"]
    counted = response.json()["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_engines_say_that_their_answers_are_made_up(
    sdk: openai.AsyncOpenAI, client: httpx.AsyncClient
) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, max_tokens=2
    )
    assert "made up" in raw.headers["x-simulated-engine"]
    assert "made up" in (raw.parse().system_fingerprint or "")
    response = await client.post("/v1/embeddings", json={"model": "demo", "input": "x"})
    assert "made up" in response.headers["x-simulated-engine"]


# --- Forms -----------------------------------------------------------------------------------

SOUND = b"RIFF\r\n--" + bytes(range(256)) * 4000
"""A megabyte in which there is anything that a form may have."""


async def test_a_recording_is_transcribed(sdk: openai.AsyncOpenAI) -> None:
    raw = await sdk.audio.transcriptions.with_raw_response.create(
        model="demo", file=("sound.wav", SOUND), prompt="demo", temperature=0.5
    )
    assert "made up" in raw.parse().text
    assert raw.headers["x-pd-decision"] == "aggregated;reason=single-pod-path"


@pytest.mark.parametrize("name", ["transcriptions", "translations"])
async def test_a_transcript_may_be_streamed(
    client: httpx.AsyncClient, stack: LocalStack, name: str
) -> None:
    fields = {"stream": "true", "model": "demo"}
    files = {"file": ("x", SOUND)}
    response = await client.post(f"/v1/audio/{name}", data=fields, files=files)
    whole = expect_whole(stack, response, "single-pod-path")
    assert SOUND in whole.request.body
    assert whole.request.headers["content-type"] == response.request.headers["content-type"]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


async def test_images_are_edited_and_made(sdk: openai.AsyncOpenAI) -> None:
    images: Any = [("a.png", SOUND), ("b.png", SOUND)]
    edited = await sdk.images.edit(model="demo", image=images, prompt="brighter")
    made = await sdk.images.generate(model="demo", prompt="a cat")
    for answer in (edited, made):
        assert answer.data
        assert b64decode(answer.data[0].b64_json or "").startswith(b"\x89PNG\r\n")


async def test_videos_are_made(client: httpx.AsyncClient, stack: LocalStack) -> None:
    body = {"model": "demo", "prompt": "a cat that sleeps"}
    response = await client.post("/v1/video/generations", json=body)
    expect_whole(stack, response, "single-pod-path")


async def test_text_is_spoken(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.audio.speech.create(model="demo", voice="alloy", input="hello")
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert sound.getnframes() > 0


@pytest.mark.parametrize(
    ("data", "files", "code", "param"),
    [
        ({"prompt": "x"}, {"file": ("model", SOUND)}, "invalid_value", "model"),
        ({}, {"model": ("x", b"demo"), "file": ("y", b"z")}, "invalid_value", "model"),
        ({"model": ["demo", "demo"]}, {"file": ("x", SOUND)}, "invalid_value", "model"),
        ({"model": "absent"}, {"file": ("x", SOUND)}, "model_not_found", "model"),
        ({f"x{number}": "" for number in range(300)}, {"file": ("x", b"")}, "invalid_body", None),
    ],
)
async def test_a_form_that_names_no_model_is_refused(
    client: httpx.AsyncClient,
    stack: LocalStack,
    data: dict[str, Any],
    files: dict[str, Any],
    code: str,
    param: str | None,
) -> None:
    before = count_received(stack)
    response = await client.post("/v1/audio/transcriptions", data=data, files=files)
    expect_error(response, 404 if code == "model_not_found" else 400, code, param)
    assert count_received(stack) == before


async def test_a_recording_is_no_json(client: httpx.AsyncClient, stack: LocalStack) -> None:
    before = count_received(stack)
    body = {"model": "demo", "file": "x"}
    response = await client.post("/v1/audio/transcriptions", json=body)
    error = expect_error(response, 400, "invalid_content_type", "content-type")
    assert "multipart/form-data" in error["message"]
    assert count_received(stack) == before
