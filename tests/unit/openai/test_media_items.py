"""The media of a conversation: found, told apart by content, and replaced where they stand."""

import json
from typing import Any

import pytest
from factories import make_body
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.body import Body
from pdrouter.openai.media_items import MediaItem, find_items, replace_items
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


_PARTS = st.lists(st.sampled_from([TEXT, IMAGE, SOUND, VIDEO]), max_size=5)


@given(st.lists(_PARTS, min_size=1, max_size=4), st.sampled_from([None, 1]))
def test_what_is_replaced_is_the_items_and_nothing_else(
    contents: list[list[dict[str, Any]]], indent: int | None
) -> None:
    messages = [{"role": "user", "content": parts, "name": "ä"} for parts in contents]
    data = json.dumps({"model": "m", "messages": messages}, indent=indent, ensure_ascii=False)
    body = Body(data.encode())
    items = find_items(body, "messages", OPTIONS)
    replaced = bytes(replace_items(body, "messages", dict.fromkeys(items, Pieces((b'{"x":1}',)))))
    found = [part for message in json.loads(replaced) for part in message["content"]]
    given = [part for parts in contents for part in parts]
    assert found == [part if part == TEXT else {"x": 1} for part in given]
    assert bytes(replace_items(body, "messages", {})) == body.raw("messages")
