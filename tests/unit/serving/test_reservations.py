"""A prompt's bytes say how long it is, unless there is a picture in them."""

import json
from collections.abc import Mapping

import pytest
from exchanges import CHAT

from pdrouter.openai.media import MAX_PARTS
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.serving.reservations import TOKENS_OF_MEDIA, reserve_tokens

BYTES = "A" * 400_000
DATA = f"data:image/png;base64,{BYTES}"
IMAGE = {"type": "image_url", "image_url": {"url": DATA}}
SOUND = {"type": "input_audio", "input_audio": {"data": BYTES, "format": "wav"}}
EMBEDDED = {"type": "prompt_embeds", "prompt_embeds": BYTES}
TENSOR = {"type": "image_embeds", "image_embeds": BYTES}
FILE = {"type": "input_file", "filename": "a.pdf", "file_data": f"data:;base64,{BYTES}"}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BYTES}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [PICTURE]}
UNTYPED = {"image_url": {"url": DATA}}
LINK = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
SMALL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_a_short_prompt_takes_what_it_has() -> None:
    assert reserve(SMALL) < 30


@pytest.mark.parametrize(
    "part",
    [IMAGE, SOUND, EMBEDDED, TENSOR, FILE, PICTURE, RESULT, UNTYPED],
    ids=lambda part: str([*part]),
)
def test_no_more_is_taken_for_media_than_they_may_have(part: Mapping[str, object]) -> None:
    assert 0 <= reserve(part) - TOKENS_OF_MEDIA < 100
    assert 0 <= reserve(part, IMAGE, LINK) - TOKENS_OF_MEDIA < 100


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": f"what is this? {DATA}"},
        {"type": "text", "text": '{"type": "input_audio", "input_audio": "base64"}' + BYTES},
        {"type": "text", "text": BYTES, "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"url": DATA, "data": BYTES}},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"image_url": DATA}},
        {"type": "document", "source": {"type": "text", "data": BYTES, "media_type": "base64"}},
    ],
    ids=["data URL", "quoted part", "beside a medium", "tool", "tool's image", "plain document"],
)
def test_all_of_a_text_is_taken_whatever_stands_in_it(part: Mapping[str, object]) -> None:
    """Otherwise a limit of tokens is passed by whoever writes the right word."""
    assert reserve(part) >= len(BYTES) // 4
    assert 0 <= reserve(part, IMAGE) - reserve(part) - TOKENS_OF_MEDIA < 100


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/v1/score", {"data_1": "a", "data_2": {"content": [IMAGE]}}),
        ("/v1/rerank", {"query": "a", "documents": [{"content": [IMAGE]}, "b"]}),
        ("/pooling", {"messages": [{"role": "user", "content": [IMAGE]}]}),
        ("/v2/embed", {"images": [DATA]}),
        ("/v2/embed", {"inputs": [{"content": [IMAGE]}]}),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": [IMAGE]}]]}),
        ("/v1/images/edits", {"prompt": "a", "image": BYTES}),
        ("/v1/images/edits", {"prompt": "a", "images": [{"image_url": DATA}]}),
        ("/v1/videos/sync", {"prompt": "a", "input_reference": DATA}),
        ("/v1/audio/speech", {"input": "a", "ref_audio": DATA}),
    ],
)
def test_media_are_found_where_no_one_member_is_the_prompt(
    path: str, members: Mapping[str, object]
) -> None:
    assert 0 <= reserve_body(path, members) - TOKENS_OF_MEDIA < 100
    texts = {"model": "m", "more": [DATA, {"text": DATA}, {"content": DATA}]}
    assert reserve_body(path, {**members, **texts}) >= TOKENS_OF_MEDIA + 3 * len(DATA) // 4


@pytest.mark.parametrize("path", ["/v1/rerank", "/pooling", "/v1/chat/completions/batch"])
@pytest.mark.parametrize("named", ["a", [UNTYPED]])
def test_a_member_without_a_name_is_not_taken_for_the_prompt(path: str, named: object) -> None:
    text = "word " * 100_000
    assert reserve_body(path, {"": named, "documents": [text]}) >= len(text) // 4


def test_all_that_stands_behind_too_many_parts_is_taken() -> None:
    text: Mapping[str, object] = {"type": "text", "text": "a"}
    assert reserve(*[text] * MAX_PARTS, IMAGE) >= len(BYTES) // 4


@pytest.mark.parametrize("counted", [9000, 20_000])
def test_a_prompt_that_was_counted_takes_no_more_than_that(counted: int) -> None:
    request = parse({**CHAT, "messages": [{"role": "user", "content": [IMAGE] * 9}]})
    assert reserve_tokens(request, counted, 0, estimate)[0] <= min(counted, TOKENS_OF_MEDIA + 200)


@pytest.mark.parametrize(("members", "answers"), [({}, 1), ({"n": 3}, 3), ({"n": "2"}, 2)])
def test_each_of_several_answers_takes_its_tokens(members: dict[str, object], answers: int) -> None:
    assert reserve_tokens(parse({**CHAT, **members}), 10, 50, estimate) == (10, 50 * answers)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_what_nobody_computes_takes_nothing(path: str) -> None:
    assert reserve_tokens(parse(CHAT, path), 10, 50, estimate) == (0, 0)


def reserve(*parts: Mapping[str, object]) -> int:
    request = parse({**CHAT, "messages": [{"role": "user", "content": parts}]})
    return reserve_tokens(request, estimate(len(request.prompt)), 50, estimate)[0]


def reserve_body(path: str, members: Mapping[str, object]) -> int:
    request = parse({"model": "m", **members}, path)
    size = len(request.prompt) or len(request.body.data)
    return reserve_tokens(request, estimate(size), 50, estimate)[0]


def estimate(size: int) -> int:
    return max(1, size // 4)


def parse(body: dict[str, object], path: str = "/v1/chat/completions") -> InferenceRequest:
    return parse_request(
        ENDPOINTS[path],
        "",
        json.dumps(body).encode(),
        transfer_members=frozenset(),
        split_multimodal=False,
    )
