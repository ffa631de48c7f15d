"""The text of a prompt, for a tokenizer."""

from collections.abc import Iterator
from typing import Any

import msgspec

from pdrouter.openai.request import InferenceRequest

_CONTEXT = ("system", "instructions")
_SCHEMAS = ("tools", "documents")
MAX_VALUES = 200_000
"""Values in a prompt that is taken apart; more than texts of a few megabytes appear to have."""
_NOT_TEXT = frozenset(
    {
        "type",
        "id",
        "call_id",
        "tool_call_id",
        "tool_use_id",
        "cache_control",
        "image_url",
        "input_audio",
        "file",
        "file_data",
        "source",
        "video_url",
        "audio_url",
        "detail",
        "status",
        "signature",
        "encrypted_content",
    }
)
"""Members of messages and content parts whose values never become text of the prompt."""


def extract_text(request: InferenceRequest) -> str | None:
    """Return what engines render into the prompt, without what chat templates add.

    Templates write roles and texts of messages one after the other, and tools and documents as
    JSON; what stands between them is a few tokens a message.

    None if there may be so many values that to take them apart would hold up all other requests:
    a thread lets nobody else run meanwhile.
    """
    raw = [value for name in _CONTEXT if (value := request.body.raw(name))]
    raw.append(bytes(request.prompt))
    if sum(map(_count_marks, raw)) > MAX_VALUES:
        return None
    parts = [text for value in raw if value for text in _list_strings(value)]
    parts += [
        value.decode(errors="replace")
        for name in _SCHEMAS
        if (value := request.body.raw(name)) is not None
    ]
    return "\n".join(parts)


def _count_marks(raw: bytes) -> int:
    """Return how many values there may be at most; those within texts count, too."""
    return sum(map(raw.count, (b"[", b"{", b",")))


def _list_strings(raw: bytes) -> Iterator[str]:
    """Yield the texts in a JSON value, in their order."""
    left: list[Any] = [msgspec.json.decode(raw)]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left.extend(reversed(value))
        elif isinstance(value, dict):
            members = [member for name, member in value.items() if name not in _NOT_TEXT]
            left.extend(reversed(members))
