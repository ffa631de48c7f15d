"""A prompt's bytes say how long it is, unless there is a picture in them."""

import json

import pytest
from exchanges import CHAT

from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.serving.reservations import TOKENS_WITH_MEDIA, reserve_tokens

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
LINK = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
TEXT = {"type": "text", "text": "what is this?"}


@pytest.mark.parametrize(
    ("part", "tokens", "taken"),
    [
        (TEXT, 100_000, 100_000),
        (LINK, 100_000, 100_000),
        (IMAGE, 100_000, TOKENS_WITH_MEDIA),
        (SOUND, 100_000, TOKENS_WITH_MEDIA),
        (IMAGE, 300, 300),
    ],
)
def test_no_more_is_taken_for_media_than_they_may_have(
    part: dict[str, object], tokens: int, taken: int
) -> None:
    request = parse({**CHAT, "messages": [{"role": "user", "content": [part]}]})
    assert reserve_tokens(request, tokens, 50) == (taken, 50)


@pytest.mark.parametrize(("members", "answers"), [({}, 1), ({"n": 3}, 3), ({"n": "2"}, 2)])
def test_each_of_several_answers_takes_its_tokens(members: dict[str, object], answers: int) -> None:
    assert reserve_tokens(parse({**CHAT, **members}), 10, 50) == (10, 50 * answers)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_what_nobody_computes_takes_nothing(path: str) -> None:
    assert reserve_tokens(parse(CHAT, path), 10, 50) == (0, 0)


def parse(body: dict[str, object], path: str = "/v1/chat/completions") -> InferenceRequest:
    return parse_request(
        ENDPOINTS[path],
        "",
        json.dumps(body).encode(),
        transfer_members=frozenset(),
        split_multimodal=False,
    )
