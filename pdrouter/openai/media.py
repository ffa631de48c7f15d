"""Whether a prompt has parts that are no text: images, sound, videos, files."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
from msgspec import structs

from pdrouter.openai.body import Body
from pdrouter.openai.json_walk import OBJECT, list_items, read_mark
from pdrouter.openai.text_messages import is_sparse

MULTIMODAL = "multimodal"
"""Why a request with images, sound, videos or files is served whole, unless it may be split."""
MANY_PARTS = "many-parts"
"""Why a request is served whole with more parts than are looked at."""
MAX_PARTS = 2000
"""Messages and parts that are looked at, each of which costs time on the event loop."""
_MOST_AT_ONCE = 8 * MAX_PARTS
_DENSE_BYTES = 128
"""Objects that are taken together: no more than so many, each of which has so much text on average
that they take no more memory than that. Braces in texts look like objects."""
_MEDIA_TYPES = frozenset(
    {
        "image",
        "image_url",
        "image_pil",
        "image_embeds",
        "input_image",
        "computer_screenshot",
        "audio",
        "audio_url",
        "audio_embeds",
        "input_audio",
        "video",
        "video_url",
        "video_embeds",
        "input_video",
        "file",
        "input_file",
        "container_upload",
        "document",
    }
)
_WORDS = rb'image|input_|audio|video|file"|document"|computer_screenshot"|container_upload"'
_ESCAPED = rb"\\u00[5-7]|[acdfiv][_a-z]*+\\u00[5-7]"
_SIGN = re.compile(rb'"(?:%b)' % _WORDS)
_SIGN_WITH_ESCAPES = re.compile(rb'"(?:%b|%b)' % (_WORDS, _ESCAPED))
"""Without one of these there is neither such a type nor such a key: the one if the text has no
backslash, the other, with which letters of the words may be escaped, in any case."""
_ABSENT = msgspec.Raw(b"")
_NULL = msgspec.Raw(b"null")
_HOLDERS = b"[{"
_HOLDER_MARKS = (b"[", b"{")
_LONGEST_TYPE = 200
_DEPTH = 3
"""Messages, their parts, and the parts of a tool's result."""


class MediaKeys(msgspec.Struct):
    """The members under which a part holds a medium: engines tell it by them."""

    image_url: msgspec.Raw = _ABSENT
    image_pil: msgspec.Raw = _ABSENT
    image_embeds: msgspec.Raw = _ABSENT
    input_audio: msgspec.Raw = _ABSENT
    audio_url: msgspec.Raw = _ABSENT
    audio_embeds: msgspec.Raw = _ABSENT
    video_url: msgspec.Raw = _ABSENT
    video_embeds: msgspec.Raw = _ABSENT
    file: msgspec.Raw = _ABSENT


_KEYS = len(MediaKeys.__struct_fields__)
_NO_KEYS = (_ABSENT,) * _KEYS


class _Part(MediaKeys):
    """A message, an item or a part of one, as far as it may be or hold media.

    Engines need no `type`: they also tell a part by its key. One that has been sent before may be
    given by its `uuid` alone, with null under the key.
    """

    type: msgspec.Raw = _ABSENT
    uuid: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT

    def is_media(self) -> bool:
        """Return whether the part is no text."""
        if self.type is not _ABSENT and _read_text(self.type) in _MEDIA_TYPES:
            return True
        keys = structs.astuple(self)[:_KEYS]
        if keys == _NO_KEYS:
            return False
        # Clients that write every member of a type they know have text with an empty `image_url`.
        known = self.uuid not in (_ABSENT, _NULL)
        return any(value is not _ABSENT and (known or value != _NULL) for value in keys)

    def holds_parts(self) -> bool:
        """Return whether it may hold others, as the result of a tool does."""
        return any(bytes(held).startswith(_HOLDER_MARKS) for held in (self.content, self.output))


decode_part = msgspec.json.Decoder(_Part).decode
"""Reads one object, which may be a message, an item or a part."""
_decode_text = msgspec.json.Decoder(str).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode


def _read_text(raw: msgspec.Raw) -> str:
    """Return a short text; nothing for any other value."""
    value = bytes(raw)
    return _decode_text(value) if value.startswith(b'"') and len(value) <= _LONGEST_TYPE else ""


def find_media(body: Body, name: str) -> str | None:
    """Return why the parts of a prompt keep it from being split; None if none does.

    `multimodal` if it has images, sound, videos or files; `many-parts` if there are so many parts
    that nobody has looked at all of them.
    """
    data, (start, end) = body.data, body.span(name)
    if data.startswith(b'"', start) or start in (body.texts or ()):
        return None  # A text has no parts.
    sparse = is_sparse(data, start, end, MAX_PARTS)
    if not sparse and not _has_sign(data, start, end):
        return None
    most = max(MAX_PARTS, min((end - start) // _DENSE_BYTES, _MOST_AT_ONCE))
    few = sparse or data.count(b"{", start, end) <= most
    try:
        found = _Search(at_once=few).has_media(memoryview(data)[start:end], _DEPTH)
    except _TooMany:
        return MANY_PARTS
    return MULTIMODAL if found else None


def _has_sign(data: bytes, start: int, end: int) -> bool:
    # A single byte is found at once, or is not there.
    escapes = data.find(b"\\", start, end) >= 0
    return (_SIGN_WITH_ESCAPES if escapes else _SIGN).search(data, start, end) is not None


class _TooMany(Exception):
    """There are more parts than are looked at."""


@dataclass(slots=True)
class _Search:
    """Looks at messages, items and parts, but not at more of them than conversations have.

    Attributes:
        at_once: whether there are few enough objects that those of a list may be taken together.
        left: how many more are looked at.
    """

    at_once: bool
    left: int = MAX_PARTS

    def has_media(self, parts: memoryview, depth: int) -> bool:
        # Texts are skipped, not read: this costs less than to search them.
        if not depth or not parts or parts[0] not in _HOLDERS:
            return False
        for part in self._list_parts(parts):
            if part.is_media():
                return True
            for held in (part.content, part.output):
                if held is not _ABSENT and self.has_media(memoryview(held), depth - 1):
                    return True
        return False

    def _list_parts(self, parts: memoryview) -> Iterable[_Part]:
        """Yield the objects of a list, as long as they are not too many, or the only one."""
        if parts[0] == OBJECT:
            self._spend()
            return (decode_part(parts),)
        if self.at_once:
            try:
                return self._count(_decode_parts(parts))
            except msgspec.ValidationError:  # There are other values among them.
                return self._walk(parts)
        return self._walk(parts)

    def _count(self, parts: Iterable[_Part]) -> Iterator[_Part]:
        for part in parts:
            self._spend()
            yield part

    def _walk(self, parts: memoryview) -> Iterator[_Part]:
        for item in list_items(parts):
            self._spend()
            # What is no object has no media, whatever an engine may say of it.
            if read_mark(item, 0) == OBJECT:
                yield decode_part(item)

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _TooMany
