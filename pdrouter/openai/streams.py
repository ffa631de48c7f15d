"""Whole answers as the streams that they would have been."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pdrouter.openai.body import Body
from pdrouter.openai.coercion import as_boolean, decode_scalar

_DONE = b"data: [DONE]\n\n"
_NULL = msgspec.Raw(b"null")
_CHAT = msgspec.Raw(b'"chat.completion"')
_CHAT_CHUNK = msgspec.Raw(b'"chat.completion.chunk"')

_Members = dict[str, msgspec.Raw]

_decode_members = msgspec.json.Decoder(_Members).decode
_decode_choices = msgspec.json.Decoder(list[_Members]).decode
_decode_calls = msgspec.json.Decoder(list[_Members] | None).decode


class _StreamOptions(msgspec.Struct):
    include_usage: msgspec.Raw = _NULL


def wants_usage(body: Body) -> bool:
    """Return whether a request for a stream asks for the tokens at its end.

    Raises:
        msgspec.ValidationError: its `stream_options` are no object.
    """
    options = body.get("stream_options", _StreamOptions)
    return options is not None and bool(as_boolean(decode_scalar(bytes(options.include_usage))))


def write_stream(answer: bytes, *, with_usage: bool) -> bytes:
    """Return the events of a chat or text completion, of which all comes at once, and their end.

    Args:
        answer: the completion, as it is not streamed.
        with_usage: whether there is an event with its tokens.

    Raises:
        msgspec.MsgspecError: the answer is no completion.
    """
    members = _decode_members(answer)
    usage, choices = members.pop("usage", _NULL), _decode_choices(members.pop("choices"))
    if members.get("object") == _CHAT:
        members["object"] = _CHAT_CHUNK
        choices = [_make_delta(choice) for choice in choices]
    events = [_write_event(members, choices, _NULL if with_usage else None)]
    if with_usage:
        events.append(_write_event(members, [], usage))
    return b"".join([*events, _DONE])


def _make_delta(choice: _Members) -> _Members:
    """Return a choice with its message as a delta, in which tool calls are numbered."""
    message = _decode_members(choice["message"])
    calls = _decode_calls(message.get("tool_calls", _NULL))
    if calls:
        numbered = [{"index": index, **call} for index, call in enumerate(calls)]
        message["tool_calls"] = msgspec.Raw(msgspec.json.encode(numbered))
    delta = msgspec.Raw(msgspec.json.encode(message))
    rest = {name: value for name, value in choice.items() if name != "message"}
    return {"delta": delta, **rest}


def _write_event(
    members: Mapping[str, Any], choices: list[_Members], usage: msgspec.Raw | None
) -> bytes:
    event = {**members, "choices": choices}
    if usage is not None:
        event["usage"] = usage
    # No line break may stand in it; what is spelled over several lines stands in Raw values.
    text = msgspec.json.format(msgspec.json.encode(event), indent=-1)
    return b"data: %s\n\n" % text
