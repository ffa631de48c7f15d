"""Streams of events: what a watch sends, when, and how it ends."""

import asyncio
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import msgspec
from aiohttp import web

from .calls import Call, is_true
from .connections import reset, until_client_leaves
from .failures import ApiError
from .kinds import Kind
from .listing import parse_count, parse_version, selection
from .objects import Change, Stored
from .representations import Form, encode_bookmark, encode_object
from .store import Store

_INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}


@dataclass(frozen=True, slots=True)
class WatchTiming:
    """When a watch says something without being asked.

    Attributes:
        bookmark_interval: seconds between bookmarks.
        final_bookmarks: seconds before the deadline at which there is one more.
        default_timeout: seconds until the end of a watch that names no `timeoutSeconds`.
    """

    bookmark_interval: float = 60
    final_bookmarks: tuple[float, ...] = (2, 1)
    default_timeout: float = 1800

    def bookmarks(self, start: float, deadline: float) -> Iterator[float]:
        """The moments at which a bookmark is due, in order."""
        regular = itertools.count(start + self.bookmark_interval, self.bookmark_interval)
        final = sorted(deadline - lead for lead in self.final_bookmarks)
        return heapq.merge(
            itertools.takewhile(lambda moment: moment < deadline, regular),
            (moment for moment in final if moment > start),
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """How a test ends a watch: these bytes, then the end of the stream or a reset."""

    last_bytes: bytes
    orderly: bool


class OpenWatch:
    """A watch that a client has open.

    Attributes:
        kind: what is watched.
        namespace: where; None is everywhere.
        query: the parameters of its request.
        frozen: whether it sends nothing any more.
        ending: how it shall end, or None.
    """

    def __init__(self, call: Call, query: Mapping[str, str]) -> None:
        assert call.kind is not None
        self.kind: Kind = call.kind
        self.namespace = call.namespace
        self.query = query
        self.frozen = False
        self.ending: Ending | None = None
        self._changes: deque[Change] = deque()
        self._wake = asyncio.Event()

    def push(self, change: Change) -> None:
        """Let it tell of a write."""
        if change.stored.kind is self.kind:
            self._changes.append(change)
            self._wake.set()

    def take(self) -> list[Change]:
        """The writes that it has not told of."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    def freeze(self) -> None:
        """Send nothing more, and keep the connection: half-open, as after a lost route."""
        self.frozen = True

    def end(self, ending: Ending) -> None:
        """Let it end."""
        self.ending = ending
        self._wake.set()

    async def wait(self, until: float) -> None:
        """Until something is to be done, or until a moment of the event loop's clock."""
        delay = until - asyncio.get_running_loop().time()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if delay == math.inf else delay):
                await self._wake.wait()
        self._wake.clear()


class Watches:
    """All watches that clients have open."""

    def __init__(self) -> None:
        self._open: list[OpenWatch] = []

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[OpenWatch]:
        return iter(tuple(self._open))

    def add(self, watch: OpenWatch) -> None:
        """Count a watch that begins."""
        self._open.append(watch)

    def remove(self, watch: OpenWatch) -> None:
        """Count a watch no longer."""
        self._open.remove(watch)

    def abort(self, partial: bytes = b"") -> None:
        """Reset their connections, after sending these bytes: half an event, say."""
        self._end(Ending(partial, orderly=False))

    def close(self) -> None:
        """End their streams in order, after what they still have to tell."""
        self._end(Ending(b"", orderly=True))

    def fail(self, code: int = 410, message: str = "The resourceVersion is too old.") -> None:
        """Send an ERROR event, and end their streams in order."""
        self._end(Ending(error_event(ApiError(code, message)), orderly=True))

    def freeze(self) -> None:
        """Send nothing more on them, keep their connections; watches to come are not frozen."""
        for watch in self:
            watch.freeze()

    def _end(self, ending: Ending) -> None:
        for watch in self:
            watch.end(ending)


class WatchStream:
    """The answer to one watch request.

    Args:
        store: what is watched.
        watch: the watch.
        form: how objects are sent.
        timing: when bookmarks are sent.
        transition: the object of a DELETED event that tells of labels which left the selector.
        cut_after: bytes after which the connection is reset; None is never.
    """

    def __init__(
        self,
        store: Store,
        watch: OpenWatch,
        form: Form,
        timing: WatchTiming,
        transition: Literal["new", "previous"],
        cut_after: int | None,
    ) -> None:
        query = watch.query
        self._store = store
        self._watch = watch
        self._form = form
        self._timing = timing
        self._transition = transition
        self._left = math.inf if cut_after is None else cut_after
        self._matches = selection(watch.kind, query)
        self._asked = parse_version(query.get("resourceVersion", ""))
        self._initial_events_end = is_true(query.get("sendInitialEvents"))
        self._initial_events = self._initial_events_end or not self._asked
        self._bookmarks = is_true(query.get("allowWatchBookmarks"))
        self._timeout = parse_count(query, "timeoutSeconds") or timing.default_timeout
        self._sent_columns = False
        self._response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Send events until the watch is over."""
        await self._response.prepare(request)
        transport = request.transport
        now = asyncio.get_running_loop().time()
        if not self._initial_events and self._asked < self._store.history.watch_floor:
            floor = self._store.history.watch_floor
            await self._send(transport, error_event(ApiError.expired_watch(self._asked, floor)))
            return self._response
        start = b"".join(self._start())
        forget = self._store.observe(self._watch.push)
        try:
            await self._send(transport, start)
            await self._follow(transport, now)
        finally:
            forget()
        return self._response

    def _start(self) -> Iterator[bytes]:
        """What is to be told before the first new write."""
        watch = self._watch
        if self._initial_events:
            for stored in self._store.select(watch.kind, matches=self._wanted):
                yield self._event("ADDED", stored)
            if self._initial_events_end:
                yield self._bookmark(_INITIAL_EVENTS_END)
            return
        for change in self._store.history.since(watch.kind, self._asked):
            yield from self._events_of(change)

    async def _follow(self, transport: asyncio.BaseTransport | None, start: float) -> None:
        """Tell of writes as they come."""
        watch, clock = self._watch, asyncio.get_running_loop().time
        deadline = start + self._timeout
        due = self._timing.bookmarks(start, deadline) if self._bookmarks else iter(())
        bookmark = next(due, math.inf)
        while True:
            await watch.wait(math.inf if watch.frozen else min(bookmark, deadline))
            if watch.ending is not None and not watch.ending.orderly:
                await self._send(transport, watch.ending.last_bytes)
                await self._break(transport)
            if watch.frozen:
                continue
            lines = [line for change in watch.take() for line in self._events_of(change)]
            if clock() >= bookmark:
                bookmark = next(due, math.inf)
                # A watch from a version that is yet to come stays silent.
                if self._store.resource_version >= self._asked:
                    lines.append(self._bookmark({}))
            await self._send(transport, b"".join(lines))
            if watch.ending is not None:
                await self._send(transport, watch.ending.last_bytes)
                return
            if clock() >= deadline:
                return

    async def _send(self, transport: asyncio.BaseTransport | None, lines: bytes) -> None:
        if len(lines) >= self._left:
            await self._response.write(lines[: int(self._left)])
            await self._break(transport)
        elif lines:
            self._left -= len(lines)
            await self._response.write(lines)

    async def _break(self, transport: asyncio.BaseTransport | None) -> None:
        reset(transport)
        await until_client_leaves()

    def _wanted(self, stored: Stored) -> bool:
        return self._watch.namespace in (None, stored.key[0]) and self._matches(stored)

    def _events_of(self, change: Change) -> Iterator[bytes]:
        """At most one event: a selector makes objects come and go for the watch."""
        if change.resource_version <= self._asked:
            return
        is_wanted = change.type != "DELETED" and self._wanted(change.stored)
        was_wanted = change.previous is not None and self._wanted(change.previous)
        if is_wanted:
            yield self._event("MODIFIED" if was_wanted else "ADDED", change.stored)
        elif was_wanted:
            gone = change.stored
            if change.previous is not None and self._transition == "previous":
                gone = change.previous.as_deleted(change.resource_version)
            yield self._event("DELETED", gone)

    def _event(self, event_type: str, stored: Stored) -> bytes:
        include = self._watch.query.get("includeObject", "Metadata")
        with_columns, self._sent_columns = not self._sent_columns, True
        body = encode_object(stored, self._form, include, with_columns=with_columns)
        return _event_line(event_type, body)

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        version = self._store.resource_version
        body = encode_bookmark(self._watch.kind, self._form, version, annotations)
        return _event_line("BOOKMARK", body)


def error_event(error: ApiError) -> bytes:
    """The line with which a watch says that it cannot go on."""
    return _event_line("ERROR", msgspec.json.encode(error.status))


def _event_line(event_type: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (event_type.encode(), body)
