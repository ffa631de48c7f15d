"""The images, sounds and videos of a conversation: what each is, and where it stands."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from pdrouter.openai.body import Body, BodyInvalid
from pdrouter.openai.json_walk import list_spans
from pdrouter.openai.media import decode_part
from pdrouter.openai.pieces import Pieces

_KINDS: Mapping[str, str] = MappingProxyType(
    {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
)
"""What a part with this type, or under this key, is."""
_CONTENTS = ("url", "data")
_decode_text = msgspec.json.Decoder(str).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MediaItem(NamedTuple):
    """One part of a conversation that is no text.

    Attributes:
        kind: `image`, `audio` or `video`.
        start: where it begins in the body.
        end: where it ends.
        digest: SHA-256 of what it is, or of the URL where that is, and of how it is to be read.
    """

    kind: str
    start: int
    end: int
    digest: str


class _NoItem(Exception):
    """A part is no text, but nothing that can be taken out of the conversation either."""


def find_items(body: Body, name: str, options: tuple[str, ...]) -> tuple[MediaItem, ...]:
    """Return all parts of a conversation that are no text; none if one of them is unknown.

    Args:
        body: the request.
        name: the member that is the conversation, as chats have it.
        options: members that say how media are read.
    """
    read_with = b"".join(b"%s\0%s\0" % (each.encode(), body.raw(each) or b"") for each in options)
    start, end = body.span(name)
    view = memoryview(body.data)[:end]
    try:
        return tuple(
            item
            for span in list_spans(view, start)
            for item in _find_in_message(body.data, *span, read_with)
        )
    except (_NoItem, BodyInvalid, msgspec.MsgspecError):
        return ()


def replace_items(body: Body, name: str, replace: Mapping[MediaItem, Pieces]) -> Pieces:
    """Return a conversation in which some parts are others; all else is as it was."""
    position, end = body.span(name)
    view = memoryview(body.data)
    pieces: list[bytes | memoryview] = []
    for item in sorted(replace, key=lambda each: each.start):
        pieces += (view[position : item.start], *replace[item].parts)
        position = item.end
    pieces.append(view[position:end])
    return Pieces(tuple(pieces))


def _find_in_message(data: bytes, start: int, end: int, read_with: bytes) -> Iterator[MediaItem]:
    message = data[start:end]
    if decode_part(message).is_media():
        raise _NoItem
    content, last = Body(message).span("content")
    if not message.startswith(b"[", content):
        if content and message.startswith(b"{", content):
            raise _NoItem
        return
    view = memoryview(data)[: start + last]
    for where, until in list_spans(view, start + content):
        item = _read_part(data[where:until], where, until, read_with)
        if item is not None:
            yield item


def _read_part(part: bytes, start: int, end: int, read_with: bytes) -> MediaItem | None:
    """Return the item that a part is; None if it is a text.

    Raises:
        _NoItem: it is something else.
    """
    if not part.startswith(b"{"):
        return None
    known = decode_part(part)
    if not known.is_media():
        if known.holds_parts():
            raise _NoItem
        return None
    members = _decode_members(part)
    named = members.get("type")
    keys = [key for key in _KINDS if members.get(key, b"null") != b"null"]
    if len(keys) != 1 or (named is not None and _decode_text(named) != keys[0]):
        raise _NoItem
    return MediaItem(_KINDS[keys[0]], start, end, _digest(keys[0], members[keys[0]], read_with))


def _digest(key: str, value: msgspec.Raw, read_with: bytes) -> str:
    """Return the digest of what a part holds, however that is written.

    Raises:
        _NoItem: it holds neither data nor a URL.
    """
    text = bytes(value)
    members = {"url": value} if text.startswith(b'"') else _decode_members(text)
    found = [name for name in _CONTENTS if name in members]
    if len(found) != 1:
        raise _NoItem
    digest = sha256(b"%s\0%s" % (key.encode(), read_with))
    for name in sorted(members.keys() - _CONTENTS):
        digest.update(b"%s\0%s\0" % (name.encode(), bytes(members[name])))
    digest.update(_decode_text(members[found[0]]).encode(errors="surrogatepass"))
    return digest.hexdigest()
