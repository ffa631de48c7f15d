"""The identity and the length of prompts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.tools.simulation.prompts import is_token_list, prompt_digest, text_tokens

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 1}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 1, "max_completion_tokens": 1, "max_output_tokens": 1, "min_tokens": 1},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"n": 3, "logprobs": True, "top_logprobs": 2, "return_token_ids": True},
        {"kv_transfer_params": {"do_remote_decode": True}, "disagg_prefill_resp": {}},
        {"request_id": "x"},
    ],
)
def test_members_that_may_differ_between_legs_do_not_count(change: dict[str, Any]) -> None:
    assert prompt_digest(CHAT, BODY | change) == prompt_digest(CHAT, BODY)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "ho"}]},
        {"messages": [{"content": "hi", "role": "user"}]},
        {"model": "adapter"},
        {"seed": 2**64},
        {"seed": 1.0},
        {"seed": True},
        {"cache_salt": "s"},
        {"unknown_to_us": None},
    ],
)
def test_any_other_change_counts(change: dict[str, Any]) -> None:
    assert prompt_digest(CHAT, BODY | change) != prompt_digest(CHAT, BODY)


def test_the_path_counts() -> None:
    assert prompt_digest(CHAT, BODY) != prompt_digest("/v1/completions", BODY)


def test_limits_inside_sampling_params_do_not_count() -> None:
    path = "/inference/v1/generate"
    body = {"token_ids": [1], "sampling_params": {"temperature": 0}}
    limited = {"token_ids": [1], "sampling_params": {"temperature": 0, "max_tokens": 1, "n": 1}}
    warmer = {"token_ids": [1], "sampling_params": {"temperature": 1}}
    assert prompt_digest(path, limited) == prompt_digest(path, body)
    assert prompt_digest(path, warmer) != prompt_digest(path, body)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_digest_survives_the_wire_and_the_order_of_members(body: dict[str, Any]) -> None:
    reordered = dict(reversed(json.loads(json.dumps(body)).items()))
    assert prompt_digest(CHAT, reordered) == prompt_digest(CHAT, body)


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        ("", 1),
        ("abcd", 1),
        ("abcde", 2),
        ("éé", 1),
        ("\ud800", 1),
        (None, 1),
        (["abcd", "abcd"], 2),
        ([{"role": "user", "content": "abcdefgh"}], 2),
        ([{"role": "user", "content": [{"type": "text", "text": "abcdefgh"}]}], 2),
    ],
)
def test_a_token_is_four_bytes_of_text(content: object, tokens: int) -> None:
    assert text_tokens(content) == tokens


@pytest.mark.parametrize(
    ("value", "expected"),
    [([1, 2], True), ([], False), (["a"], False), ([True], False), ([1, [2]], False), ("x", False)],
)
def test_token_lists_are_told_from_other_prompts(value: object, expected: bool) -> None:
    assert is_token_list(value) is expected
