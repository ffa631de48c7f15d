"""The images, sounds and videos of a conversation: what each is, and where it stands."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import count
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.json_walk import JsonInvalid, list_spans
from pdrouter.openai.media import decode_part
from pdrouter.openai.pieces import Pieces

MOST_PARTS = 20_000
"""Messages and parts that are looked at one by one where media may be encoded by others."""
_KINDS: Mapping[str, str] = MappingProxyType(
    {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
)
"""What a part with this type, or under this key, is."""
_CONTENTS = ("url", "data")
_NAME = "uuid"
_OF_NO_MATTER = frozenset({"type", _NAME, "cache_control"})
"""Members beside the medium that change nothing of what an engine computes of it."""
_decode_text = msgspec.json.Decoder(str).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MediaItem(NamedTuple):
    """One part of a conversation that is no text.

    Attributes:
        kind: `image`, `audio` or `video`.
        start: where it begins in the body.
        end: where it ends.
        name: where the client's name of it stands; where one may be written, if there is none.
        digest: SHA-256 of what it is, or of the URL where that is, and of how it is to be read.
    """

    kind: str
    start: int
    end: int
    name: tuple[int, int]
    digest: str


class _NoItem(Exception):
    """A part is no text, but nothing that can be taken out of the conversation either."""


def find_items(body: Body, name: str, options: tuple[str, ...]) -> tuple[MediaItem, ...]:
    """Return all parts of a conversation that are no text.

    None if one of them is unknown, or there are more parts than are looked at.

    Args:
        body: the request.
        name: the member that is the conversation, as chats have it.
        options: members that say how media are read.
    """
    read_with = _frame(*(body.raw(each) or b"" for each in options))
    start, end = body.span(name)
    view, looked = memoryview(body.data)[:end], count(1)
    try:
        return tuple(
            item
            for span in _list_parts(view, start, looked)
            for item in _find_in_message(body.data, *span, read_with, looked)
        )
    except (_NoItem, BodyInvalid, JsonInvalid, RecursionError, msgspec.MsgspecError):
        # What stands so deep that it can be read at times only is in no medium that is sent.
        return ()


def name_item(body: Body, item: MediaItem) -> Pieces:
    """Return an item with a name that says what it is, in place of the client's. Reads nothing."""
    view, (start, end) = memoryview(body.data), item.name
    name = encode(item.digest) if start < end else f',"{_NAME}":"{item.digest}"'.encode()
    return Pieces((view[item.start : start], name, view[end : item.end]))


def replace_parts(body: Body, name: str, replace: Mapping[tuple[int, int], Pieces]) -> Pieces:
    """Return a conversation in which some parts are others; all else is as it was.

    Args:
        body: the request.
        name: the member that is the conversation.
        replace: what stands in place of a part, by where that starts and ends.
    """
    position, end = body.span(name)
    view = memoryview(body.data)
    pieces: list[bytes | memoryview] = []
    for start, until in sorted(replace):
        pieces += (view[position:start], *replace[start, until].parts)
        position = until
    pieces.append(view[position:end])
    return Pieces(tuple(pieces))


def _list_parts(view: memoryview, start: int, looked: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Yield where the messages, or the parts of one, stand.

    Raises:
        _NoItem: there are more than are looked at.
    """
    for span in list_spans(view, start):
        if next(looked) > MOST_PARTS:
            raise _NoItem
        yield span


def _find_in_message(
    data: bytes, start: int, end: int, read_with: bytes, looked: Iterator[int]
) -> Iterator[MediaItem]:
    message = data[start:end]
    if decode_part(message).is_media():
        raise _NoItem
    content, last = Body(message).span("content")
    if not message.startswith(b"[", content):
        if content and message.startswith(b"{", content):
            raise _NoItem
        return
    view = memoryview(data)[: start + last]
    for where, until in _list_parts(view, start + content, looked):
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
    holder = Body(part)
    named = holder.raw("type")
    keys = [key for key in _KINDS if holder.view(key) not in (None, b"null")]
    if len(keys) != 1 or (named is not None and _decode_text(named) != keys[0]):
        raise _NoItem
    if holder.duplicates:
        raise _NoItem  # Who of those that read it takes which, nobody knows.
    name, until = holder.span(_NAME)
    place = (start + name, start + until) if until else (end - 1, end - 1)
    return MediaItem(_KINDS[keys[0]], start, end, place, _digest(holder, keys[0], read_with))


def _digest(part: Body, key: str, read_with: bytes) -> str:
    """Return the digest of what a part holds, however that is written.

    Raises:
        _NoItem: it holds neither data nor a URL.
    """
    value = part.view(key) or memoryview(b"")
    members = {"url": value} if bytes(value[:1]) == b'"' else _decode_members(value)
    found = [name for name in _CONTENTS if name in members]
    if len(found) != 1:
        raise _NoItem
    beside = {name: part.raw(name) or b"" for name in {*part.names} - {key, *_OF_NO_MATTER}}
    inside = {name: bytes(members[name]) for name in members.keys() - _CONTENTS}
    digest = sha256(_frame(key.encode(), read_with, _list(beside), _list(inside)))
    digest.update(_read_content(memoryview(members[found[0]]), escapes=b"\\" in part.data))
    return digest.hexdigest()


def _read_content(raw: memoryview, *, escapes: bool) -> bytes | memoryview:
    """Return a text in UTF-8; it is not copied where it is written without escapes.

    Raises:
        _NoItem: it is no text.
    """
    if bytes(raw[:1]) != b'"':
        raise _NoItem
    return _decode_text(raw).encode(errors="surrogatepass") if escapes else raw[1:-1]


def _list(members: Mapping[str, bytes]) -> bytes:
    """Return members in an order of their own, without those that are null."""
    said = sorted(each for each in members.items() if each[1] != b"null")
    return _frame(*(text for name, value in said for text in (name.encode(), value)))


def _frame(*texts: bytes) -> bytes:
    """Return texts as one, in which each says how long it is: no others make the same."""
    return b"".join(b"%d:%s" % (len(text), text) for text in texts)
