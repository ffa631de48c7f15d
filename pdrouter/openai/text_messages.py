"""Conversations that are nothing but text: that is seen while their end is looked for."""

import sys
from typing import Literal

import msgspec

from pdrouter.openai.json_walk import JsonInvalid, find_end

CONVERSATIONS = frozenset({"messages", "input"})
"""Members that may be lists of messages."""
MOST_BYTES = 5 * 256 * 1024
"""Longer bodies are not looked at this way: what is made of each message on the way takes memory
and time, for messages without text more than anything else: ten bytes, and 9 ns, for each byte."""
_SPARSE_BYTES = 16 * 1024
"""With so much text to each object, to look at all objects costs less than to read the texts."""


class _NoMedia(msgspec.Struct, gc=False, kw_only=True):
    """Has nothing under which engines look for a medium, nor for what may hold one."""

    image_url: None = None
    image_pil: None = None
    image_embeds: None = None
    input_audio: None = None
    audio_url: None = None
    audio_embeds: None = None
    video_url: None = None
    video_embeds: None = None
    file: None = None
    uuid: None = None
    output: None = None


class _Text(_NoMedia, gc=False):
    type: Literal["text", "input_text", "output_text"]
    content: None = None


class _Message(_NoMedia, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    type: Literal["message"] | None = None
    content: str | list[_Text] | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode


def is_sparse(data: bytes, start: int, end: int, most: int = sys.maxsize) -> bool:
    """Return whether there are so few objects that all are looked at, and their texts skipped.

    Args:
        data: the bytes.
        start: where they are looked at.
        end: where that ends.
        most: objects that are looked at, however long the texts are.
    """
    for _ in range(min((end - start) // _SPARSE_BYTES, most) + 1):
        start = data.find(b"{", start, end) + 1
        if not start:
            return True
    return False


def find_end_of_texts(view: memoryview, start: int) -> tuple[int, int] | None:
    """Return what `find_end` does, of a list of messages of text.

    None if it is something else, valid or not, or if not all is known that stands in it.
    """
    try:
        return find_end(view, start, _decode_messages)
    except JsonInvalid:
        return None
