"""Conversations of nothing but text are told on the way, and nothing else is taken for one."""

import json
from typing import Any

import pytest
from factories import make_request
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.body import Body
from pdrouter.openai.text_messages import MOST_BYTES

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
USER = {"role": "user", "content": "hi"}


def write(**members: Any) -> bytes:
    return json.dumps({"model": "m", "store": False, **members}, ensure_ascii=False).encode()


def is_told(data: bytes, name: str = "messages") -> bool:
    body = Body(data)
    return body.span(name)[0] in (body.texts or ())


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": 'say "image_url"\n'},
        {"role": "user", "name": "file", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"a": 1}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "[1]"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"role": "user", "content": "x", "image_url": None},
    ],
)
def test_messages_of_text_are_told(message: dict[str, Any]) -> None:
    assert is_told(write(messages=[USER, message], stream=True))
    assert is_told(write(input=[message, USER]), "input")


@pytest.mark.parametrize(
    "message",
    [
        {},
        "x",
        {"content": "x"},
        {"role": "user", "content": {"type": "image"}},
        {"role": "user", "content": [{"text": "x"}]},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "image_url": "x"}]},
        {"role": "user", "content": [{"type": "text", "content": [{"type": "image"}]}]},
        {"role": "user", "content": "x", "output": {"type": "computer_screenshot"}},
        {"role": "user", "content": "x", "image_url": None, "uuid": "u"},
        {"type": "image", "role": "user", "content": "x"},
        {"role": "user", "content": "é"},
    ],
)
def test_nothing_else_is_told(message: Any) -> None:
    assert not is_told(write(messages=[USER, message]))


def test_conversations_are_told_up_to_a_length() -> None:
    message = {"role": "user", "content": "x" * 400}
    count = MOST_BYTES // len(json.dumps(message))
    assert is_told(write(messages=[message] * (count * 9 // 10)))
    assert not is_told(write(messages=[message] * (count + 1)))


def test_long_texts_are_not_read() -> None:
    assert not is_told(write(messages=[{"role": "user", "content": "x" * 40_000}] * 2))


@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_where_a_conversation_ends_is_told_with_it(space: str) -> None:
    raw = json.dumps([USER])
    body = Body(f'{{"messages":{space}{raw}{space},"model":"m"}}'.encode())
    assert body.texts
    assert body.raw("messages") == raw.encode()
    assert body.raw("model") == b'"m"'


_LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [None, "x", "text", "image", "input_text", "message", 1, {}, [], "file"]
)
_NAMES = st.sampled_from(
    ["type", "content", "output", "uuid", "image_url", "file", "input_audio", "text", "a"]
)


def _hold(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    held = st.dictionaries(_NAMES, inner, max_size=3)
    return st.one_of(held, st.lists(held, max_size=2))


_PARTS = st.recursive(_LEAVES, _hold, max_leaves=6)
_MESSAGES = st.lists(
    st.builds(
        lambda role, content, more: {"role": role, "content": content, **more},
        st.sampled_from(["user", "assistant", "nobody"]),
        st.one_of(
            st.text('ab"\\\n', max_size=3),
            st.lists(
                st.builds(
                    lambda kind, more: {"type": kind, "text": "x", **more},
                    st.sampled_from(["text", "input_text", "image_url"]),
                    st.dictionaries(_NAMES, _PARTS, max_size=1),
                ),
                max_size=2,
            ),
            _PARTS,
        ),
        st.dictionaries(_NAMES, _PARTS, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(st.sampled_from([(CHAT, "messages"), (RESPONSES, "input")]), _MESSAGES)
def test_media_are_found_as_where_nobody_tells(kind: tuple[str, str], messages: list[Any]) -> None:
    path, name = kind
    told = make_request(path, write(**{name: messages, "user": "e"}))
    untold = make_request(path, write(**{name: messages, "user": "é"}))
    assert not is_told(untold.body.data, name)
    assert told.whole == untold.whole
