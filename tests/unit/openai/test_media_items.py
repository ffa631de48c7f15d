"""The media of a conversation: found, told apart by content, and replaced where they stand."""

import inspect
import json
import sys
from typing import Any

import pytest
from factories import make_body
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.body import Body
from pdrouter.openai.media_items import (
    MOST_PARTS,
    MediaItem,
    find_items,
    name_item,
    replace_parts,
)
from pdrouter.openai.pieces import Pieces

PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://media.example/v.mp4"}}
TEXT = {"type": "text", "text": "what is this?"}
OPTIONS = ("mm_processor_kwargs", "media_io_kwargs")


def find(*contents: Any, **members: Any) -> tuple[MediaItem, ...]:
    messages = [{"role": "user", "content": content} for content in contents]
    body = Body(make_body("/v1/chat/completions", messages=messages, **members))
    items = find_items(body, "messages", OPTIONS)
    for item in items:
        assert isinstance(json.loads(body.data[item.start : item.end]), dict)
    return items


def digest(part: dict[str, Any], **members: Any) -> str:
    (item,) = find([part], **members)
    return item.digest


def test_items_are_found_in_all_messages_in_their_order() -> None:
    items = find([TEXT, IMAGE, SOUND], "a text", [VIDEO], [TEXT])
    assert [item.kind for item in items] == ["image", "audio", "video"]


def test_an_item_may_be_named_by_its_key_alone_and_its_url_may_be_a_text() -> None:
    bare = {"image_url": PNG}
    assert digest(bare) == digest(IMAGE) == digest({**IMAGE, "uuid": "mine", "cache_control": 1})
    assert [item.kind for item in find([{"type": "audio_url", "audio_url": "u"}])] == ["audio"]


def test_messages_without_parts_have_no_items() -> None:
    call = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "image_url"}}]}
    messages = [call, {"role": "tool", "content": "ok"}, {"role": "user", "content": [IMAGE]}]
    body = Body(make_body("/v1/chat/completions", messages=messages))
    assert len(find_items(body, "messages", OPTIONS)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"type": "image_url", "image_url": {"url": PNG + "A"}},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": PNG}, "detail": "low"},
        {"type": "image_url", "image_url": {"url": PNG}, "max_pixels": 7},
        {"type": "video_url", "video_url": {"url": PNG}},
    ],
)
def test_another_content_or_another_way_to_read_it_is_another_item(other: dict[str, Any]) -> None:
    assert digest(other) != digest(IMAGE)


def test_how_the_request_has_media_read_counts_too() -> None:
    plain = digest(VIDEO)
    fewer = digest(VIDEO, media_io_kwargs={"video": {"num_frames": 8}})
    smaller = digest(VIDEO, mm_processor_kwargs={"video": {"num_frames": 8}})
    assert len({plain, fewer, smaller}) == 3
    assert digest(VIDEO, temperature=1) == plain


def test_no_two_ways_to_read_an_item_look_the_same() -> None:
    def split(name: str, value: str) -> str:
        return digest({"type": "image_url", "image_url": {"url": PNG, name: value}})

    outside = digest({**IMAGE, "a": "b"})
    assert len({split("a", "b"), split('a\0"b"', "b"), split("", "ab"), outside}) == 4
    as_null = {**IMAGE, "detail": None, "uuid": None, "video_url": None}
    assert digest(as_null) == digest(IMAGE)


def test_how_a_content_is_written_does_not_count() -> None:
    body = make_body("/v1/chat/completions", messages=[{"role": "user", "content": [IMAGE]}])
    escaped = body.replace(b"data:image/png", b"data:image\\/png").replace(b": ", b" :  ")
    assert escaped != body
    (item,) = find_items(Body(escaped), "messages", OPTIONS)
    assert item.digest == digest(IMAGE)


@pytest.mark.parametrize(
    "content",
    [
        [IMAGE, {"type": "file", "file": {"file_id": "f"}}],
        [{"type": "image_embeds", "image_embeds": "AAAA"}],
        [{"type": "image_url", "image_url": None, "uuid": "sent-before"}],
        [{"type": "image_url", "image_url": {}}],
        [{"type": "image_url", "image_url": {"url": 7}}],
        [{"type": "image_url", "image_url": {"url": PNG, "data": PNG}}],
        [{"type": "image_url", "image_url": [PNG]}],
        [{"type": "text", "image_url": PNG}],
        [{"type": "image_url", "image_url": PNG, "video_url": PNG}],
        [IMAGE, {"type": "tool_result", "content": [IMAGE]}],
        IMAGE,
    ],
)
def test_where_something_cannot_be_taken_out_nothing_is(content: Any) -> None:
    assert find(content) == ()


def test_parts_that_are_no_objects_are_an_engine_s_to_refuse() -> None:
    assert len(find(["text", 7, None, IMAGE])) == 1
    body = Body(make_body("/v1/chat/completions", messages=["hi", 7]))
    assert find_items(body, "messages", OPTIONS) == ()


@pytest.mark.parametrize("filler", ["a", {}, [], TEXT])
def test_no_more_parts_are_looked_at_than_conversations_have(filler: object) -> None:
    """Each takes time, which a client that leaves does not give back."""
    few, many = (
        find([IMAGE, *[filler] * size], *[[TEXT]] * size) for size in (1000, MOST_PARTS // 2)
    )
    assert len(few) == 1
    assert many == ()


def test_what_is_named_twice_is_not_taken_out() -> None:
    part = b'{"image_url":"a","uuid":"x","uuid":"y"}'
    body = Body(b'{"messages":[{"role":"user","content":[%s]}]}' % part)
    assert find_items(body, "messages", OPTIONS) == ()


@pytest.mark.parametrize("where", ["part", "value", "message", "sibling"])
def test_what_is_too_deep_to_be_read_again_is_not_taken_out(where: str) -> None:
    """The same stack has room for fewer levels the more calls are on it."""
    deep = b"[" * 300 + b"]" * 300
    extra = dict.fromkeys(("part", "value", "message", "sibling"), b"")
    extra[where] = b',"x":%s' % deep if where != "sibling" else b",%s" % deep
    body = Body(
        b'{"messages":[{"role":"user","content":[{"image_url":{"url":"u"%s}%s}%s]%s}]}'
        % (extra["value"], extra["part"], extra["sibling"], extra["message"])
    )
    assert len(find_items(body, "messages", OPTIONS)) == 1

    def call(levels: int) -> tuple[MediaItem, ...]:
        return call(levels - 1) if levels else find_items(body, "messages", OPTIONS)

    limit, used = sys.getrecursionlimit(), len(inspect.stack())
    found = {len(call(levels)) for levels in range(limit - used - 330, limit - used - 100, 5)}
    # From Python 3.12 on, calls leave the room as it is in which C reads what is nested.
    assert (0 in found) == (sys.version_info < (3, 12))


@pytest.mark.parametrize("name", [{"uuid": "mine"}, {"uuid": None}, {}])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_item_gets_its_name_and_stays_as_it_is(name: dict[str, Any], indent: int | None) -> None:
    messages = [{"role": "user", "content": [TEXT, {**IMAGE, **name}, {**name, **SOUND}]}]
    body = Body(json.dumps({"model": "ä", "messages": messages}, indent=indent).encode())
    for item, part in zip(find_items(body, "messages", OPTIONS), (IMAGE, SOUND), strict=True):
        assert json.loads(bytes(name_item(body, item))) == {**part, "uuid": item.digest}


_PARTS = st.lists(st.sampled_from([TEXT, IMAGE, SOUND, VIDEO]), max_size=5)


@given(st.lists(_PARTS, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_what_is_replaced_is_the_items_and_nothing_else(
    contents: list[list[dict[str, Any]]], indent: int | None
) -> None:
    messages = [{"role": "user", "content": parts, "name": "ä"} for parts in contents]
    data = json.dumps({"model": "m", "messages": messages}, indent=indent, ensure_ascii=False)
    body = Body(data.encode())
    items = find_items(body, "messages", OPTIONS)
    replaced = bytes(
        replace_parts(
            body,
            "messages",
            dict.fromkeys([(i.start, i.end) for i in items], Pieces((b'{"x":1}',))),
        )
    )
    found = [part for message in json.loads(replaced) for part in message["content"]]
    given = [part for parts in contents for part in parts]
    assert found == [part if part == TEXT else {"x": 1} for part in given]
    assert bytes(replace_parts(body, "messages", {})) == body.raw("messages")
