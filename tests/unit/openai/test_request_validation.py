"""Validation of requests, and which of them fit two legs."""

import json
import re
from string import ascii_lowercase
from typing import Any

import pytest
from factories import MODEL, TWO_LEG_BODIES, make_body, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.media import MAX_PARTS
from pdrouter.openai.paths import ENDPOINTS, Forms, split_path
from pdrouter.openai.request import InferenceRequest, parse_request

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
GENERATE = "/inference/v1/generate"
EMBEDDINGS = "/v1/embeddings"
TWO_LEG_PATHS = tuple(TWO_LEG_BODIES)
JSON_PATHS = tuple(path for path, end in ENDPOINTS.items() if end.forms is not Forms.ALWAYS)
ONE_LEG_PATHS = tuple(path for path in JSON_PATHS if ENDPOINTS[path].legs == 1)
LIMITS = [
    (CHAT, "max_tokens"),
    (CHAT, "max_completion_tokens"),
    (COMPLETIONS, "max_tokens"),
    (MESSAGES, "max_tokens"),
    (RESPONSES, "max_output_tokens"),
    (GENERATE, "sampling_params.max_tokens"),
]


def build(path: str, name: str, value: Any) -> bytes:
    """A body in which a member, or a member of a member, has that value."""
    outer, _, inner = name.partition(".")
    return make_body(path, **{outer: {inner: value} if inner else value})


def build_raw(path: str, name: str, value: str) -> bytes:
    """As `build`, for a value as it is spelled."""
    return build(path, name, "<value>").replace(b'"<value>"', value.encode())


def reject(path: str, data: bytes) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        make_request(path, data)
    return caught.value


def test_paths_of_two_legs_are_those_that_may_be_split() -> None:
    assert set(TWO_LEG_PATHS) == {e.path for e in ENDPOINTS.values() if e.legs == 2}
    assert all(path == endpoint.path for path, endpoint in ENDPOINTS.items())


AIBRIX_PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"),
    *("/v1/embeddings", "/v1/rerank", "/v1/classify"),
    *("/v1/images/generations", "/v1/video/generations"),
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
}
VLLM_PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"),
    *("/inference/v1/generate", "/v1/chat/completions/batch", "/v1/messages/count_tokens"),
    *("/v1/chat/completions/render", "/v1/completions/render", "/tokenize", "/detokenize"),
    *("/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/generative_scoring"),
    *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"),
    *("/v1/images/generations", "/v1/images/edits"),
}


def test_what_aibrix_and_vllm_serve_is_served() -> None:
    assert set(ENDPOINTS) >= AIBRIX_PATHS | VLLM_PATHS


@pytest.mark.parametrize("path", TWO_LEG_PATHS)
def test_the_least_body_of_each_path_gets_two_legs(path: str) -> None:
    data = make_body(path)
    request = make_request(path, data)
    assert request == InferenceRequest(
        endpoint=ENDPOINTS[path],
        query="",
        body=request.body,
        prompt=request.prompt,
        sampling=None,
        model=MODEL,
        stream=False,
        prompt_name=ENDPOINTS[path].prompts[0],
        max_output_tokens=7 if path == MESSAGES else None,
        misfits=(),
        listed_tokens=3 if path == GENERATE else None,
    )
    assert request.body.data == data


@pytest.mark.parametrize(
    ("path", "bare", "query"),
    [
        ("/v1/models", "/v1/models", ""),
        ("/v1/models?", "/v1/models", "?"),
        ("/v1/x?a=1&b=?", "/v1/x", "?a=1&b=?"),
        ("?a", "", "?a"),
        ("", "", ""),
    ],
)
def test_a_path_is_split_from_its_query_string(path: str, bare: str, query: str) -> None:
    assert split_path(path) == (bare, query)


def test_the_query_string_is_kept() -> None:
    request = parse_request(
        ENDPOINTS[CHAT],
        "?beta=true",
        make_body(CHAT),
        transfer_members=TRANSFER_MEMBERS,
        split_multimodal=False,
    )
    assert request.query == "?beta=true"


@pytest.mark.parametrize(
    ("path", "members", "limit"),
    [
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 3}, 3),
        (CHAT, {"max_tokens": None}, None),
        (CHAT, {"max_tokens": 10**30}, 10**9),
        (RESPONSES, {"max_output_tokens": 7, "max_tokens": 1}, 7),
        (GENERATE, {"sampling_params": {"max_tokens": 4}}, 4),
    ],
)
def test_the_limit_of_the_answer_is_known(
    path: str, members: dict[str, Any], limit: int | None
) -> None:
    assert make_request(path, **members).max_output_tokens == limit


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [(b"[1,2, 3]", 3), (b"[ 1 ]", 1), (b'"1,2"', None), (b'["1"]', None), (b"[[1,2]]", None)],
)
def test_token_ids_are_counted(prompt: bytes, tokens: int | None) -> None:
    body = b'{"model":"m","prompt":%b,"max_tokens":5}' % prompt
    assert make_request(COMPLETIONS, body).listed_tokens == tokens


def test_a_renamed_model_is_all_that_changes_in_the_body() -> None:
    request = make_request(CHAT, b'{ "messages":[{}], "model" : "ns\\/m" ,"seed":1.0}')
    renamed = request.rename('an "é"')
    body = bytes(renamed.edit({}, ()))
    assert body == '{ "messages":[{}], "model" : "an \\"é\\"" ,"seed":1.0}'.encode()
    assert structs.replace(renamed, engine_model=None) == request
    assert request.model == renamed.model == "ns/m"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'"x"', b"{", b'{"model":"m"', b'{"a":"\xff"}', b'{"a":NaN}', b"\x00"],
)
@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, "/rerank"])
def test_what_is_not_a_json_object_is_refused(path: str, data: bytes) -> None:
    rejected = reject(path, data)
    assert (rejected.status, rejected.code, rejected.param) == (400, "invalid_body", None)


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("model", [..., None, "", 1, True, ["m"], {"name": "m"}])
def test_the_model_must_be_a_string_that_is_not_empty(path: str, model: Any) -> None:
    data = make_body(path, model=model, input="x")
    rejected = reject(path, data)
    assert (rejected.status, rejected.code, rejected.param) == (400, "invalid_value", "model")
    assert "'model'" in rejected.message


def test_the_model_is_decoded() -> None:
    data = make_body(CHAT).replace(b'"llama"', rb'"ll\u0061m\u00e1"')
    assert make_request(CHAT, data).model == "llamá"


_GOOD_PROMPTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{}]}),
    (CHAT, {"messages": ["not a message, but that is the engine's business"]}),
    (MESSAGES, {"messages": [{"role": "user", "content": ""}]}),
    (COMPLETIONS, {"prompt": ""}),
    (COMPLETIONS, {"prompt": "x"}),
    (COMPLETIONS, {"prompt": ["x"]}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
    (COMPLETIONS, {"prompt": [[1, 2, 3]]}),
    (COMPLETIONS, {"prompt": None, "prompt_embeds": "AAAA"}),
    (COMPLETIONS, {"prompt": ..., "prompt_embeds": ["AAAA"]}),
    (RESPONSES, {"input": ""}),
    (RESPONSES, {"input": [{"role": "user", "content": "x"}]}),
    (GENERATE, {"token_ids": [0]}),
    (EMBEDDINGS, {"input": "x"}),
    (EMBEDDINGS, {"input": ["x", "y"]}),
    (EMBEDDINGS, {"messages": [{"role": "user", "content": "x"}]}),
]


@pytest.mark.parametrize(("path", "members"), _GOOD_PROMPTS)
def test_prompts_that_are_allowed(path: str, members: dict[str, Any]) -> None:
    make_request(path, **members)


_BAD_PROMPTS: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"messages": ...}, "messages", "is required"),
    (CHAT, {"messages": None}, "messages", "is required"),
    (CHAT, {"messages": []}, "messages", "must not be empty"),
    (CHAT, {"messages": "hi"}, "messages", "must be a list"),
    (CHAT, {"messages": {"role": "user"}}, "messages", "must be a list"),
    (CHAT, {"messages": ..., "prompt": "hi"}, "messages", "is required"),
    (MESSAGES, {"messages": ...}, "messages", "is required"),
    (MESSAGES, {"messages": True}, "messages", "must be a list"),
    (COMPLETIONS, {"prompt": ...}, "prompt", "is required"),
    (COMPLETIONS, {"prompt": None}, "prompt", "is required"),
    (COMPLETIONS, {"prompt": []}, "prompt", "must not be empty"),
    (COMPLETIONS, {"prompt": 1}, "prompt", "must be a string or a list"),
    (COMPLETIONS, {"prompt": {}}, "prompt", "must be a string or a list"),
    (COMPLETIONS, {"prompt": False}, "prompt", "must be a string or a list"),
    (COMPLETIONS, {"prompt": ..., "prompt_embeds": 1}, "prompt_embeds", "must be a string or"),
    (COMPLETIONS, {"prompt": ..., "prompt_embeds": []}, "prompt_embeds", "must not be empty"),
    (RESPONSES, {"input": ...}, "input", "is required"),
    (RESPONSES, {"input": []}, "input", "must not be empty"),
    (RESPONSES, {"input": 7}, "input", "must be a string or a list"),
    (GENERATE, {"token_ids": ...}, "token_ids", "is required"),
    (GENERATE, {"token_ids": []}, "token_ids", "must not be empty"),
    (GENERATE, {"token_ids": "1"}, "token_ids", "must be a list"),
    (EMBEDDINGS, {}, "input", "is required"),
    (EMBEDDINGS, {"input": None, "messages": None}, "input", "is required"),
    (EMBEDDINGS, {"messages": []}, "messages", "must not be empty"),
]


@pytest.mark.parametrize(("path", "members", "param", "message"), _BAD_PROMPTS)
def test_prompts_that_are_refused(
    path: str, members: dict[str, Any], param: str, message: str
) -> None:
    rejected = reject(path, make_body(path, **members))
    assert (rejected.status, rejected.code, rejected.param) == (400, "invalid_value", param)
    assert message in rejected.message


def test_an_empty_list_is_seen_whatever_its_spacing() -> None:
    assert reject(CHAT, b'{"model":"m","messages": [ \r\n\t ] }').param == "messages"


_NUMBERS = [*LIMITS, *((path, "n") for path in TWO_LEG_PATHS[:4])]


@pytest.mark.parametrize(("path", "name"), _NUMBERS)
@pytest.mark.parametrize(
    "value", ["1", "1.0", "1e0", '"1"', '" +1 "', '"1.0"', r'"\u0031"', "true", "null"]
)
def test_numbers_are_read_as_engines_read_them(path: str, name: str, value: str) -> None:
    request = make_request(path, build_raw(path, name, value))
    missing = (path, name, value) == (MESSAGES, "max_tokens", "null")
    assert request.whole == ("invalid-value" if missing else None)
    if name != "n" and value != "null":
        assert request.max_output_tokens == 1


@pytest.mark.parametrize(("path", "name"), LIMITS)
@pytest.mark.parametrize("value", ["6000", "6000.0", "6e3", '"6_000"', "9223372036854775808"])
def test_limits_may_be_large(path: str, name: str, value: str) -> None:
    request = make_request(path, build_raw(path, name, value))
    assert request.whole is None
    assert request.max_output_tokens == min(10**9, int(float(value.strip('"'))))


@pytest.mark.parametrize(("path", "name"), _NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        *("0", "-0", "-1", "6000.5", "1e-1", "1e400", "9" * 5000, "false", "[1]", "{}"),
        *('""', '"many"', '"1e2"', '"0x10"', '"-1"'),
    ],
)
def test_a_number_that_engines_refuse_is_for_one_engine_to_refuse(
    path: str, name: str, value: str
) -> None:
    request = make_request(path, build_raw(path, name, value))
    assert request.whole == "invalid-value"
    # A limit beside it stands, and nothing is a limit.
    nothing = name != "n" and value in {"0", "-0", "false"}
    beside = 7 if (path, name) == (MESSAGES, "n") else None
    assert request.max_output_tokens == (0 if nothing else beside)


def test_no_number_is_read_where_there_is_no_second_leg() -> None:
    assert make_request(EMBEDDINGS, input="x", n="many", max_tokens=0, stream="maybe")


def test_options_stand_in_the_object_that_has_them() -> None:
    assert make_request(GENERATE, n=2, max_tokens=0, truncate_prompt_tokens=5).whole is None
    assert make_request(CHAT, sampling_params={"n": 2}).whole is None


def test_a_limit_of_another_path_is_the_engines_business() -> None:
    make_request(CHAT, max_output_tokens="many")
    make_request(RESPONSES, max_tokens=0)
    request = make_request(GENERATE, max_tokens=0, sampling_params={"max_tokens": 1})
    assert request.whole is None


@pytest.mark.parametrize("value", [[], "x", 1, True])
def test_sampling_params_must_be_an_object(value: Any) -> None:
    rejected = reject(GENERATE, make_body(GENERATE, sampling_params=value))
    assert (rejected.code, rejected.param) == ("invalid_value", "sampling_params")


def test_what_sampling_params_have_too_much_of_is_told() -> None:
    for members, reason in (
        ({"n" * 257: 1}, "256 bytes"),
        (dict.fromkeys(map(str, range(1001))), "1000 members"),
    ):
        rejected = reject(GENERATE, make_body(GENERATE, sampling_params=members))
        assert (rejected.code, rejected.param) == ("invalid_value", "sampling_params")
        assert reason in rejected.message


@pytest.mark.parametrize("value", [..., None])
def test_sampling_params_may_be_absent(value: Any) -> None:
    assert make_request(GENERATE, sampling_params=value).sampling is None


@pytest.mark.parametrize("path", TWO_LEG_PATHS)
@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", "", " true", [], {}, [True]])
def test_a_stream_that_engines_refuse_is_for_one_engine_to_refuse(path: str, value: Any) -> None:
    request = make_request(path, make_body(path, stream=value))
    assert request.whole == "invalid-value"
    assert request.stream is False


@pytest.mark.parametrize("path", TWO_LEG_PATHS)
@pytest.mark.parametrize(
    ("value", "stream"),
    [
        *((value, True) for value in (True, 1, 1.0, "true", "True", "1", "yes", "on", "T", "y")),
        *((value, False) for value in (False, None, ..., 0, 0.0, "false", "0", "no", "OFF")),
    ],
)
def test_stream_is_read_as_engines_read_it(path: str, value: Any, stream: bool) -> None:
    request = make_request(path, stream=value)
    assert request.stream is stream
    assert request.whole is None


@pytest.mark.parametrize("stream", [..., None, False, 0, "no"])
@pytest.mark.parametrize("options", [{"include_usage": True}, True, 1, "x"])
def test_stream_options_without_stream_are_for_one_engine_to_refuse(
    stream: Any, options: Any
) -> None:
    assert make_request(CHAT, stream=stream, stream_options=options).whole == "invalid-value"


@pytest.mark.parametrize(
    ("stream", "options"),
    [
        (True, {"include_usage": True}),
        (1, {"include_usage": True}),
        (True, None),
        (False, None),
        (..., None),
        (..., {}),
        (False, False),
    ],
)
def test_stream_options_are_allowed_with_stream_or_empty(stream: Any, options: Any) -> None:
    assert make_request(CHAT, stream=stream, stream_options=options).whole is None


@pytest.mark.parametrize(
    ("path", "name", "spelled"),
    [
        (CHAT, "model", '"model":"m"'),
        (CHAT, "messages", '"messages":[{}]'),
        (CHAT, "max_tokens", '"max_tokens":1,"max_tokens":1'),
        (CHAT, "stream", r'"stream":true,"str\u0065am":false'),
        (CHAT, "n", '"n":1,"n":2'),
        (CHAT, "kv_transfer_params", '"kv_transfer_params":null,"kv_transfer_params":{}'),
        (CHAT, "bootstrap_room", '"bootstrap_room":1,"bootstrap_room":2'),
        (CHAT, "vllm_xargs", '"vllm_xargs":{"kv_transfer_params":1},"vllm_xargs":{}'),
        (CHAT, "truncate_prompt_tokens", '"truncate_prompt_tokens":1,"truncate_prompt_tokens":-1'),
        (RESPONSES, "truncation", '"truncation":"disabled","truncation":"auto"'),
        (COMPLETIONS, "prompt", '"prompt":"y"'),
        (COMPLETIONS, "echo", '"echo":true,"echo":false'),
        (RESPONSES, "store", '"store":false'),
        (GENERATE, "sampling_params", '"sampling_params":{},"sampling_params":{}'),
        (GENERATE, "max_tokens", '"sampling_params":{"max_tokens":1,"max_tokens":2}'),
        (GENERATE, "n", '"sampling_params":{"n":1,"n":2}'),
        (
            GENERATE,
            "extra_args",
            '"sampling_params":{"extra_args":{"kv_transfer_params":{}},"extra_args":{}}',
        ),
    ],
)
def test_a_control_member_that_occurs_twice_is_refused(path: str, name: str, spelled: str) -> None:
    rejected = reject(path, make_body(path)[:-1] + b"," + spelled.encode() + b"}")
    assert (rejected.status, rejected.code, rejected.param) == (400, "invalid_value", name)
    assert "more than once" in rejected.message


def test_other_members_may_occur_twice() -> None:
    data = make_body(CHAT)[:-1] + b',"user":"a","user":"b"}'
    assert make_request(CHAT, data).body.data == data


@pytest.mark.parametrize("path", ONE_LEG_PATHS)
def test_paths_of_one_leg_go_whole_to_one_pod(path: str) -> None:
    request = make_request(path, input="x", n=0, best_of=2, echo=True)
    assert request.whole == "single-pod-path"


_WHOLE: list[tuple[str, dict[str, Any], str | None]] = [
    # Several prompts, or one that looks like several.
    (COMPLETIONS, {"prompt": ["one"]}, None),
    (COMPLETIONS, {"prompt": ["one", "two"]}, "several-prompts"),
    (COMPLETIONS, {"prompt": [1, 2]}, None),
    (COMPLETIONS, {"prompt": [[1, 2]]}, None),
    (COMPLETIONS, {"prompt": [[1, 2], [3]]}, "several-prompts"),
    (COMPLETIONS, {"prompt": ["one", ["two"]]}, "several-prompts"),
    (COMPLETIONS, {"prompt": ['a", "b']}, None),
    (COMPLETIONS, {"prompt": None, "prompt_embeds": ["AAAA"]}, None),
    (COMPLETIONS, {"prompt": None, "prompt_embeds": ["AAAA", "BBBB"]}, "several-prompts"),
    (COMPLETIONS, {"prompt": "", "prompt_embeds": "AAAA"}, None),
    (COMPLETIONS, {"prompt": "", "prompt_embeds": ["AAAA", "BBBB"]}, "several-prompts"),
    (COMPLETIONS, {"prompt": "hi", "prompt_embeds": "AAAA"}, "several-prompts"),
    (CHAT, {"messages": [{"role": "user"}, {"role": "assistant"}]}, None),
    (RESPONSES, {"input": [{"role": "user"}, {"role": "assistant"}]}, None),
    # Several choices.
    *((path, {"n": 1}, None) for path in (CHAT, COMPLETIONS)),
    *((path, {"n": None}, None) for path in (CHAT, COMPLETIONS)),
    *((path, {"n": 2}, "n") for path in (CHAT, COMPLETIONS)),
    *((CHAT, {"n": value}, "n") for value in (2.0, "2", "1_0", 10**18)),
    (COMPLETIONS, {"best_of": 1}, None),
    (COMPLETIONS, {"best_of": None}, None),
    (COMPLETIONS, {"best_of": 2}, "best-of"),
    (COMPLETIONS, {"best_of": "2"}, "best-of"),
    (COMPLETIONS, {"best_of": 1.0}, None),
    (COMPLETIONS, {"best_of": "1"}, None),
    (COMPLETIONS, {"best_of": "x"}, "best-of"),
    (COMPLETIONS, {"best_of": 0}, "best-of"),
    (CHAT, {"use_beam_search": False}, None),
    (CHAT, {"use_beam_search": True}, "beam-search"),
    (CHAT, {"use_beam_search": "yes"}, "beam-search"),
    (CHAT, {"use_beam_search": "no"}, None),
    (CHAT, {"use_beam_search": 0}, None),
    (CHAT, {"use_beam_search": "perhaps"}, "beam-search"),
    # The decode engine computes the whole prompt again.
    (COMPLETIONS, {"echo": False}, None),
    (COMPLETIONS, {"echo": None}, None),
    (COMPLETIONS, {"echo": True}, "echo"),
    (COMPLETIONS, {"echo": 1}, "echo"),
    (COMPLETIONS, {"echo": "true"}, "echo"),
    (CHAT, {"echo": True}, "echo"),
    (COMPLETIONS, {"echo": 0}, None),
    (COMPLETIONS, {"echo": "f"}, None),
    (COMPLETIONS, {"echo": []}, "echo"),
    (COMPLETIONS, {"echo": True, "max_tokens": 0}, "echo"),
    (COMPLETIONS, {"prompt_logprobs": None}, None),
    (COMPLETIONS, {"prompt_logprobs": 0}, "prompt-logprobs"),
    (CHAT, {"prompt_logprobs": 5}, "prompt-logprobs"),
    (COMPLETIONS, {"logprobs": 5}, None),
    # State.
    (RESPONSES, {"store": ...}, "stateful-responses"),
    (RESPONSES, {"store": None}, "stateful-responses"),
    (RESPONSES, {"store": True}, "stateful-responses"),
    (RESPONSES, {"store": 0}, None),
    (RESPONSES, {"store": "false"}, None),
    (RESPONSES, {"store": 1}, "stateful-responses"),
    (RESPONSES, {"store": "perhaps"}, "stateful-responses"),
    (RESPONSES, {"background": True}, "stateful-responses"),
    (RESPONSES, {"background": "off"}, None),
    (RESPONSES, {"background": 1}, "stateful-responses"),
    (RESPONSES, {"background": False}, None),
    (RESPONSES, {"previous_response_id": "r"}, "stateful-responses"),
    (RESPONSES, {"previous_response_id": None}, None),
    (RESPONSES, {"conversation": {"id": "c"}}, "stateful-responses"),
    (RESPONSES, {"conversation": None}, None),
    (CHAT, {"store": True}, None),
    # A prompt that is cut to what the limit of the answer leaves of the window.
    *((path, {"truncate_prompt_tokens": -1}, "truncated-prompt") for path in TWO_LEG_PATHS),
    (CHAT, {"truncate_prompt_tokens": -1, "max_tokens": 40}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": "-1"}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": -1.0}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": -2}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": 0}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": False}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": "all"}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": [100]}, "truncated-prompt"),
    (CHAT, {"truncate_prompt_tokens": None}, None),
    (CHAT, {"truncate_prompt_tokens": 100}, None),
    (CHAT, {"truncate_prompt_tokens": "100"}, None),
    (CHAT, {"truncate_prompt_tokens": 100, "truncation_side": "left"}, None),
    (GENERATE, {"sampling_params": {"truncate_prompt_tokens": -1}}, "truncated-prompt"),
    (GENERATE, {"sampling_params": {"truncate_prompt_tokens": 9}}, None),
    (RESPONSES, {"truncation": "auto", "max_output_tokens": 40}, "truncated-prompt"),
    (RESPONSES, {"truncation": "disabled"}, None),
    (RESPONSES, {"truncation": None}, "truncated-prompt"),
    (RESPONSES, {"truncation": "else"}, "truncated-prompt"),
    (CHAT, {"truncation": "auto"}, None),
    # The prefill leg would have the limit that is missing.
    (MESSAGES, {"max_tokens": ...}, "invalid-value"),
    (MESSAGES, {"max_tokens": None}, "invalid-value"),
    # Options that are nested.
    (GENERATE, {"sampling_params": {"n": 1}}, None),
    (GENERATE, {"sampling_params": {"n": 2}}, "n"),
    (GENERATE, {"sampling_params": {"best_of": 2}}, "best-of"),
    (GENERATE, {"sampling_params": {"prompt_logprobs": 0}}, "prompt-logprobs"),
    (GENERATE, {"sampling_params": {"prompt_logprobs": None}}, None),
    (GENERATE, {"sampling_params": {}}, None),
    # What vLLM splits without harm.
    (CHAT, {"tools": [{"type": "function"}], "tool_choice": "auto"}, None),
    (CHAT, {"response_format": {"type": "json_object"}, "priority": 1}, None),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
]


@pytest.mark.parametrize(("path", "members", "whole"), _WHOLE)
def test_requests_that_do_not_fit_two_legs_say_why(
    path: str, members: dict[str, Any], whole: str | None
) -> None:
    assert make_request(path, **members).whole == whole


def _chat_part(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]}


_MULTIMODAL: list[tuple[str, dict[str, Any], bool]] = [
    (CHAT, _chat_part({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), True),
    (CHAT, _chat_part({"type": "input_audio", "input_audio": {}}), True),
    (CHAT, _chat_part({"type": "video_url", "video_url": {}}), True),
    (CHAT, _chat_part({"type": "audio_url"}), True),
    (CHAT, _chat_part({"type": "file", "file": {}}), True),
    (MESSAGES, _chat_part({"type": "image", "source": {}}), True),
    (MESSAGES, _chat_part({"type": "document", "source": {}}), True),
    (MESSAGES, _chat_part({"type": "tool_result", "content": [{"type": "image"}]}), True),
    (MESSAGES, _chat_part({"type": "tool_result", "content": "image"}), False),
    (RESPONSES, {"input": [{"content": [{"type": "input_image"}]}]}, True),
    (CHAT, {"messages": [{"content": ["look", {"type": "image_url"}]}]}, True),
    (RESPONSES, {"input": [{"content": [{"type": "input_file"}]}]}, True),
    # Parts without a type are told by their keys, those with a `uuid` even by keys without value.
    (CHAT, _chat_part({"image_url": {"url": "https://x/y.png"}}), True),
    (CHAT, _chat_part({"image_url": "https://x/y.png"}), True),
    (CHAT, _chat_part({"type": None, "image_url": "https://x/y.png"}), True),
    (CHAT, _chat_part({"image_pil": "AAAA"}), True),
    (CHAT, _chat_part({"image_embeds": "AAAA"}), True),
    (CHAT, _chat_part({"input_audio": {"data": "AAAA", "format": "wav"}}), True),
    (CHAT, _chat_part({"audio_url": "https://x/y.wav"}), True),
    (CHAT, _chat_part({"audio_embeds": "AAAA"}), True),
    (CHAT, _chat_part({"video_url": "https://x/y.mp4"}), True),
    (CHAT, _chat_part({"video_embeds": "AAAA"}), True),
    (CHAT, _chat_part({"file": {"file_data": "AAAA"}}), True),
    (CHAT, _chat_part({"image_url": None, "uuid": "seen-before"}), True),
    (CHAT, _chat_part({"type": "image_url", "image_url": None, "uuid": "seen-before"}), True),
    (CHAT, _chat_part({"type": "text", "text": "x", "image_url": {"url": "https://x"}}), True),
    (CHAT, _chat_part({"type": "text", "text": "x", "image_url": None, "file": None}), False),
    (CHAT, _chat_part({"type": "text", "text": "x", "image_url": None, "uuid": None}), False),
    (CHAT, _chat_part({"text": "image_url"}), False),
    (CHAT, _chat_part({"refusal": "image_url"}), False),
    (CHAT, _chat_part({"thinking": "image_url"}), False),
    (CHAT, _chat_part({"type": "tool_reference", "name": "image_url"}), False),
    *((CHAT, _chat_part({"type": kind}), True) for kind in ("image", "audio", "video")),
    *((CHAT, _chat_part({"type": f"{kind}_embeds"}), True) for kind in ("audio", "video")),
    (MESSAGES, _chat_part({"type": "tool_result", "content": [{"type": "document"}]}), True),
    (MESSAGES, _chat_part({"type": "container_upload", "file_id": "f"}), True),
    (MESSAGES, _chat_part({"type": "search_result", "content": [{"type": "text"}]}), False),
    (RESPONSES, {"input": [{"type": "input_image", "image_url": "https://x"}]}, True),
    (RESPONSES, {"input": [{"output": [{"type": "input_image"}]}]}, True),
    (RESPONSES, {"input": [{"type": "function_call_output", "output": "image_url"}]}, False),
    (RESPONSES, {"input": [{"type": "function_call", "arguments": "{}"}]}, False),
    # The output of a computer call is one part, not a list of them.
    (RESPONSES, {"input": [{"output": {"type": "computer_screenshot", "image_url": "x"}}]}, True),
    (RESPONSES, {"input": [{"output": {"type": "computer_screenshot", "file_id": "f"}}]}, True),
    (RESPONSES, {"input": [{"output": {"type": "text", "text": "image_url"}}]}, False),
    (CHAT, {"messages": [{"role": "user", "content": {"image_url": "x"}}]}, True),
    # What is odd beside an image, engines may overlook.
    *(
        (CHAT, _chat_part({"type": kind, "image_url": "x"}), True)
        for kind in (7, True, [1], {"a": 1})
    ),
    (CHAT, _chat_part({"type": "x" * 300, "image_url": "x"}), True),
    (CHAT, {"messages": [{"type": 7}, {"content": [{"type": "image_url"}]}]}, True),
    *(
        (CHAT, {"messages": [odd, {"content": [odd, {"type": "image_url"}]}]}, True)
        for odd in (None, 1, "x", [], [{"type": "image_url"}], True)
    ),
    (CHAT, _chat_part({"type": 7, "text": "image_url"}), False),
    (COMPLETIONS, {"prompt": list(range(MAX_PARTS + 1))}, False),
    (GENERATE, {"features": {"mm_hashes": {"image": ["h"]}}}, True),
    (GENERATE, {"features": None}, False),
    (CHAT, {"features": {"mm_hashes": {}}}, False),
    (CHAT, _chat_part({"type": "text", "text": '{"type": "image_url"}'}), False),
    (CHAT, _chat_part({"type": "text", "text": "image_url"}), False),
    (CHAT, {"messages": [{"role": "user", "content": "image_url"}]}, False),
    (CHAT, {"messages": [{"role": "user", "name": "file", "content": "x"}]}, False),
    (CHAT, {"messages": [{"role": "user", "name": "file", "content": [{"type": "text"}]}]}, False),
    (CHAT, {"messages": [{"role": "assistant", "name": "file", "content": None}]}, False),
    (CHAT, {"messages": [{"role": "assistant", "name": "file"}]}, False),
    (CHAT, {"messages": ["file", 1]}, False),
    (CHAT, _chat_part("file"), False),
    (RESPONSES, {"input": "file"}, False),
    (COMPLETIONS, {"prompt": "file"}, False),
]


@pytest.mark.parametrize(("path", "members", "multimodal"), _MULTIMODAL)
def test_prompts_with_images_sound_or_files_are_split_only_if_that_is_wanted(
    path: str, members: dict[str, Any], multimodal: bool
) -> None:
    data = make_body(path, **members)
    assert make_request(path, data).whole == ("multimodal" if multimodal else None)
    request = parse_request(
        ENDPOINTS[path],
        "",
        data,
        transfer_members=TRANSFER_MEMBERS,
        split_multimodal=True,
    )
    assert request.whole is None


@pytest.mark.parametrize(
    ("path", "members", "multimodal"),
    [
        case
        for case in _MULTIMODAL
        if isinstance(case[1].get("messages", case[1].get("input")), list)
    ],
)
@pytest.mark.parametrize(
    "beside",
    [[{"content": "x" * 200_000}], [{}] * (MAX_PARTS - 50)],
    ids=["much-text", "many-objects"],
)
def test_media_are_found_among_much_else(
    path: str, members: dict[str, Any], multimodal: bool, beside: list[Any]
) -> None:
    among = {name: beside + prompt for name, prompt in members.items()}
    assert make_request(path, **among).whole == ("multimodal" if multimodal else None)


def _spell(data: str, letter: str, spelled: str) -> bytes:
    texts = re.compile(r'"[^"\\]*"')
    return texts.sub(lambda text: text[0].replace(letter, spelled), data).encode()


@pytest.mark.parametrize("letter", [*ascii_lowercase, "_"])
def test_no_escaped_spelling_of_a_letter_hides_media(letter: str) -> None:
    for path, members, multimodal in _MULTIMODAL:
        data = make_body(path, **members).decode()
        for spelled in (f"\\u{ord(letter):04x}", f"\\u{ord(letter):04X}"):
            whole = make_request(path, _spell(data, letter, spelled)).whole
            assert whole == ("multimodal" if multimodal else None)


def test_more_parts_than_are_looked_at_are_not_split_where_one_may_be_an_image() -> None:
    messages: list[dict[str, str]] = [{}] * MAX_PARTS
    assert make_request(CHAT, messages=messages).whole is None
    assert make_request(CHAT, messages=[*messages, {}]).whole is None
    assert make_request(CHAT, messages=[*messages, {"content": '"image"'}]).whole == "many-parts"


@pytest.mark.parametrize(
    ("count", "whole"), [(MAX_PARTS, None), (MAX_PARTS + 1, "many-parts")], ids=["most", "more"]
)
def test_braces_in_texts_are_no_parts(count: int, whole: str | None) -> None:
    # Of an unknown type, it is not told at once as nothing but text.
    text = '{"image": {}}, {}' + "x" * 400
    messages = [{"role": "user", "type": "note", "content": text}] * count
    assert make_request(CHAT, messages=messages).whole == whole
    messages[7] = {"role": "user", "image_url": "x"}
    assert make_request(CHAT, messages=messages).whole == "multimodal"


def test_many_long_texts_are_no_parts() -> None:
    messages = [{"role": "user", "content": "x" * 17_000}] * (MAX_PARTS + 1)
    assert make_request(CHAT, messages=messages).whole is None


def test_a_reason_that_no_setting_changes_comes_before_multimodal() -> None:
    assert make_request(CHAT, n=2, **_chat_part({"type": "image_url"})).whole == "n"


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=4,
)
_NAMES = st.sampled_from(
    [
        *("messages", "prompt", "prompt_embeds", "input", "token_ids", "sampling_params"),
        *("max_tokens", "n", "best_of", "stream", "stream_options", "vllm_xargs", "store"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ENDPOINTS)), st.dictionaries(_NAMES, _JSON, max_size=5))
def test_any_json_values_give_a_request_or_a_refusal_that_names_a_member(
    path: str, members: dict[str, Any]
) -> None:
    data = json.dumps({"model": "m", **members}, ensure_ascii=True).encode()
    try:
        request = make_request(path, data)
    except RequestRejected as rejected:
        refusal = rejected
    else:
        assert request.model == "m"
        return
    assert refusal.status == 400
    assert refusal.param is not None or refusal.code == "invalid_body"


@pytest.mark.parametrize(
    ("members", "whole"),
    [
        ({"min_tokens": 4, "max_tokens": 4}, None),
        ({"min_tokens": "4", "max_tokens": 4.0}, None),
        ({"min_tokens": 9}, None),
        ({"min_tokens": None, "max_tokens": 4}, None),
        ({"min_tokens": 5, "max_tokens": 4, "max_completion_tokens": 8}, None),
        ({"min_tokens": 5, "max_tokens": 4, "max_completion_tokens": None}, "invalid-value"),
        ({"min_tokens": 5, "max_tokens": 8, "max_completion_tokens": 4}, "invalid-value"),
        ({"min_tokens": 10**30, "max_tokens": 4}, "invalid-value"),
        ({"min_tokens": {}}, "invalid-value"),
        ({"stream": True, "stream_options": {"include_usage": True}}, None),
        ({"stream": True, "stream_options": None}, None),
        ({"stream": True, "stream_options": {"include_usage": "yes", "a": [1]}}, None),
        ({"stream": True, "stream_options": {"continuous_usage_stats": None}}, None),
        ({"stream": True, "stream_options": [{}]}, "invalid-value"),
        ({"stream": True, "stream_options": {"include_usage": "perhaps"}}, "invalid-value"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": 2}}, "invalid-value"),
    ],
)
def test_what_the_prefill_leg_drops_is_refused_by_an_engine_before_it_runs(
    members: dict[str, Any], whole: str | None
) -> None:
    assert make_request(CHAT, **members).whole == whole
