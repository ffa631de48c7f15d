"""The text of a prompt, as a tokenizer is to see it."""

from typing import Any

import pytest
from factories import make_request

from pdrouter.openai.prompt_text import extract_text

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    ("path", "changes", "text"),
    [
        (COMPLETIONS, {"prompt": "Once upon\n a time \u00e9"}, "Once upon\n a time \u00e9"),
        (COMPLETIONS, {"prompt": ["one"]}, "one"),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}, "user\nhi"),
        (
            CHAT,
            {
                "messages": [
                    {"role": "system", "content": "be short"},
                    {"role": "user", "content": [{"type": "text", "text": "what?"}, PICTURE]},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
                ]
            },
            'system\nbe short\nuser\nwhat?\nassistant\nlook\n{"a":1}\ntool\n42',
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]},
            'user\nhi\n[{"type": "function"}]',
        ),
        (
            "/v1/messages",
            {"system": [{"type": "text", "text": "be short"}], "max_tokens": 5},
            "be short\nuser\nhi",
        ),
        ("/v1/responses", {"input": "hi", "instructions": "be short"}, "be short\nhi"),
    ],
)
def test_texts_come_in_the_order_in_which_templates_write_them(
    path: str, changes: dict[str, Any], text: str
) -> None:
    assert extract_text(make_request(path, **changes)) == text
