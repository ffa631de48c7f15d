"""Finds the usage in an answer's body as it passes, however the body is cut into pieces."""

import re
from collections import deque
from itertools import islice
from typing import Protocol

import msgspec

from pdrouter.openai.usage import Usage, UsageMembers, read_usage, read_usage_members

MAX_EVENT_BYTES = 1024 * 1024
"""Longest line of a stream that is read. The last one of `/v1/responses` holds the whole answer."""
MAX_ANSWER_BYTES = 512 * 1024
"""Largest plain answer that is read: it takes about a millisecond."""

# A stream that was asked for its usage says `"usage": null` in every other event. Inside a string
# the quotes would be escaped.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_USAGE_EVENT = re.compile(rb'(?:\A|(?<=[\r\n]))data:([^\r\n]*?"usage"[ \t]*:[ \t]*\{[^\r\n]*+)')
_EVENTS = 8
"""Events with a usage that are read at the beginning and at the end of what arrives at once."""


class BodyScan(Protocol):
    """Looks at a body as it passes. Never raises, whatever the body is."""

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""

    def finish(self) -> Usage | None:
        """Return the usage; None if there was none, or the body was cut short before it."""


class StreamScan:
    """Finds the usage in server-sent events.

    Lines may end as the standard allows: with CR, LF or both. Only events with a usage are parsed.
    """

    __slots__ = ("_members", "_rest", "_skipping")

    def __init__(self) -> None:
        self._members = UsageMembers()
        self._rest = bytearray()
        self._skipping = False

    def feed(self, piece: bytes) -> None:
        """Look at the lines that end in the next piece."""
        end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
        if end:
            first = piece[:end]
            if self._rest:
                first = bytes(self._rest) + first
                self._rest.clear()
            if self._skipping:
                first = _drop_line(first)
                self._skipping = False
            self._read(first)
        if self._skipping:
            return
        self._rest += piece[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            self._rest.clear()
            self._skipping = True

    def finish(self) -> Usage | None:
        """Return the last usage that was seen, a line without an end included."""
        self._read(bytes(self._rest))
        self._rest.clear()
        return self._members.count()

    def _read(self, lines: bytes) -> None:
        if _USAGE.search(lines) is None:
            return
        events = _USAGE_EVENT.finditer(lines)
        # What a stream says of the prompt comes first, and the sum last.
        for event in (*islice(events, _EVENTS), *deque(events, _EVENTS)):
            members = _read_event(event[1])
            if members is not None:
                self._members.update(members)


class PlainScan:
    """Finds the usage in a JSON answer, up to a size."""

    __slots__ = ("_body", "_too_large")

    def __init__(self) -> None:
        self._body = bytearray()
        self._too_large = False

    def feed(self, piece: bytes) -> None:
        """Keep the next piece."""
        if len(self._body) + len(piece) > MAX_ANSWER_BYTES:
            self._too_large = True
            self._body.clear()
        if not self._too_large:
            self._body += piece

    def finish(self) -> Usage | None:
        """Return the answer's usage."""
        return read_usage(bytes(self._body))


def choose_scan(content_type: str, content_encoding: str) -> BodyScan | None:
    """Return what can read a body; None if nothing can: it is compressed, or of another kind."""
    if content_encoding.strip().lower() not in ("", "identity"):
        return None
    match content_type.partition(";")[0].strip().lower():
        case "text/event-stream":
            return StreamScan()
        case "application/json":
            return PlainScan()
        case _:
            return None


def _drop_line(lines: bytes) -> bytes:
    """Return what follows the first line."""
    ends = [end for end in (lines.find(b"\n"), lines.find(b"\r")) if end >= 0]
    return lines[min(ends) + 1 :]


class _Event(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")
    response: msgspec.Raw = msgspec.Raw(b"null")
    message: msgspec.Raw = msgspec.Raw(b"null")


class _Envelope(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"null")


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def _read_event(data: bytes) -> UsageMembers | None:
    """Return an event's usage: at its top, or in its `response` or `message`."""
    try:
        event = _decode_event(data)
        usage = bytes(event.usage)
        for holder in (bytes(event.response), bytes(event.message)):
            if not usage.startswith(b"{") and holder.startswith(b"{"):
                usage = bytes(_decode_envelope(holder).usage)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return read_usage_members(usage) if usage.startswith(b"{") else None
