"""JSON request bodies that are edited without touching what is not edited."""

import re
from codecs import utf_8_decode
from collections.abc import Callable, Collection, Mapping, Set
from functools import cache, lru_cache
from typing import Any, TypeVar

import msgspec

from pdrouter.openai.json_walk import (
    COLON,
    QUOTE,
    JsonInvalid,
    check_json,
    find_end,
    invalid_character,
    read_mark,
    skip_space,
)
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.text_messages import (
    CONVERSATIONS,
    MOST_BYTES,
    find_end_of_texts,
    is_sparse,
)

T = TypeVar("T")

_decode_string = msgspec.json.Decoder(str).decode
_SPACE = rb"[ \t\n\r]*+"
# A name is kept as text, which may take four bytes for each of one: no request has one as long.
MAX_NAME_BYTES = 256
_TEXT = rb'[^"\\\x00-\x1f]{0,%d}+' % MAX_NAME_BYTES
_PLAIN = rb'"%b"|true|false|null|(?:0|[1-9][0-9]{0,20}+)(?:\.[0-9]{1,20}+)?' % _TEXT
_PLAIN_OBJECT = rb'\{%b"%b"%b:%b(?:%b)%b\}' % (_SPACE, _TEXT, _SPACE, _SPACE, _PLAIN, _SPACE)
_MARK = rb"([,}])" + _SPACE
_OPENING = re.compile(rb"%b\{%b" % (_SPACE, _SPACE))
_MEMBER = re.compile(
    rb'"(%b)"%b:%b' % (_TEXT, _SPACE, _SPACE)
    # Most values are short and plain, or objects with one such value: with these, nobody else is
    # asked where they end.
    + rb"(?:(%b|%b)%b%b)?" % (_PLAIN, _PLAIN_OBJECT, _SPACE, _MARK)
)
_MEMBER_END = re.compile(_MARK)
_CLOSING = re.compile(rb"\}" + _SPACE)
_PIECE_BYTES = 64 * 1024
_INVALID = "the body is not valid JSON: %s"
_NO_OBJECT = "the body must be a JSON object"

# Each member costs time on the event loop; requests have a few dozen.
MAX_MEMBERS = 1000


class BodyInvalid(ValueError):
    """The bytes are not one JSON object in UTF-8."""


class Body:
    """An immutable JSON object: its original bytes, and where its top-level members stand.

    Attributes:
        data: its bytes.
        names: names of the members, each once, in order of first occurrence.
        texts: where conversations start that are nothing but text, as far as anybody looked.

    Nothing is parsed and written again: `edit` splices bytes, so that order, white space, escapes
    and the spelling of numbers of any size stay as they were in every member that is not edited.
    """

    __slots__ = ("_end", "_members", "_opening", "_spans", "_view", "data", "names", "texts")

    def __init__(self, data: bytes) -> None:
        """Index `data`. It takes one pass at C speed, and a step for each member.

        Raises:
            BodyInvalid: `data` is not valid UTF-8, not valid JSON, not a JSON object, or has more
                members or longer names than any request needs.
        """
        self.data = data
        self._view = memoryview(data)
        # Other letters take several bytes each in the texts that are made on the way.
        read = check_utf_8(data) and len(data) <= MOST_BYTES and not is_sparse(data, 0, len(data))
        self.texts: set[int] | None = set() if read else None
        try:
            self._opening, self._spans = _locate_members(data, self._view, self.texts)
        except JsonInvalid as error:
            raise BodyInvalid(_INVALID % error) from None
        self._end = self._spans[-1][3] if self._spans else self._opening
        # Of members of one name, the last counts.
        self._members = {span[0]: span for span in self._spans}
        self.names: Set[str] = self._members.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def duplicates(self) -> frozenset[str]:
        """Names that occur more than once."""
        if len(self._members) == len(self._spans):
            return frozenset()
        return frozenset(span[0] for span in self._spans if self._members[span[0]] is not span)

    def raw(self, name: str) -> bytes | None:
        """Return the value of a member as it stands in the body; None if it is absent."""
        span = self._members.get(name)
        return None if span is None else self.data[span[2] : span[3]]

    def view(self, name: str) -> memoryview | None:
        """Return the value of a member as `raw` does, without a copy of it."""
        span = self._members.get(name)
        return None if span is None else self._view[span[2] : span[3]]

    def span(self, name: str) -> tuple[int, int]:
        """Return where the value of a member starts and ends; nowhere if it is absent."""
        _, _, start, end = self._members.get(name, ("", 0, 0, 0))
        return start, end

    def get(self, name: str, expected: type[T]) -> T | None:
        """Return the decoded value of a member, None if it is absent or null.

        Raises:
            msgspec.ValidationError: the value is not of the expected type.
        """
        value = self.raw(name)
        if value is None:
            return None
        return _create_decoder(expected)(value)  # type: ignore[arg-type] # types are hashable

    def edit(
        self,
        replace: Mapping[str, bytes | Pieces] | None = None,
        remove: Collection[str] = (),
    ) -> Pieces:
        """Return the body with some members replaced, added or removed.

        Args:
            replace: JSON values by name. A member that is there gets the value in its place (its
                first place if it occurs twice); one that is not is added at the end.
            remove: names of members to drop; absent ones are no matter.
        """
        replace = replace or {}
        touched = not (self.names.isdisjoint(replace) and self.names.isdisjoint(remove))
        if not replace and not touched:
            return Pieces((self.data,), unchanged=True)
        pending = dict(replace)
        data = self._view
        pieces: list[bytes | memoryview] = []
        # Neighbours that stay as they are make one piece, which begins here.
        run_start, previous_end = 0, self._opening if touched else self._end
        kept_any = previous_end > self._opening
        for name, start, value_start, end in self._spans if touched else ():
            if name in pending:
                value = pending.pop(name)
            elif name in remove or name in replace:
                pieces.append(data[run_start:previous_end])
                run_start = previous_end = end
                continue
            else:
                value = None
            if not kept_any:
                kept_any = True
                if pieces:  # What stood before it is gone, and so must be what parts them.
                    run_start = start
            if value is not None:
                pieces.append(data[run_start:value_start])
                pieces += (value,) if isinstance(value, bytes) else value.parts
                run_start = end
            previous_end = end
        pieces.append(data[run_start:previous_end])
        for name, value in pending.items():
            key = _write_key(name)
            pieces.append(key if kept_any else key[1:])
            pieces += (value,) if isinstance(value, bytes) else value.parts
            kept_any = True
        pieces.append(data[previous_end:])
        return Pieces(tuple(pieces))


Span = tuple[str, int, int, int]
"""Name of a member, where its key starts, where its value starts, where its value ends."""


@cache
def _create_decoder(expected: type[T]) -> Callable[[bytes], T | None]:
    # Asked anew for each value, msgspec would look into the type each time.
    return msgspec.json.Decoder(expected | None).decode


def encode(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return a value as JSON, for `Body.edit`."""
    return msgspec.json.encode(value)


def check_utf_8(data: bytes) -> bool:
    """Check what msgspec does not: it does not look into the strings that it skips.

    This goes piece by piece: as one text, a body may take four times its size.

    Returns:
        Whether all of it is ASCII.

    Raises:
        BodyInvalid: the bytes are not valid UTF-8.
    """
    if data.isascii():
        return True
    view = memoryview(data)
    position = 0
    while position < len(view):
        end = position + _PIECE_BYTES
        try:
            position += utf_8_decode(view[position:end], "strict", end >= len(view))[1]
        except UnicodeDecodeError as error:
            message = f"the body is not valid UTF-8 (byte {position + error.start})"
            raise BodyInvalid(message) from None
    return False


def check_object(data: bytes) -> None:
    """Check that the bytes are one JSON object in UTF-8, of however many members.

    Raises:
        BodyInvalid: they are not.
    """
    check_utf_8(data)
    try:
        check_json(memoryview(data))
    except JsonInvalid as error:
        raise BodyInvalid(_INVALID % error) from None
    if _OPENING.match(data) is None:
        raise BodyInvalid(_NO_OBJECT)


@lru_cache(maxsize=256)
def _write_key(name: str) -> bytes:
    # Few names are added, the same to each body.
    return b",%s:" % encode(name)


def _locate_members(
    data: bytes, view: memoryview, texts: set[int] | None
) -> tuple[int, list[Span]]:
    """Return where the inside of a JSON object starts, and where its members stand.

    Args:
        data: the object.
        view: the same bytes.
        texts: gets where conversations of nothing but text start; None if nobody looks.
    """
    opening = _OPENING.match(data)
    if opening is None:
        check_json(view)
        raise BodyInvalid(_NO_OBJECT)
    inside = opening.end()
    spans: list[Span] = []
    closing = _CLOSING.match(data, inside)
    more = closing is None
    position = inside if closing is None else closing.end()
    while more:
        if len(spans) == MAX_MEMBERS:
            raise BodyInvalid(f"the body has more than {MAX_MEMBERS} members")
        last = _MEMBER.match(data, position)
        if last is None or (mark := last[3]) is None:
            span, last = _read_member(view, position, last, texts)
            mark = last[1]
        else:
            start, end = last.span(2)
            span = last[1].decode(), position, start, end
        spans.append(span)
        position = last.end()
        more = mark == b","
    if position != len(data):
        raise invalid_character(position)
    return inside, spans


def _read_member(
    view: memoryview, position: int, key: re.Match[bytes] | None, texts: set[int] | None
) -> tuple[Span, re.Match[bytes]]:
    """Return a member whose key or value is long or not plain, and what stands behind it."""
    if key is None:
        name, start = _read_escaped_key(view, position)
    else:
        name, start = key[1].decode(), key.end()
    found = None
    if texts is not None and name in CONVERSATIONS:
        found = find_end_of_texts(view, start)
        if found is not None:
            texts.add(start)
    end, after = found or find_end(view, start)
    mark = _MEMBER_END.match(view, after)
    if mark is None:
        raise invalid_character(after)
    return (name, position, start, end), mark


def _read_escaped_key(view: memoryview, start: int) -> tuple[str, int]:
    """Return a key that has escapes or is too long, and where its value starts."""
    if read_mark(view, start) != QUOTE:
        raise invalid_character(start)
    end, after = find_end(view, start)
    if read_mark(view, after) != COLON:
        raise invalid_character(after)
    if end - start > MAX_NAME_BYTES + len(b'""'):
        raise BodyInvalid(f"the name of a member takes more than {MAX_NAME_BYTES} bytes")
    return _decode_string(view[start:end]), skip_space(view, after + 1)
