"""What clients call their media, kept apart from what the router calls them."""

import json
from typing import Any

import pytest
from factories import make_body
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.openai.body import Body
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.media_items import MOST_PARTS
from pdrouter.openai.media_names import rename_media

IMAGE = {"type": "image_url", "image_url": {"url": "https://media.example/1.png"}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def rename(data: bytes) -> Any:
    body = Body(data)
    return json.loads(bytes(body.edit(rename_media(body))))


def rename_messages(messages: Any, name: str = "messages") -> Any:
    return rename(json.dumps({"model": "m", name: messages}).encode())[name]


@pytest.mark.parametrize("name", ["messages", "input"])
@pytest.mark.parametrize(
    "part",
    [
        IMAGE,
        {"type": "image_url", "image_url": None},
        {"type": "image_embeds", "image_embeds": "A"},
    ],
)
def test_a_client_s_name_becomes_one_that_only_clients_give(name: str, part: Any) -> None:
    digest = "0" * 64
    renamed = rename_messages([user({**part, "uuid": digest}), user(IMAGE)], name)
    assert renamed == [user({**part, "uuid": f"client:{digest}"}), user(IMAGE)]


def test_a_name_is_found_however_it_is_written() -> None:
    data = make_body("/v1/chat/completions", messages=[user({**IMAGE, "uuid": "mine"})])
    escaped = data.replace(b'"uuid"', b'"\\u0075\\u0075\\u0069\\u0064"').replace(
        b"mine", b"m\\u0069ne"
    )
    assert b"uuid" not in escaped
    (part,) = rename(escaped)["messages"][0]["content"]
    assert part == {**IMAGE, "uuid": "client:mine"}


def test_of_two_names_one_is_left() -> None:
    part = b'{"uuid":"a","type":"image_url","image_url":"u","uuid":"b"}'
    body = Body(b'{"messages":[{"role":"user","content":[%s]}]}' % part)
    renamed = bytes(body.edit(rename_media(body)))
    assert renamed.count(b'"uuid"') == 1
    assert b'"client:b"' in renamed


def test_a_batch_has_conversations() -> None:
    named = {**IMAGE, "uuid": "mine"}
    (conversation,) = rename_messages([[user(named)]])
    assert conversation == [user({**IMAGE, "uuid": "client:mine"})]


@pytest.mark.parametrize(
    "messages",
    [
        [user({"type": "text", "text": 'my "uuid"'})],
        [user({"type": "tool_use", "input": {"uuid": "an-argument"}})],
        [{"role": "user", "content": "uuid", "uuid": "of a message"}],
        [user({**IMAGE, "uuid": None}), "uuid", 7, None, user("uuid", ["uuid"])],
        [user({**IMAGE, "uuid": 7})],
        "uuid",
    ],
)
def test_what_names_no_medium_stays_as_it_is(messages: Any) -> None:
    body = Body(json.dumps({"model": "m", "messages": messages}).encode())
    assert rename_media(body) == {}


def test_more_parts_than_are_looked_at_are_refused_where_one_may_have_a_name() -> None:
    texts = [{"type": "text", "text": "a"}] * (MOST_PARTS - 1)
    renamed = rename_messages([user(*texts[1:], {**IMAGE, "uuid": "mine"})])
    assert renamed[0]["content"][-1]["uuid"] == "client:mine"
    assert len(rename_messages([user(*texts, *texts)])[0]["content"]) == len(texts) * 2
    with pytest.raises(RequestRejected) as caught:
        rename_messages([user(*texts, {**IMAGE, "uuid": "mine"})])
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


def test_what_cannot_be_read_is_refused() -> None:
    part = b'{"uuid":"a","type":"image_url",%s}' % b",".join(b'"k%d":1' % n for n in range(2000))
    body = Body(b'{"messages":[{"role":"user","content":[%s]}]}' % part)
    with pytest.raises(RequestRejected) as caught:
        rename_media(body)
    assert (caught.value.status, caught.value.param) == (400, "messages")


_NAMES = st.none() | st.text(max_size=8)


@given(st.lists(st.lists(_NAMES, max_size=4), max_size=4), st.booleans())
def test_names_are_renamed_and_nothing_else(
    names: list[list[str | None]], ascii_only: bool
) -> None:
    def make(prefix: str) -> dict[str, Any]:
        parts = [
            [IMAGE if name is None else {**IMAGE, "uuid": prefix + name} for name in each]
            for each in names
        ]
        return {"model": "ä", "messages": [user(*each) for each in parts], "n": 2}

    data = json.dumps(make(""), ensure_ascii=ascii_only).encode()
    assert rename(data) == make("client:")
