"""What encode engines are sent, how their answers are read, and what the other engines get."""

import json
from typing import Any

import pytest
from factories import make_pod, make_request

from pdrouter.cluster.pods import Role
from pdrouter.engines.leg_bodies import whole_body
from pdrouter.engines.split import HandoffInvalid, Leg, Placement
from pdrouter.engines.vllm.encoding import (
    Encoded,
    LegBodies,
    join,
    list_items,
    read_answer,
    write_body,
)
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.openai.media_items import MediaItem
from pdrouter.openai.request import InferenceRequest
from pdrouter.settings.choices import RemoteHostRewrite

ENCODER = make_pod("e", Role.ENCODE, ip="10.0.0.7")
PNG = "data:image/png;base64,iVBORw0KGgo="
PARTS: dict[str, dict[str, Any]] = {
    "image": {"type": "image_url", "image_url": {"url": PNG}},
    "audio": {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    "video": {"type": "video_url", "video_url": {"url": "https://media.example/v.mp4"}},
}


def make_chat(*kinds: str, **members: Any) -> tuple[InferenceRequest, tuple[MediaItem, ...]]:
    parts = [{"type": "text", "text": "look"}, *(PARTS[kind] for kind in kinds)]
    messages = [{"role": "user", "content": parts}]
    request = make_request("/v1/chat/completions", messages=messages, **members)
    return request, list_items(request)


def answer(item: MediaItem, params: Any) -> Encoded:
    return read_answer(item, json.dumps({"ec_transfer_params": params}).encode(), ENCODER)


def describe(number: int, **changes: Any) -> dict[str, Any]:
    return {"metadata": {"grid": [1, number]}, "peer_port": 5000 + number, **changes}


def encode(request: InferenceRequest, items: tuple[MediaItem, ...], **changes: Any) -> LegBodies:
    said = {
        item.digest: answer(item, {item.digest: describe(number, **changes)})
        for number, item in enumerate(items)
    }
    return join(request, items, said)


def read(request: InferenceRequest) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(whole_body(request)))
    return body


def test_an_encode_engine_gets_one_item_with_what_its_reading_depends_on() -> None:
    request, items = make_chat(
        "image",
        "audio",
        mm_processor_kwargs={"fps": 2},
        media_io_kwargs={"image": {}},
        priority=7,
        temperature=0.5,
        stream=True,
        tools=[],
        ec_transfer_params={"mine": {}},
    )
    for item, part in zip(items, (PARTS["image"], PARTS["audio"]), strict=True):
        assert json.loads(bytes(write_body(request, item))) == {
            "model": "llama",
            "messages": [{"role": "user", "content": [{**part, "uuid": item.digest}]}],
            "stream": False,
            "max_tokens": 1,
            "mm_processor_kwargs": {"fps": 2},
            "media_io_kwargs": {"image": {}},
            "priority": 7,
        }


def test_the_engine_s_name_of_the_model_and_the_router_s_word_on_priorities_count() -> None:
    request, (item,) = make_chat("image", priority=7)
    body = json.loads(bytes(write_body(request.rename("base").rank(None), item)))
    assert body["model"] == "base"
    assert "priority" not in body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"ec_transfer_params": 7}',
        b'{"ec_transfer_params": []}',
        b'{"ec_transfer_params": {"h": 7}}',
        b'{"ec_transfer_params": {"h": {}, "h": {}}}',
        b'{"ec_transfer_params": {"h": {"metadata": "\xff"}}}',
    ],
)
def test_an_answer_that_cannot_be_understood_is_refused(body: bytes) -> None:
    _, (item,) = make_chat("image")
    with pytest.raises(HandoffInvalid) as caught:
        read_answer(item, body, ENCODER)
    assert caught.value.reason == "ec-invalid"


def test_an_engine_may_make_a_hash_of_its_own() -> None:
    _, (item,) = make_chat("image")
    assert answer(item, {"of-its-own": describe(1)}).metadata == b'{"grid": [1, 1]}'
    both = {"sound-of-it": describe(2), item.digest: describe(3)}
    assert answer(item, both).metadata == b'{"grid": [1, 3]}'
    # Which of them stands for it nobody says.
    assert answer(item, {"a": describe(1), "b": describe(2)}).metadata is None


def test_prefill_gets_placeholders_and_handles_and_decode_the_placeholders_alone() -> None:
    request, items = make_chat("image", "audio", "video")
    bodies = encode(request, items)
    embeds = [
        {"type": f"{kind}_embeds", f"{kind}_embeds": {"grid": [1, number]}, "uuid": item.digest}
        for number, (kind, item) in enumerate(zip(PARTS, items, strict=True))
    ]
    for body in map(read, bodies):
        assert body["messages"][0]["content"] == [{"type": "text", "text": "look"}, *embeds]
    handles = {item.digest: describe(number) for number, item in enumerate(items)}
    assert read(bodies.prompt)["ec_transfer_params"] == handles
    assert "ec_transfer_params" not in read(bodies.decode)


def test_descriptors_are_handed_on_as_they_were_written() -> None:
    request, (item,) = make_chat("image")
    descriptor = b'{"metadata" : {"n":1.50}, "size_bytes":12345678901234567890}'
    said = read_answer(
        item, b'{"ec_transfer_params":{"%s":%s}}' % (item.digest.encode(), descriptor), ENCODER
    )
    bodies = join(request, (item,), {item.digest: said})
    assert descriptor in bytes(whole_body(bodies.prompt))
    assert b'"image_embeds":{"n":1.50}' in bytes(whole_body(bodies.decode))


def test_what_is_large_is_neither_copied_nor_read_again() -> None:
    """Bodies are written on the event loop, for each try of each item."""
    messages = [{"role": "user", "content": [PARTS["image"], {**PARTS["audio"], "uuid": "mine"}]}]
    request = make_request("/v1/chat/completions", messages=messages)
    items, data = list_items(request), request.body.data
    said = {item.digest: Encoded(None, {}) for item in items}
    written = [write_body(request, item) for item in items]
    for pieces in (*written, whole_body(join(request, items, said).prompt)):
        views = [part for part in pieces.parts if isinstance(part, memoryview)]
        assert all(part.obj is data for part in views)
        text = b"".join(views)
        assert b"iVBORw0KGgo=" in text or b"UklGRg==" in text


def test_equal_items_get_the_same_placeholder() -> None:
    request, items = make_chat("image", "image")
    assert items[0].digest == items[1].digest
    said = {items[0].digest: answer(items[0], {items[0].digest: describe(1)})}
    first, second = read(join(request, items, said).prompt)["messages"][0]["content"][1:]
    assert first == second
    assert first["type"] == "image_embeds"


@pytest.mark.parametrize("metadata", [..., None, {}])
def test_an_item_without_metadata_stays_what_it_is_by_its_name(metadata: Any) -> None:
    request, items = make_chat("image", "audio")
    said = {item.digest: answer(item, {item.digest: describe(1)}) for item in items}
    descriptor = describe(1, metadata=metadata)
    if metadata is ...:
        del descriptor["metadata"]
    said[items[0].digest] = answer(items[0], {items[0].digest: descriptor})
    bodies = join(request, items, said)
    for body in map(read, bodies):
        content = body["messages"][0]["content"]
        assert content[1] == {**PARTS["image"], "uuid": items[0].digest}
        assert content[2]["type"] == "audio_embeds"
    assert read(bodies.prompt)["ec_transfer_params"].keys() == {item.digest for item in items}


@pytest.mark.parametrize("params", [None, {}, ...])
def test_an_engine_may_say_nothing(params: Any) -> None:
    request, (item,) = make_chat("image")
    said = read_answer(item, b"{}", ENCODER) if params is ... else answer(item, params)
    bodies = join(request, (item,), {item.digest: said})
    for body in map(read, bodies):
        # Engines that share a storage find it there by this name.
        assert body["messages"][0]["content"][1] == {**PARTS["image"], "uuid": item.digest}
        assert "ec_transfer_params" not in body


@pytest.mark.parametrize(
    ("rewrite", "host", "expected"),
    [
        ("auto", "localhost", "10.0.0.7"),
        ("auto", "127.0.0.1", "10.0.0.7"),
        ("auto", "10.0.0.9", "10.0.0.9"),
        ("always", "10.0.0.9", "10.0.0.7"),
        ("never", "localhost", "localhost"),
        ("always", None, None),
    ],
)
def test_an_address_that_leads_nowhere_becomes_the_pod_s(
    rewrite: str, host: str | None, expected: str | None
) -> None:
    _, (item,) = make_chat("image")
    said = json.dumps({"ec_transfer_params": {"h": {"peer_host": host, "size": 1.50}}}).encode()
    read_back = read_answer(item, said, ENCODER, RemoteHostRewrite(rewrite))
    descriptor = json.loads(read_back.descriptors["h"])
    assert descriptor == {"peer_host": expected, "size": 1.5}


def test_one_hash_with_two_descriptions_is_refused() -> None:
    request, items = make_chat("image", "audio")
    same = {item.digest: answer(item, {"h": describe(1)}) for item in items}
    assert read(join(request, items, same).prompt)["ec_transfer_params"] == {"h": describe(1)}
    other = {item.digest: answer(item, {"h": describe(n)}) for n, item in enumerate(items)}
    with pytest.raises(HandoffInvalid) as caught:
        join(request, items, other)
    assert caught.value.reason == "ec-conflict"


def test_what_the_client_says_of_handles_never_reaches_an_engine() -> None:
    request, items = make_chat("image", ec_transfer_params={"stolen": {}}, temperature=0.50)
    bodies = encode(request, items)
    assert read(bodies.prompt)["ec_transfer_params"].keys() == {items[0].digest}
    assert b"stolen" not in bytes(whole_body(bodies.prompt)) + bytes(whole_body(bodies.decode))


def test_the_wire_between_prefill_and_decode_is_as_ever() -> None:
    request, items = make_chat("image", seed=12345678901234567890, stream=True)
    bodies = encode(request, items)
    pods = {Leg.PREFILL: make_pod("p"), Leg.DECODE: make_pod("d", Role.DECODE)}
    body = bytes(NixlPull().side_body(Leg.PREFILL, bodies.prompt, Placement(pods, "id")))
    prefill = json.loads(body)
    assert (prefill["max_tokens"], prefill["stream"]) == (1, False)
    assert prefill["kv_transfer_params"]["do_remote_decode"]
    assert prefill["ec_transfer_params"].keys() == {items[0].digest}
    assert b'"seed": 12345678901234567890' in body
