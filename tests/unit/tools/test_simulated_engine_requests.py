"""What a strict vLLM accepts and refuses."""

import json
from typing import Any

import pytest

from pdrouter.tools.simulation.api_requests import Api, parse_generation, parse_members
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.generation import generate
from pdrouter.tools.simulation.refusal import Refused

CONFIG = EngineConfig(models=("base", "adapter"), max_model_len=100, default_max_tokens=16)
VALID: dict[Api, dict[str, Any]] = {
    Api.CHAT: {"model": "base", "messages": [{"role": "user", "content": "hi"}]},
    Api.COMPLETIONS: {"model": "base", "prompt": "hi"},
    Api.MESSAGES: {
        "model": "base",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
    },
    Api.RESPONSES: {"model": "base", "input": "hi"},
    Api.GENERATE: {"token_ids": [1, 2, 3], "sampling_params": {}},
    Api.SGLANG: {"text": "hi"},
}


@pytest.mark.parametrize("api", list(Api))
def test_a_plain_request_is_accepted(api: Api) -> None:
    request = parse_generation(api, VALID[api], CONFIG)
    assert (request.api, request.model, request.prompts, request.n) == (api, "base", 1, 1)
    assert request.prompt_tokens == (3 if api is Api.GENERATE else 1)
    assert not request.stream


@pytest.mark.parametrize(
    ("api", "change", "limit"),
    [
        (Api.CHAT, {"max_tokens": 5}, 5),
        (Api.CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        (Api.COMPLETIONS, {"max_tokens": 5}, 5),
        (Api.MESSAGES, {"max_tokens": 5}, 5),
        (Api.RESPONSES, {"max_output_tokens": 5}, 5),
        (Api.RESPONSES, {"max_tokens": 5}, None),
        (Api.GENERATE, {"sampling_params": {"max_tokens": 5}}, 5),
        (Api.CHAT, {"max_tokens": None}, None),
        (Api.CHAT, {"max_tokens": 5.0}, 5),
        (Api.CHAT, {"max_tokens": "5"}, 5),
        (Api.COMPLETIONS, {"max_tokens": 0, "echo": True}, 0),
    ],
)
def test_each_api_has_its_own_limit(api: Api, change: dict[str, Any], limit: int | None) -> None:
    assert parse_generation(api, VALID[api] | change, CONFIG).limit == limit


@pytest.mark.parametrize(
    ("api", "change"),
    [
        (
            Api.CHAT,
            {"truncate_prompt_tokens": -1, "messages": [{"role": "u", "content": "a" * 800}]},
        ),
        (Api.RESPONSES, {"truncation": "auto", "input": "a" * 800}),
        (Api.RESPONSES, {"truncation": None, "input": "a" * 800}),
    ],
)
def test_a_prompt_is_cut_to_what_the_limit_leaves_of_the_window(
    api: Api, change: dict[str, Any]
) -> None:
    name = "max_output_tokens" if api is Api.RESPONSES else "max_tokens"
    short, long = (
        parse_generation(api, VALID[api] | change | {name: limit}, CONFIG) for limit in (1, 40)
    )
    assert (short.prompt_tokens, long.prompt_tokens) == (99, 60)
    assert short.digest != long.digest


def test_a_prompt_that_is_cut_to_a_given_length_is_the_same_whatever_the_limit() -> None:
    change = {"prompt": "a" * 800, "truncate_prompt_tokens": 20}
    short, long = (
        parse_generation(Api.COMPLETIONS, VALID[Api.COMPLETIONS] | change | limit, CONFIG)
        for limit in ({"max_tokens": 1}, {"max_tokens": 40})
    )
    assert short.prompt_tokens == long.prompt_tokens == 20
    assert short.digest == long.digest


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [
        ("abcdefgh", 1, 2),
        (["abcdefgh"], 1, 2),
        (["abcd", "abcdefgh"], 2, 3),
        ([1, 2, 3], 1, 3),
        ([[1, 2, 3], [4]], 2, 4),
    ],
)
def test_completion_prompts_of_every_form(prompt: object, prompts: int, tokens: int) -> None:
    request = parse_generation(Api.COMPLETIONS, {"prompt": prompt}, CONFIG)
    assert (request.prompts, request.prompt_tokens) == (prompts, tokens)


REFUSALS: list[tuple[Api, dict[str, Any], int, str | None, str]] = [
    (Api.CHAT, {"model": "nope"}, 404, "model", "The model `nope` does not exist."),
    (Api.CHAT, {"model": 3}, 400, "model", "valid string"),
    (Api.CHAT, {"messages": None}, 400, "messages", "Field required"),
    (Api.CHAT, {"messages": []}, 400, "messages", "Field required"),
    (Api.CHAT, {"messages": "hi"}, 400, "messages", "Field required"),
    (Api.CHAT, {"messages": ["hi"]}, 400, "messages", "role"),
    (Api.COMPLETIONS, {"prompt": None}, 400, "prompt", "must be provided and non-empty"),
    (Api.COMPLETIONS, {"prompt": ""}, 400, "prompt", "must be provided and non-empty"),
    (Api.COMPLETIONS, {"prompt": []}, 400, "prompt", "must be provided and non-empty"),
    (Api.COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt", "must be provided and non-empty"),
    (Api.COMPLETIONS, {"best_of": 2}, 400, "best_of", "not supported"),
    (Api.MESSAGES, {"max_tokens": None}, 400, "max_tokens", "Field required"),
    (Api.RESPONSES, {"input": None}, 400, "input", "Field required"),
    (Api.GENERATE, {"token_ids": ["a"]}, 400, "token_ids", "list of integers"),
    (Api.GENERATE, {"sampling_params": None}, 400, "sampling_params", "must be an object"),
    (Api.CHAT, {"stream": "perhaps"}, 400, "stream", "valid boolean"),
    (
        Api.CHAT,
        {"stream_options": {"include_usage": True}},
        400,
        "stream_options",
        "Stream options can only be defined when `stream=True`.",
    ),
    (Api.CHAT, {"stream": True, "stream_options": 3}, 400, "stream_options", "valid dictionary"),
    (Api.CHAT, {"max_tokens": 0}, 400, "max_tokens", "max_tokens must be at least 1, got 0."),
    (Api.CHAT, {"max_tokens": 1.5}, 400, "max_tokens", "valid integer"),
    (Api.CHAT, {"max_tokens": "many"}, 400, "max_tokens", "valid integer"),
    (Api.COMPLETIONS, {"max_tokens": 0}, 400, "max_tokens", "max_tokens must be at least 1"),
    (Api.CHAT, {"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens", "at least -1"),
    (Api.CHAT, {"n": 0}, 400, "n", "n must be at least 1, got 0."),
    (Api.CHAT, {"n": 16_385}, 400, "n", "n must be at most 16384, got 16385."),
    (Api.CHAT, {"min_tokens": -1}, 400, "min_tokens", "min_tokens must be at least 0"),
    (
        Api.CHAT,
        {"max_tokens": 1, "min_tokens": 5},
        400,
        "min_tokens",
        "min_tokens must be less than or equal to max_tokens=1, got 5.",
    ),
    (Api.CHAT, {"tools": []}, 400, "tools", "`tools` must not be an empty array."),
    (Api.CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "`logprobs` must be set to true"),
    (Api.CHAT, {"stream": True, "use_beam_search": True}, 400, None, "beam search"),
    (Api.CHAT, {"stream": True, "prompt_logprobs": 1}, 400, "prompt_logprobs", "not available"),
    (Api.CHAT, {"max_tokens": 100}, 400, "input_tokens", "maximum context length is 100 tokens"),
    (
        Api.COMPLETIONS,
        {"prompt": "a" * 400},
        400,
        "input_tokens",
        "maximum context length is 100 tokens",
    ),
]


@pytest.mark.parametrize(("api", "change", "status", "param", "message"), REFUSALS)
def test_what_vllm_refuses_is_refused_in_its_words(
    api: Api, change: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    with pytest.raises(Refused) as refused:
        parse_generation(api, VALID[api] | change, CONFIG)
    error = refused.value.envelope()["error"]
    assert isinstance(error, dict)
    assert message in error["message"]
    assert (error["code"], error["param"]) == (status, param)
    expected = {"NotFoundError"} if status == 404 else {"BadRequestError", "Bad Request"}
    assert error["type"] in expected


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse_members(body, "application/json")
    assert refused.value.error_type == "Bad Request"


def test_a_body_that_does_not_say_it_is_json_is_refused() -> None:
    with pytest.raises(Refused, match="Only 'application/json' is allowed"):
        parse_members(b"{}", "text/plain")


def test_integers_of_any_size_keep_their_value() -> None:
    assert parse_members(json.dumps({"seed": 2**70 + 1}).encode(), "application/json") == {
        "seed": 2**70 + 1
    }


@pytest.mark.parametrize(
    ("change", "tokens", "finish_reason"),
    [
        ({}, 16, "stop"),
        ({"max_tokens": 3}, 3, "length"),
        ({"max_tokens": 50}, 50, "length"),
        ({"min_tokens": 20}, 20, "stop"),
    ],
)
def test_the_limit_decides_how_much_is_generated(
    change: dict[str, Any], tokens: int, finish_reason: str
) -> None:
    request = parse_generation(Api.CHAT, VALID[Api.CHAT] | change, CONFIG)
    generation = generate(request, CONFIG, "id", 0)
    assert (len(generation.words), generation.finish_reason) == (tokens, finish_reason)


def test_the_output_shows_the_prompt_and_the_place_of_each_token() -> None:
    request = parse_generation(Api.CHAT, VALID[Api.CHAT] | {"max_tokens": 2}, CONFIG)
    start = request.digest[:8]
    assert generate(request, CONFIG, "id", 0).text == f"{start}-0 {start}-1"


def test_an_unlimited_answer_stops_at_the_end_of_the_context() -> None:
    request = parse_generation(Api.COMPLETIONS, {"prompt": "a" * 380}, CONFIG)
    assert len(generate(request, CONFIG, "id", 0).words) == 5
