"""A whole answer as the stream that it would have been."""

import json
from typing import Any

import pytest

from pdrouter.openai.body import Body
from pdrouter.openai.streams import wants_usage, write_stream

USAGE = {"prompt_tokens": 5, "completion_tokens": 1}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(stream: bytes) -> list[dict[str, Any]]:
    *events, done, end = stream.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def write(with_usage: bool = False, **members: Any) -> list[dict[str, Any]]:
    answer = json.dumps({"id": "a", "created": 2**70, "usage": USAGE, **members}, indent=2)
    return read(write_stream(answer.encode(), with_usage=with_usage))


@pytest.mark.parametrize("calls", [[], [CALL, CALL]])
def test_a_chat_answer_is_one_delta(calls: list[Any]) -> None:
    message = {"role": "assistant", "content": "\u00e9\n"}
    whole = message | ({"tool_calls": calls} if calls else {})
    choice = {"index": 0, "message": whole, "finish_reason": "stop", "logprobs": {"a": 0.10}}
    (event,) = write(object="chat.completion", choices=[choice])
    (told,) = event.pop("choices")
    assert event == {"id": "a", "created": 2**70, "object": "chat.completion.chunk"}
    numbered = [{"index": index, **call} for index, call in enumerate(calls)]
    assert told.pop("delta") == message | ({"tool_calls": numbered} if calls else {})
    assert told == {"index": 0, "finish_reason": "stop", "logprobs": {"a": 0.10}}


def test_a_text_completion_is_one_event() -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "stop"}
    (event,) = write(object="text_completion", choices=[choice])
    assert (event["object"], event["choices"]) == ("text_completion", [choice])


def test_the_tokens_come_at_the_end_if_they_are_asked_for() -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "stop"}
    first, last = write(True, object="text_completion", choices=[choice])
    assert (first["usage"], last["usage"], last["choices"]) == (None, USAGE, [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"null", False),
        (b"{}", False),
        (b'{"include_usage":true}', True),
        (b'{"include_usage":"true"}', True),
        (b'{"include_usage":null}', False),
    ],
)
def test_who_asks_for_the_tokens(options: bytes, expected: bool) -> None:
    assert wants_usage(Body(b'{"stream_options":%s}' % options)) is expected
    assert not wants_usage(Body(b"{}"))
