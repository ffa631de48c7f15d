"""A prompt's bytes say how long it is, unless there is a picture in them."""

import json

import pytest
from exchanges import CHAT

from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.request import parse_request
from pdrouter.serving.reservations import TOKENS_WITH_MEDIA, reserve_prompt

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
    body = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
    request = parse_request(
        ENDPOINTS["/v1/chat/completions"],
        "",
        json.dumps(body).encode(),
        transfer_members=frozenset(),
        split_multimodal=False,
        content_type="",
    )
    assert reserve_prompt(request, tokens) == taken
