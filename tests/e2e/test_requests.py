"""What becomes of a client's request: its bytes, its two legs or its one, its mistakes."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from expectations import (
    chat,
    connect,
    count_received,
    expect_disaggregated,
    expect_error,
    expect_whole,
    find_sent,
    run_checked_stack,
)

from pdrouter.tools.local_stack import LocalStack, StackOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
GENERATE = "/inference/v1/generate"

TEXT = "Why is the sky blue? " * 8
TURNS = [{"role": "user", "content": TEXT}]

JSON = {"content-type": "application/json"}


async def post_raw(
    client: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await client.post(path, content=body, headers={**JSON, **(headers or {})})


# --- Bytes -----------------------------------------------------------------------------------

UNTOUCHED = (
    b'"model"\n:\t"demo"',
    b'"zeta" : [ 1 ,2,  3 ]',
    b'"messages":[{"content" : "caf\\u00e9 \\ud83d\\ude00 \\/ \xc3\xa9 \\u0000" , "role":"user"}]',
    b'"seed":123456789012345678901234567890123456789',
    b'"temperature":1.0e-0',
    b'"top_p"  :  0.10000000000000000000000000000001',
    b'"logit_bias":{"2" : 1e400, "1":-0.0, "2":-1E+2}',
    b'"metadata":{"a":1}',
    b'"metadata":{"a":2}',
    b'"al\\u0070ha":"\\ud83d\\ude00"',
    '"ключ":"значение"'.encode(),
    b'"":{}',
    b'"stop":null',
)
"""Members as a client may write them, which are none of the router's business."""


@pytest.mark.parametrize("separator", [b",", b" ,\r\n\t"], ids=["tight", "loose"])
async def test_untouched_members_keep_their_bytes_and_their_order_on_both_legs(
    client: httpx.AsyncClient, stack: LocalStack, separator: bytes
) -> None:
    members = list(UNTOUCHED)
    members.insert(2, b'"max_tokens" : 4')
    members.insert(5, b'"stream":true')
    members.insert(7, b'"stream_options":{"include_usage":true }')
    body = b" {" + separator.join(members) + b"\n}\n"
    prefill, decode = expect_disaggregated(stack, await post_raw(client, CHAT, body))
    for leg in (prefill, decode):
        position = 0
        for member in UNTOUCHED:
            position = leg.request.body.index(member, position) + len(member)
    # On the decode leg that is everything but the handle.
    kept, added = cut_handle(decode.request.body)
    assert kept == body
    assert json.loads(added)["do_remote_prefill"] is True


def cut_handle(body: bytes) -> tuple[bytes, bytes]:
    """Return a decode body without the handle, and the handle."""
    name = b',"kv_transfer_params":'
    start = body.index(name)
    handle_start = start + len(name)
    _, length = json.JSONDecoder().raw_decode(body[handle_start:].decode())
    end = handle_start + length
    return body[:start] + body[end:], body[handle_start:end]


async def test_a_request_that_is_served_whole_keeps_every_byte(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    body = b"\t{" + b" , ".join((*UNTOUCHED, b'"n" : 2', b'"max_tokens": 3')) + b" } "
    whole = expect_whole(stack, await post_raw(client, CHAT, body), "n")
    assert whole.request.body == body


FULL_SIZE = [
    (CHAT, {"messages": TURNS, "max_tokens": 9, "max_completion_tokens": 4}),
    (CHAT, {"messages": TURNS, "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": TURNS}),
    (CHAT, {"messages": TURNS, "max_tokens": 4.0, "n": 1.0, "use_beam_search": "no"}),
    (COMPLETIONS, {"prompt": TEXT, "max_tokens": "4", "n": "1", "echo": 0}),
    (COMPLETIONS, {"prompt": TEXT, "max_tokens": 4, "truncate_prompt_tokens": 9}),
    (RESPONSES, {"input": TEXT, "max_output_tokens": 4.0, "store": "false"}),
    (COMPLETIONS, {"prompt": TEXT, "max_tokens": 4}),
    (COMPLETIONS, {"prompt": [TEXT]}),
    (COMPLETIONS, {"prompt": list(range(40))}),
    (COMPLETIONS, {"prompt": [list(range(40))]}),
    (MESSAGES, {"messages": TURNS, "max_tokens": 4}),
    (RESPONSES, {"input": TEXT, "max_output_tokens": 4, "store": False}),
    (RESPONSES, {"input": TURNS, "store": False, "background": False}),
    (GENERATE, {"token_ids": list(range(40)), "sampling_params": {"max_tokens": 4, "n": 1}}),
    (GENERATE, {"token_ids": list(range(40)), "sampling_params": {}}),
]


@pytest.mark.parametrize(("path", "members"), FULL_SIZE)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_every_split_request_is_accepted_by_strict_engines(
    client: httpx.AsyncClient,
    stack: LocalStack,
    path: str,
    members: dict[str, Any],
    stream: bool,
) -> None:
    body = {"model": "demo", **members}
    if path == GENERATE:
        body["sampling_params"] = {"min_tokens": 3, **body["sampling_params"]}
    else:
        body["min_tokens"] = 3
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post(path, json=body)
    prefill, decode = expect_disaggregated(stack, response)
    kept, _ = cut_handle(decode.request.body)
    assert json.loads(kept) == body
    assert json.loads(prefill.request.body)["stream"] is False


@pytest.mark.parametrize(
    "query", ["?api-version=2024-10-01", "?a=%2F%20&a=b+c&empty=&x", "?q=/v1/models?x#"]
)
async def test_the_query_string_is_the_same_on_both_legs(
    client: httpx.AsyncClient, stack: LocalStack, query: str
) -> None:
    query = query.removesuffix("#")
    prefill, decode = expect_disaggregated(stack, await client.post(CHAT + query, json=chat()))
    assert prefill.request.path == decode.request.path == CHAT + query
    whole = expect_whole(stack, await client.post(CHAT + query, json=chat(n=2)), "n")
    assert whole.request.path == CHAT + query


# --- Headers ---------------------------------------------------------------------------------

FOR_ENGINES = {
    "authorization": "Bearer sk-client",
    "x-api-key": "sk-client",
    "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    "tracestate": "vendor=1",
    "baggage": "user=1",
    "x-session-id": "session",
    "x-aibrix-session-key": "session",
    "x-vllm-priority": "3",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "beta",
    "content-type": "application/json; charset=utf-8",
}


async def test_both_engines_get_the_headers_that_they_need(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    body = json.dumps(chat()).encode()
    for sent in expect_disaggregated(
        stack, await client.post(CHAT, content=body, headers=FOR_ENGINES)
    ):
        received = sent.request.headers
        assert {name: received.get(name) for name in FOR_ENGINES} == FOR_ENGINES


async def test_the_prefill_engine_gets_no_other_header_unless_the_operator_says_so(
    client: httpx.AsyncClient, stack: LocalStack, stack_options: StackOptions
) -> None:
    others = {
        "cookie": "a=b",
        "x-tenant": "blue",
        "te": "trailers",
        "accept-encoding": "gzip",
        "user": "somebody",
        "x-forwarded-for": "192.0.2.1",
    }
    response = await client.post(CHAT, json=chat(), headers=others)
    prefill, _ = expect_disaggregated(stack, response)
    assert not others.keys() & prefill.request.headers.keys()
    options = replace(stack_options, environment={"PDROUTER_FORWARD_HEADERS": "X-Tenant, user"})
    async with run_checked_stack(options) as other, connect(other) as direct:
        response = await direct.post(CHAT, json=chat(), headers=others)
        prefill, _ = expect_disaggregated(other, response)
        assert others.keys() & prefill.request.headers.keys() == {"x-tenant", "user"}


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_the_media_type_is_the_prefill_engines_to_refuse(
    client: httpx.AsyncClient, stack: LocalStack, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    body = json.dumps(chat()).encode()
    response = await client.post(CHAT, content=body, headers=headers)
    assert response.status_code == 400
    assert "Unsupported Media Type" in response.json()["error"]["message"]
    # A decode engine that refused would leave blocks behind.
    (refused,) = find_sent(stack, response)
    assert refused.engine in stack.prefill


# --- One leg ---------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/x.png"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}

MISFITS: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"prompt": [TEXT, TEXT]}, "several-prompts"),
    (COMPLETIONS, {"prompt": [[1, 2, 3], [4, 5]]}, "several-prompts"),
    (COMPLETIONS, {"prompt": TEXT, "n": 2}, "n"),
    (CHAT, {"messages": TURNS, "n": 3}, "n"),
    (GENERATE, {"token_ids": [1, 2, 3], "sampling_params": {"n": 2}}, "n"),
    (COMPLETIONS, {"prompt": TEXT, "use_beam_search": True}, "beam-search"),
    (CHAT, {"messages": TURNS, "use_beam_search": True}, "beam-search"),
    (COMPLETIONS, {"prompt": TEXT, "echo": True}, "echo"),
    (COMPLETIONS, {"prompt": TEXT, "echo": True, "max_tokens": 0}, "echo"),
    (CHAT, {"messages": TURNS, "echo": True}, "echo"),
    (COMPLETIONS, {"prompt": TEXT, "prompt_logprobs": 1}, "prompt-logprobs"),
    (CHAT, {"messages": TURNS, "prompt_logprobs": 0}, "prompt-logprobs"),
    (
        GENERATE,
        {"token_ids": [1, 2, 3], "sampling_params": {"prompt_logprobs": 1}},
        "prompt-logprobs",
    ),
    (RESPONSES, {"input": TEXT}, "stateful-responses"),
    (RESPONSES, {"input": TEXT, "store": True}, "stateful-responses"),
    (RESPONSES, {"input": TEXT, "store": None}, "stateful-responses"),
    (RESPONSES, {"input": TEXT, "background": True}, "stateful-responses"),
    (RESPONSES, {"input": TEXT, "store": False, "conversation": "conv_1"}, "stateful-responses"),
    (
        COMPLETIONS,
        {"prompt": "too long " * 20_000, "truncate_prompt_tokens": -1, "max_tokens": 40},
        "truncated-prompt",
    ),
    (
        RESPONSES,
        {
            "input": "too long " * 20_000,
            "truncation": "auto",
            "store": False,
            "max_output_tokens": 40,
        },
        "truncated-prompt",
    ),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "multimodal"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"image_url": IMAGE["image_url"]}]}]},
        "multimodal",
    ),
    (
        CHAT,
        {"messages": [*TURNS, {"role": "user", "content": [{"type": "text", "text": "?"}, SOUND]}]},
        "multimodal",
    ),
    (CHAT, {"messages": [{"role": "user", "type": 7, "content": [IMAGE]}]}, "multimodal"),
    (
        RESPONSES,
        {
            "input": [
                *TURNS,
                {
                    "type": "computer_call_output",
                    "call_id": "call_1",
                    "output": {"type": "computer_screenshot", "image_url": "http://192.0.2.1/x"},
                },
            ],
            "store": False,
        },
        "multimodal",
    ),
]


@pytest.mark.parametrize(("path", "members", "reason"), MISFITS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_request_that_does_not_fit_two_legs_goes_whole_to_a_decode_pod(
    client: httpx.AsyncClient,
    stack: LocalStack,
    path: str,
    members: dict[str, Any],
    reason: str,
    stream: bool,
) -> None:
    # Engines do not stream these; whether the router splits them does not depend on it.
    stream = stream and reason not in {"beam-search", "prompt-logprobs"}
    body = {"model": "demo", "stream": stream, **members}
    whole = expect_whole(stack, await client.post(path, json=body), reason)
    sent = json.loads(whole.request.body)
    # An answer that is kept gets an id that names its pod.
    kept = path == RESPONSES and members.get("store") is not False
    assert bool(sent.pop("request_id", "")) is kept
    assert sent == body


async def test_best_of_is_left_to_one_engine_to_refuse(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await client.post(
        COMPLETIONS, json={"model": "demo", "prompt": TEXT, "n": 1, "best_of": 2}
    )
    expect_whole(stack, response, "best-of", status=400)
    assert response.json()["error"]["param"] == "best_of"


NO_NUMBERS: list[Any] = [0, -4, 6000.5, "many", "", [1], {}]
NO_MINIMA: list[Any] = ["many", [], 1.5, -1]
NO_STREAM_OPTIONS: list[Any] = [[], "usage", True, 1]
REFUSED_BY_ENGINES: list[tuple[str, dict[str, Any], str]] = [
    *((CHAT, {"max_tokens": value}, "max_tokens") for value in NO_NUMBERS),
    *((CHAT, {"n": value}, "n") for value in NO_NUMBERS),
    (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
    (COMPLETIONS, {"max_tokens": 0}, "max_tokens"),
    (MESSAGES, {"max_tokens": -4}, "max_tokens"),
    (MESSAGES, {"max_tokens": None}, "max_tokens"),
    (RESPONSES, {"max_output_tokens": 0, "store": False}, "max_output_tokens"),
    (GENERATE, {"sampling_params": {"max_tokens": 0}}, "max_tokens"),
    # These are not on the prefill leg, so a decode engine would refuse what is prefilled already.
    *((CHAT, {"min_tokens": value}, "min_tokens") for value in NO_MINIMA),
    (CHAT, {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    (CHAT, {"min_tokens": 5, "max_tokens": 8, "max_completion_tokens": 4}, "min_tokens"),
    (GENERATE, {"sampling_params": {"min_tokens": 9, "max_tokens": 8}}, "min_tokens"),
    *(
        (CHAT, {"stream": True, "stream_options": value}, "stream_options")
        for value in NO_STREAM_OPTIONS
    ),
    (CHAT, {"stream": "perhaps"}, "stream"),
    (CHAT, {"stream": 2}, "stream"),
    (CHAT, {"stream": []}, "stream"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
]


@pytest.mark.parametrize(("path", "members", "param"), REFUSED_BY_ENGINES)
async def test_a_value_that_engines_refuse_is_refused_by_one_engine_in_its_words(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: dict[str, Any], param: str
) -> None:
    body = {"model": "demo", **MINIMAL[path], **members}
    response = await client.post(path, json=body)
    expect_whole(stack, response, "invalid-value", status=400)
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("value", [1, "true", "yes", 1.0])
async def test_a_stream_may_be_asked_for_as_engines_allow(
    client: httpx.AsyncClient, stack: LocalStack, value: Any
) -> None:
    response = await client.post(CHAT, json=chat(stream=value))
    expect_disaggregated(stack, response)
    assert response.headers["content-type"].startswith("text/event-stream")


FITS = [
    (COMPLETIONS, {"prompt": TEXT, "n": 1, "best_of": 1, "echo": False, "prompt_logprobs": None}),
    (CHAT, {"messages": TURNS, "n": None, "use_beam_search": False}),
    # The words of a multimodal request, in an ordinary text.
    (CHAT, {"messages": [{"role": "user", "content": 'say "image_url" and "file" ' * 4}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": '"image"' * 9}]}]}),
]


@pytest.mark.parametrize(("path", "members"), FITS)
async def test_a_request_that_only_looks_like_a_misfit_gets_two_legs(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: dict[str, Any]
) -> None:
    expect_disaggregated(stack, await client.post(path, json={"model": "demo", **members}))


async def test_multimodal_prompts_get_two_legs_if_the_operator_says_so(
    stack_options: StackOptions,
) -> None:
    options = replace(stack_options, environment={"PDROUTER_SPLIT_MULTIMODAL": "true"})
    turns = [*TURNS, {"role": "user", "content": [IMAGE]}]
    async with run_checked_stack(options) as stack, connect(stack) as client:
        response = await client.post(CHAT, json={"model": "demo", "messages": turns})
        expect_disaggregated(stack, response)


SERVED_SINGLE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": "one"}),
    ("/v1/embeddings", {"input": ["one", "two"]}),
    ("/rerank", {"query": "a", "documents": ["b", "c"]}),
    ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    ("/v2/rerank", {"query": "a", "documents": ["b", "c"]}),
    ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/score", {"text_1": "a", "text_2": "b"}),
    ("/classify", {"input": "a"}),
    ("/pooling", {"input": "a"}),
    ("/tokenize", {"prompt": "a b c"}),
    ("/detokenize", {"tokens": [1, 2]}),
]


@pytest.mark.parametrize(("path", "members"), SERVED_SINGLE)
async def test_a_path_without_a_prefill_leg_is_served_by_a_decode_pod(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: dict[str, Any]
) -> None:
    response = await client.post(path, json={"model": "demo", **members})
    whole = expect_whole(stack, response, "single-pod-path")
    assert whole.request.path == path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v2/embed",
        "/generative_scoring",
        "/v1/classify",
        "/v1/pooling",
    ],
)
async def test_a_path_that_the_engines_do_not_know_is_theirs_to_refuse(
    client: httpx.AsyncClient, stack: LocalStack, path: str
) -> None:
    response = await client.post(path, json={"model": "demo", "input": "a"})
    expect_whole(stack, response, "single-pod-path", status=404)
    assert response.json() == {"detail": "Not Found"}


# --- The router's own answers ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models", "/v1/models/demo"])
async def test_what_needs_no_engine_is_answered_by_the_router(
    client: httpx.AsyncClient, stack: LocalStack, path: str
) -> None:
    before = count_received(stack)
    response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert isinstance(response.json(), dict)
    head = await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == response.headers["content-length"]
    assert count_received(stack) == before


@pytest.mark.parametrize("encoding", ["", "Identity", "identity, identity"])
async def test_a_body_that_is_not_encoded_may_say_so_in_any_way(
    client: httpx.AsyncClient, stack: LocalStack, encoding: str
) -> None:
    headers = {"content-encoding": encoding}
    expect_disaggregated(stack, await client.post(CHAT, json=chat(), headers=headers))


async def test_an_unknown_model_is_told_the_served_ones(client: httpx.AsyncClient) -> None:
    error = expect_error(
        await client.post(CHAT, json=chat("absent")), 404, "model_not_found", "model"
    )
    assert error["message"].endswith("served: 'demo'")


@pytest.mark.parametrize("path", ["/chat/completions", CHAT + "/", "/v1" + CHAT])
async def test_a_path_that_is_nearly_right_is_told_the_right_one(
    client: httpx.AsyncClient, path: str
) -> None:
    error = expect_error(await client.post(path, json=chat()), 404, "unknown_path")
    assert f"did you mean {CHAT!r}?" in error["message"]


# --- Mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, b"{}"], ids=["no body", "body"])
@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/files?x"])
async def test_an_unknown_path_is_a_404(
    client: httpx.AsyncClient, stack: LocalStack, path: str, body: bytes | None
) -> None:
    before = count_received(stack)
    for method in ("GET", "POST", "DELETE"):
        response = await client.request(method, path, content=body)
        expect_error(response, 404, "unknown_path")
    assert count_received(stack) == before


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *((method, CHAT, "POST") for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH")),
        ("GET", COMPLETIONS + "?x=1", "POST"),
        ("GET", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/demo", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_a_405_that_names_the_right_one(
    client: httpx.AsyncClient, stack: LocalStack, method: str, path: str, allowed: str
) -> None:
    before = count_received(stack)
    for content in (None, b"{}"):
        response = await client.request(method, path, content=content)
        expect_error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == allowed
    assert count_received(stack) == before


MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TURNS},
    COMPLETIONS: {"prompt": TEXT},
    MESSAGES: {"messages": TURNS, "max_tokens": 4},
    RESPONSES: {"input": TEXT},
    GENERATE: {"token_ids": [1, 2, 3]},
    "/v1/embeddings": {"input": "a"},
}


INVALID_VALUES: dict[tuple[str, str], list[Any]] = {
    (CHAT, "model"): [None, "", 3, True, ["demo"], {}],
    ("/v1/embeddings", "model"): [1],
    (CHAT, "messages"): [None, [], "hello", {}, 3, True],
    (MESSAGES, "messages"): [None, [], "hello", {}],
    (COMPLETIONS, "prompt"): [None, [], {}, 3, False],
    (RESPONSES, "input"): [None, [], {}, 3],
    ("/v1/embeddings", "input"): [None, [], {}, 3],
    (GENERATE, "token_ids"): [None, [], "1", {}, 3],
    (GENERATE, "sampling_params"): [[], "none", 3],
}

INVALID: list[tuple[str, dict[str, Any], str]] = [
    *(
        (path, {member: value}, member)
        for (path, member), values in INVALID_VALUES.items()
        for value in values
    ),
]


@pytest.mark.parametrize(("path", "members", "param"), INVALID)
async def test_an_invalid_member_is_refused_before_any_engine_gets_anything(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: dict[str, Any], param: str
) -> None:
    before = count_received(stack)
    response = await client.post(path, json={"model": "demo", **MINIMAL[path], **members})
    error = expect_error(response, 400, "invalid_value", param)
    assert error["type"] == "invalid_request_error"
    assert repr(param) in error["message"]
    assert count_received(stack) == before


@pytest.mark.parametrize(("path", "members"), MINIMAL.items())
async def test_a_missing_member_is_refused_like_a_null_one(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: dict[str, Any]
) -> None:
    before = count_received(stack)
    prompt = next(iter(members))
    expect_error(await client.post(path, json=members), 400, "invalid_value", "model")
    expect_error(await client.post(path, json={"model": "demo"}), 400, "invalid_value", prompt)
    assert count_received(stack) == before


GOOD = json.dumps(chat()).encode()

BROKEN = {
    "nothing": b"",
    "white space": b" \n",
    "null": b"null",
    "array": b"[" + GOOD + b"]",
    "string": b'"hello"',
    "number": b"1",
    "cut off": GOOD[:-1],
    "two objects": GOOD + GOOD,
    "trailing comma": GOOD[:-1] + b",}",
    "single quotes": GOOD.replace(b'"', b"'"),
    "comment": b"/* */" + GOOD,
    "NaN": GOOD[:-1] + b',"temperature":NaN}',
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "Latin-1 in a value": GOOD[:-1] + b',"user":"caf\xe9"}',
    "Latin-1 in a prompt": GOOD.replace(b"blue", b"\xff\xfe"),
    "Latin-1 in a name": GOOD[:-1] + b',"caf\xe9":1}',
    "half a surrogate pair": GOOD[:-1] + b',"user":"\\ud800"}',
    "surrogate in UTF-8": GOOD[:-1] + b',"user":"\xed\xa0\x80"}',
    "overlong UTF-8": GOOD[:-1] + b',"user":"\xc0\xaf"}',
    "control character": GOOD[:-1] + b',"us\x00er":"a"}',
    "too deep": GOOD[:-1] + b',"user":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_a_body_that_is_no_json_object_in_utf_8_is_refused(
    client: httpx.AsyncClient, stack: LocalStack, body: bytes
) -> None:
    before = count_received(stack)
    expect_error(await post_raw(client, CHAT, body), 400, "invalid_body")
    assert count_received(stack) == before


TWICE = [
    (CHAT, b'"model":"demo"', "model"),
    (CHAT, b'"mod\\u0065l":"other"', "model"),
    (CHAT, b'"messages":[]', "messages"),
    (CHAT, b'"max_tokens":4,"max_tokens":5', "max_tokens"),
    (CHAT, b'"stream":true,"stream":false', "stream"),
    (CHAT, b'"stream":true,"stream_options":{},"stream_options":{}', "stream_options"),
    (CHAT, b'"n":1,"n":2', "n"),
    (CHAT, b'"kv_transfer_params":1,"kv_transfer_params":{}', "kv_transfer_params"),
    (CHAT, b'"rid":"a","rid":"b"', "rid"),
    (GENERATE, b'"sampling_params":{},"sampling_params":{}', "sampling_params"),
    (GENERATE, b'"sampling_params":{"max_tokens":1,"max_tokens":9}', "max_tokens"),
    (RESPONSES, b'"store":false,"store":true', "store"),
]


@pytest.mark.parametrize(("path", "members", "param"), TWICE)
async def test_a_control_member_that_occurs_twice_is_refused(
    client: httpx.AsyncClient, stack: LocalStack, path: str, members: bytes, param: str
) -> None:
    before = count_received(stack)
    body = json.dumps({"model": "demo", **MINIMAL[path]}).encode()[:-1] + b"," + members + b"}"
    error = expect_error(await post_raw(client, path, body), 400, "invalid_value", param)
    assert "more than once" in error["message"]
    assert count_received(stack) == before


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient, stack: LocalStack) -> None:
    before = count_received(stack)
    response = await post_raw(client, CHAT, GOOD, {"content-encoding": "gzip"})
    expect_error(response, 415, "unsupported_encoding", "content-encoding")
    assert count_received(stack) == before


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": []}, "tools"),
        ({"messages": ["no object"]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
)
async def test_what_the_prefill_engine_refuses_reaches_the_client_unchanged(
    client: httpx.AsyncClient, stack: LocalStack, members: dict[str, Any], param: str
) -> None:
    response = await client.post(CHAT, json=chat(**members))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, 400, "Bad Request")
    assert response.headers["x-pd-decision"] == "disaggregated"
    (refused,) = find_sent(stack, response)
    assert refused.engine in stack.prefill
    assert refused.request.status == 400


async def test_what_only_the_decode_leg_shows_is_the_decode_engines_to_refuse(
    stack_options: StackOptions,
) -> None:
    # Nobody fetches the blocks of such a request: they wait for the end of their lease.
    options = replace(
        stack_options, prefill=[replace(each, kv_lease_s=0.1) for each in stack_options.prefill]
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        response = await client.post(CHAT, json=chat(max_tokens=10**30))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "input_tokens"
        prefill, decode = find_sent(stack, response)
        assert (prefill.request.status, decode.request.status) == (200, 400)
