"""The names that clients give to media, kept apart from those that the router gives.

Engines keep what they have made of a medium by its `uuid`, and look no further. Where pods encode
media for others, the router names a medium by what it is. A client that could use such a name
itself would put its own medium in the place of another client's.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from pdrouter.openai.body import Body, BodyInvalid, encode
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.json_walk import JsonInvalid, list_spans
from pdrouter.openai.media_items import MOST_PARTS, replace_parts
from pdrouter.openai.pieces import Pieces

_CONVERSATIONS = ("messages", "input")
_NAME = "uuid"
_PREFIX = "client:"
_SIGN = _NAME.encode()
_ESCAPED_LETTER = re.compile(rb"\\u00[67]")
"""Without one of these, a name that is not written as it is cannot be there."""
Place: TypeAlias = tuple[int, int]
"""Where a value starts and ends."""
_decode_text = msgspec.json.Decoder(str).decode


def rename_media(body: Body) -> dict[str, Pieces]:
    """Return what replaces the conversations of a request in which the client names media.

    Raises:
        RequestRejected: nobody can say which names there are.
    """
    replaced: dict[str, Pieces] = {}
    for name in _CONVERSATIONS:
        start, end = body.span(name)
        if not (body.data.startswith(b"[", start) and _has_sign(body.data, start, end)):
            continue
        try:
            renamed = dict(_Search(body.data, name).rename(start, end))
        except (BodyInvalid, JsonInvalid, RecursionError, msgspec.MsgspecError) as error:
            message = f"a part of {name!r} cannot be read: {error}"
            raise RequestRejected(400, "invalid_value", message, name) from None
        if renamed:
            replaced[name] = replace_parts(body, name, renamed)
    return replaced


def _has_sign(data: bytes, start: int, end: int) -> bool:
    if data.find(_SIGN, start, end) >= 0:
        return True
    # A single byte is found at once, or is not there.
    escape = data.find(b"\\", start, end)
    return escape >= 0 and _ESCAPED_LETTER.search(data, escape, end) is not None


class _Search:
    """Looks for names in a conversation, and at no more parts of it than any has."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._view = memoryview(data)
        self._name = name
        self._left = MOST_PARTS

    def rename(self, start: int, end: int, depth: int = 2) -> Iterator[tuple[Place, Pieces]]:
        """Yield the parts that have names, with others. A batch is a list of conversations."""
        for first, last in self._list(start, end):
            if self._data.startswith(b"[", first) and depth > 1:
                yield from self.rename(first, last, depth - 1)
            if not self._data.startswith(b"{", first):
                continue
            content, until = Body(self._data[first:last]).span("content")
            if not self._data.startswith(b"[", first + content):
                continue
            for place in self._list(first + content, first + until):
                renamed = _rename(self._data[slice(*place)])
                if renamed is not None:
                    yield place, renamed

    def _list(self, start: int, end: int) -> Iterator[Place]:
        """Yield where the items of a list stand that may hold a name."""
        for place in list_spans(self._view[:end], start):
            self._left -= 1
            if self._left < 0:
                message = f"{self._name!r} has more than {MOST_PARTS} parts, and names of media"
                raise RequestRejected(400, "invalid_value", message, self._name)
            if _has_sign(self._data, *place):
                yield place


def _rename(data: bytes) -> Pieces | None:
    """Return a part with a name that only clients give; None if it has none."""
    if not data.startswith(b"{"):
        return None
    part = Body(data)
    name = part.raw(_NAME)
    if name is None or (not name.startswith(b'"') and _NAME not in part.duplicates):
        return None
    named = encode(_PREFIX + _decode_text(name)) if name.startswith(b'"') else name
    return part.edit({_NAME: named})
