"""How much of a prompt is what its media hold: bytes that say little of its tokens."""

from collections.abc import Iterable
from contextlib import suppress

import msgspec
from msgspec import structs

from pdrouter.openai.body import Body
from pdrouter.openai.json_walk import OBJECT, JsonInvalid, list_items, read_mark
from pdrouter.openai.media import MAX_PARTS, MediaKeys

_LIST = ord("[")
_DEPTH = 4
"""Conversations of a batch, their messages, the parts of these, and those of a tool's result."""
_EMBEDDED = "prompt_embeds"
_BESIDE_A_TEXT = frozenset({"image", "images", "mask", "input_reference", "ref_audio"})
"""Members of bodies without parts that hold a medium."""
_TEXTS = (msgspec.Raw(b'"text"'), msgspec.Raw(b'"input_text"'), msgspec.Raw(b'"output_text"'))
_BASE64 = msgspec.Raw(b'"base64"')
_ABSENT = msgspec.Raw(b"")


class _Held(MediaKeys):
    """Members of a part that hold a medium: no engine reads them as text."""

    file_data: msgspec.Raw = _ABSENT
    prompt_embeds: msgspec.Raw = _ABSENT


_HELD = len(_Held.__struct_fields__)


class _Part(_Held):
    """A message, or a part of one."""

    type: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT


class _Source(msgspec.Struct):
    type: msgspec.Raw = _ABSENT


_decode_part = msgspec.json.Decoder(_Part).decode
_decode_source = msgspec.json.Decoder(_Source).decode


def measure_media(body: Body, name: str) -> int:
    """Return how many bytes of a prompt are what its media hold.

    What is text to an engine is none of it, whatever it looks like; nor is what stands behind so
    many parts that nobody looks at them.

    Args:
        body: the request.
        name: the member that is the prompt; nothing where all members together are.
    """
    if name == _EMBEDDED:
        start, end = body.span(name)
        return end - start
    search = _Search()
    # What is nested too deeply is no medium that an engine takes.
    with suppress(_TooMany, msgspec.MsgspecError, JsonInvalid, UnicodeError, RecursionError):
        for member in (name,) if name else body.names:
            value = body.view(member) or memoryview(b"")
            if not name and member in _BESIDE_A_TEXT:
                search.found += len(value)
            else:
                search.look(value, _DEPTH)
    return search.found


class _TooMany(Exception):
    """There are more parts than are looked at."""


class _Search:
    """Adds up what media hold.

    Attributes:
        found: bytes of it so far.
    """

    __slots__ = ("_left", "found")

    def __init__(self) -> None:
        self.found = 0
        self._left = MAX_PARTS

    def look(self, value: memoryview, depth: int) -> None:
        """Look at a message or a part, or at each of a list."""
        mark = read_mark(value, 0)
        if not depth or mark not in (OBJECT, _LIST):
            return
        items: Iterable[memoryview] = (value,) if mark == OBJECT else list_items(value)
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise _TooMany
            if read_mark(item, 0) == OBJECT:
                self._look_at_part(_decode_part(item), depth)
            else:
                self.look(item, depth - 1)

    def _look_at_part(self, part: _Part, depth: int) -> None:
        if part.type not in _TEXTS:
            self.found += sum(map(len, structs.astuple(part)[:_HELD]))
            if part.source is not _ABSENT:
                self.found += _measure_source(part.source)
        for held in (part.content, part.output):
            if held is not _ABSENT:
                self.look(memoryview(held), depth - 1)


def _measure_source(source: msgspec.Raw) -> int:
    """Return the bytes of Anthropic's images and documents; the source of these may be a text."""
    if read_mark(memoryview(source), 0) != OBJECT or _decode_source(source).type != _BASE64:
        return 0
    return len(source)
