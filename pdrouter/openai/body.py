"""JSON request bodies that are edited without touching what is not edited."""

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode
_KEY = re.compile(rb'[ \t\n\r]*("(?:[^"\\]++|\\.)*+")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{},]', re.DOTALL)
_SPACE = re.compile(rb"[ \t\n\r]*")
_MEMBER_END = re.compile(rb"[ \t\n\r]*[,}]")

# Each member costs time on the event loop; requests have a few dozen.
_MAX_MEMBERS = 1000


class BodyInvalid(ValueError):
    """The bytes are not one JSON object in UTF-8."""


class Body:
    """An immutable JSON object: its original bytes, and where its top-level members stand.

    Nothing is parsed and written again: `edit` splices bytes, so that order, white space, escapes
    and the spelling of numbers of any size stay as they were in every member that is not edited.
    """

    __slots__ = ("_duplicates", "_members", "_spans", "data")

    data: bytes

    def __init__(self, data: bytes) -> None:
        """Index `data`.

        Raises:
            BodyInvalid: `data` is not valid UTF-8, not valid JSON, not a JSON object, or has more
                members than any request needs.
        """
        self.data = data
        try:
            # msgspec does not look into the strings that it skips.
            str(data, "utf-8")
            self._members = _decode_members(data)
        except UnicodeDecodeError as error:
            message = f"the body is not valid UTF-8 (byte {error.start})"
            raise BodyInvalid(message) from None
        except msgspec.ValidationError:
            raise BodyInvalid("the body must be a JSON object") from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise BodyInvalid(f"the body is not valid JSON: {error}") from None
        except RecursionError:
            raise BodyInvalid("the body is nested too deeply") from None
        self._spans, self._duplicates = _locate_members(data, self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> Collection[str]:
        """Names of the members, each once, in order of first occurrence."""
        return self._members.keys()

    @property
    def duplicates(self) -> frozenset[str]:
        """Names that occur more than once."""
        return self._duplicates

    def raw(self, name: str) -> bytes | None:
        """Return the value of a member as it stands in the body; None if it is absent."""
        value = self._members.get(name)
        return None if value is None else bytes(value)

    def view(self, name: str) -> memoryview | None:
        """Return the value of a member as `raw` does, without a copy of it."""
        value = self._members.get(name)
        return None if value is None else memoryview(value)

    def get(self, name: str, expected: type[T]) -> T | None:
        """Return the decoded value of a member, None if it is absent or null.

        Raises:
            msgspec.ValidationError: the value is not of the expected type.
        """
        value = self._members.get(name)
        if value is None:
            return None
        return _create_decoder(expected)(value)  # type: ignore[arg-type] # types are hashable

    def edit(
        self, replace: Mapping[str, bytes] | None = None, remove: Collection[str] = ()
    ) -> bytes:
        """Return new bytes in which some members are replaced, added or removed.

        Args:
            replace: JSON values by name. A member that is there gets the value in its place (its
                first place if it occurs twice); one that is not is added at the end.
            remove: names of members to drop; absent ones are no matter.
        """
        if not replace and self._members.keys().isdisjoint(remove):
            return self.data
        pending = dict(replace) if replace else {}
        dropped = frozenset(remove).difference(pending)
        data, spans = self.data, self._spans
        opening = spans[0][1] if spans else _SPACE.match(data, data.index(b"{") + 1).end()  # type: ignore[union-attr]
        pieces = [data[:opening]]
        replaced: set[str] = set()
        kept_any = False
        previous_end = opening
        # Neighbours that stay as they are make one slice.
        run_start: int | None = None
        for name, start, value_start, end in spans:
            separator_start, previous_end = previous_end, end
            if name in dropped or name in replaced:
                if run_start is not None:
                    pieces.append(data[run_start:separator_start])
                    run_start = None
                continue
            begin = separator_start if kept_any else start
            kept_any = True
            value = pending.pop(name, None)
            if value is None:
                run_start = begin if run_start is None else run_start
                continue
            replaced.add(name)
            pieces.append(data[begin if run_start is None else run_start : value_start])
            pieces.append(value)
            run_start = None
        if run_start is not None:
            pieces.append(data[run_start:previous_end])
        for name, value in pending.items():
            pieces.append(b"%s%s:%s" % (b"," if kept_any else b"", encode(name), value))
            kept_any = True
        pieces.append(data[previous_end:])
        return b"".join(pieces)


Span = tuple[str, int, int, int]
"""Name of a member, where its key starts, where its value starts, where its value ends."""


@cache
def _create_decoder(expected: type[T]) -> Callable[[msgspec.Raw], T | None]:
    # Asked anew for each value, msgspec would look into the type each time.
    return msgspec.json.Decoder(expected | None).decode


def encode(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return a value as JSON, for `Body.edit`."""
    return msgspec.json.encode(value)


def _locate_members(
    data: bytes, members: Mapping[str, msgspec.Raw]
) -> tuple[list[Span], frozenset[str]]:
    """Return where the members of a valid JSON object stand, and which names occur twice.

    A value is where its decoded bytes stand, if the member ends there: a JSON value cannot be the
    beginning of another one. They stand elsewhere only where a later member of the same name won.
    """
    spans: list[Span] = []
    duplicates: set[str] = set()
    seen: set[str] = set()
    position = data.index(b"{") + 1
    while (key := _KEY.match(data, position)) is not None:
        if len(spans) == _MAX_MEMBERS:
            raise BodyInvalid(f"the body has more than {_MAX_MEMBERS} members")
        literal = key[1]
        name = _decode_string(literal) if b"\\" in literal else str(literal[1:-1], "utf-8")
        if name in seen:
            duplicates.add(name)
        seen.add(name)
        start = key.end()
        value = bytes(members[name])
        end = start + len(value)
        after = _MEMBER_END.match(data, end) if data.startswith(value, start) else None
        if after is None:
            end = _find_end(data, start)
            after = _MEMBER_END.match(data, end)
        spans.append((name, key.start(1), start, end))
        position = after.end()  # type: ignore[union-attr]
    return spans, frozenset(duplicates)


def _find_end(data: bytes, start: int) -> int:
    """Return where the value that starts here ends."""
    depth = 0
    for token in _TOKEN.finditer(data, start):
        mark = data[token.start() : token.start() + 1]
        if not depth and mark in (b",", b"}"):
            break
        depth += (mark in b"[{") - (mark in b"]}")
    return start + len(data[start : token.start()].rstrip())
