"""The usage of an answer is found however its body is cut into pieces, and nothing can break it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.usage import Usage
from pdrouter.openai.usage_scan import (
    MAX_ANSWER_BYTES,
    MAX_EVENT_BYTES,
    PlainScan,
    StreamScan,
    choose_scan,
)

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
}
OPENAI: list[dict[str, Any]] = [
    {"choices": [{"delta": {"content": 'say "usage": {"prompt_tokens": 1}'}}], "usage": None},
    {"choices": [], "usage": USAGE},
]
CONTINUOUS = [{"choices": [], "usage": {**USAGE, "completion_tokens": n}} for n in range(6)]
ANTHROPIC = [
    {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 7, "output_tokens": 0, "cache_read_input_tokens": 4}},
    },
    {"type": "content_block_delta", "delta": {"text": "hi"}},
    {"type": "message_delta", "usage": {"output_tokens": 5}},
]
RESPONSES = [
    {"type": "response.created", "response": {"usage": None}},
    {
        "type": "response.completed",
        "response": {
            "output": [{"text": "x" * 300}],
            "usage": {
                "input_tokens": 11,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens": 5,
            },
        },
    },
]
STREAMS = [OPENAI, CONTINUOUS, ANTHROPIC, RESPONSES]
FOUND = Usage(11, 4, 5)


def spell(events: list[dict[str, Any]], end: str = "\n") -> bytes:
    lines = [f"event: x{end}data: {json.dumps(event)}{end}{end}" for event in events]
    return "".join([*lines, f"data: [DONE]{end}{end}"]).encode()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(places), len(data)]
    return [data[low:high] for low, high in pairwise(bounds)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("events", STREAMS, ids=["openai", "continuous", "anthropic", "responses"])
def test_a_stream_may_be_cut_at_any_byte(events: list[dict[str, Any]], end: str) -> None:
    data = spell(events, end)
    for place in range(len(data) + 1):
        scan = StreamScan()
        scan.feed(data[:place])
        scan.feed(data[place:])
        assert scan.finish() == FOUND


@given(
    events=st.sampled_from(STREAMS),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    places=st.lists(st.integers(0, 1000), max_size=30),
)
def test_a_stream_may_be_cut_into_many_pieces(
    events: list[dict[str, Any]], end: str, places: list[int]
) -> None:
    data = spell(events, end)
    scan = StreamScan()
    for piece in cut(data, [place for place in places if place <= len(data)]):
        scan.feed(piece)
    assert scan.finish() == FOUND


def test_a_stream_without_a_last_line_end_is_read() -> None:
    scan = StreamScan()
    scan.feed(b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}')
    assert scan.finish() == Usage(3, None, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'data: {"usage": null}\n\n',
        b'data: {"usage": {"prompt_tokens": "many"}}\n\n',
        b'data: {"usage": {"prompt_tokens": 3\n\n',
        b'data: {"usage": {}}\n\n',
        b'data: {"response": "usage", "x": {"usage": {"prompt_tokens": 3}}}\n\n',
        b': "usage": {"prompt_tokens": 3}\n\n',
    ],
)
def test_a_stream_without_usage_says_nothing(data: bytes) -> None:
    scan = StreamScan()
    scan.feed(data)
    assert scan.finish() is None


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_line_that_is_too_long_is_skipped_and_the_next_one_read(pieces: int) -> None:
    data = b"data: " + b"x" * (MAX_EVENT_BYTES + 100) + b"\r\n" + spell(OPENAI)
    scan = StreamScan()
    step = len(data) // pieces + 1
    for start in range(0, len(data), step):
        scan.feed(data[start : start + step])
    assert scan.finish() == FOUND


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_break_a_scan(pieces: list[bytes]) -> None:
    stream, plain = StreamScan(), PlainScan()
    for piece in pieces:
        stream.feed(piece)
        plain.feed(piece)
    stream.feed(b"\n\n" + spell(OPENAI))
    assert stream.finish() == FOUND
    assert plain.finish() is None


@given(st.text(alphabet='{}[]":,\\ \r\ndatusge0123', max_size=200), st.integers(0, 200))
def test_nothing_like_an_event_breaks_a_scan(text: str, place: int) -> None:
    data = b'data: {"usage":{' + text.encode() + b"\n"
    scan = StreamScan()
    scan.feed(data[:place])
    scan.feed(data[place:])
    usage = scan.finish()
    assert usage is None or usage.prompt_tokens > 0


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_plain_answer_may_be_cut(first: int, second: int) -> None:
    scan = PlainScan()
    for piece in cut(json.dumps({"choices": [], "usage": USAGE}).encode(), [first, second]):
        scan.feed(piece)
    assert scan.finish() == FOUND


def test_a_plain_answer_that_is_too_large_is_not_read() -> None:
    scan = PlainScan()
    scan.feed(b"x" * MAX_ANSWER_BYTES)
    scan.feed(json.dumps({"usage": USAGE}).encode())
    assert scan.finish() is None


@pytest.mark.parametrize(
    ("content_type", "encoding", "kind"),
    [
        ("text/event-stream", "", StreamScan),
        ("Text/Event-Stream; charset=utf-8", "identity", StreamScan),
        ("application/json", "", PlainScan),
        ("application/json;charset=utf-8", "", PlainScan),
        ("text/event-stream", "gzip", None),
        ("application/json", "br", None),
        ("audio/mpeg", "", None),
        ("", "", None),
    ],
)
def test_what_can_be_read(content_type: str, encoding: str, kind: type | None) -> None:
    scan = choose_scan(content_type, encoding)
    assert (None if scan is None else type(scan)) is kind
