"""Keeps a local copy of Kubernetes objects: a list, then a watch, for as long as it takes.

What a real API server does, and is met here: a watch that is too old ends with an ERROR event in a
200 answer; one from the future stays silent; bookmarks come once a minute; half-open connections
stay for ever; a restart loses history. The last known objects stay in use through all of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import Generic, Protocol, TypeVar

import aiohttp
import msgspec

from pdrouter.cluster.kubernetes.api import KubeApi, KubeConfigInvalid, KubeRefused, KubeStatus
from pdrouter.cluster.kubernetes.back_off import BackOff, is_unreachable
from pdrouter.cluster.kubernetes.objects import ObjectMeta
from pdrouter.cluster.reflector_stats import ReflectorStats

log = logging.getLogger(__name__)


class Reflected(Protocol):
    """Any object."""

    @property
    def metadata(self) -> ObjectMeta: ...


T = TypeVar("T", bound=Reflected)
T_contra = TypeVar("T_contra", bound=Reflected, contravariant=True)


class Sink(Protocol[T_contra]):
    """Where the objects go."""

    def put(self, thing: T_contra) -> None:
        """Take an object that is new or has changed, or has not."""

    def drop(self, thing: T_contra) -> None:
        """Forget an object; it comes as it last was, or as it is after leaving the selection."""

    def retain(self, uids: Collection[str]) -> None:
        """Forget all objects but those with these UIDs: a list is complete."""


class _Version(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""


class _ListMeta(msgspec.Struct, frozen=True, rename={"resource_version": "resourceVersion"}):
    resource_version: str = ""
    next_page: str = msgspec.field(default="", name="continue")


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _Version


@dataclass(frozen=True, slots=True)
class ReflectorTiming:
    """How long a reflector waits for what, in seconds.

    Attributes:
        list_s: for one page of a list.
        silence_s: for a sign of life on a watch; bookmarks come once a minute.
        watch_s: after which a watch is ended and begun anew, from and to.
        relist_s: after which everything is listed again, from and to.
        backoff_s: after the first failure; doubled for each further one.
        backoff_most_s: at the most.
        unreachable_most_s: at the most while the API server cannot be reached.
        absent_s: until a resource that the cluster does not have is looked for again.
    """

    list_s: float = 30.0
    silence_s: float = 90.0
    watch_s: tuple[float, float] = (240.0, 300.0)
    relist_s: tuple[float, float] = (600.0, 1800.0)
    backoff_s: float = 0.2
    backoff_most_s: float = 30.0
    unreachable_most_s: float = 2.0
    absent_s: float = 60.0


DEFAULT_TIMING = ReflectorTiming()


class _Expired(Exception):
    """The history that a watch or a page needs is gone: list again."""


_FAULTS = (
    _Expired,
    KubeRefused,
    KubeConfigInvalid,
    aiohttp.ClientError,
    OSError,
    msgspec.MsgspecError,
)
"""What an API server, or the way to it, may do."""


class Reflector(Generic[T]):
    """Copies the objects of one path and selector to a sink.

    Attributes:
        path: path of the resource.
        stats: what it has met.
    """

    _PAGE = "200"

    def __init__(
        self,
        api: KubeApi,
        path: str,
        selector: str,
        kind: type[T],
        sink: Sink[T],
        *,
        optional: bool = False,
        timing: ReflectorTiming = DEFAULT_TIMING,
        random: Random | None = None,
    ) -> None:
        """Set up the reflector; nothing is sent yet.

        Args:
            api: the API server.
            path: path of the resource, such as `/api/v1/pods`.
            selector: label selector; empty for all.
            kind: type of the objects.
            sink: where they go.
            optional: whether the resource may be absent from the cluster, or forbidden.
            timing: how long to wait for what.
            random: source of jitter.
        """
        self.path = path
        self.stats = ReflectorStats()
        self._api = api
        self._query = {"labelSelector": selector} if selector else {}
        self._decode_object = msgspec.json.Decoder(kind).decode
        self._decode_event = msgspec.json.Decoder(_Event).decode
        self._decode_page = msgspec.json.Decoder(_page_type(kind)).decode
        self._sink = sink
        self._optional = optional
        self._timing = timing
        self._random = random or Random()
        self._back_off = BackOff(
            timing.backoff_s, timing.backoff_most_s, timing.unreachable_most_s, self._random
        )
        self._version: str | None = None
        self._relist_at = 0.0

    async def run(self) -> None:
        """Copy until cancelled."""
        while True:
            contact = self.stats.contact
            try:
                await self._run_once()
                self._back_off.reset()
                continue
            except _FAULTS as error:
                if self.stats.contact != contact:
                    # What has worked for a while and then broke is not a failure in a row.
                    self._back_off.reset()
                pause = self._meet(error)
            await asyncio.sleep(pause)

    def _meet(self, error: Exception) -> float:
        """Take note of a fault, and return the seconds until the next try."""
        match error:
            case _Expired():
                self._version = None
                self._note("expired", logging.INFO, "history is gone")
                return self._random.uniform(0, 0.5)
            case KubeRefused():
                return self._meet_refusal(error)
            case TimeoutError() if not is_unreachable(error):
                # A healthy watch is never silent for so long. One that was begun with a version
                # from the future, as after a restored backup, would be silent again.
                self._version = None
                self._note("timeout", logging.WARNING, "no sign of life")
            case msgspec.MsgspecError():
                self._version = None
                self._note("malformed", logging.ERROR, str(error))
            case _:
                self._note("connection", logging.WARNING, f"{type(error).__name__}: {error}")
        return self._back_off.lengthen(error)

    async def _run_once(self) -> None:
        if self._version is None or time.monotonic() >= self._relist_at:
            self._version = await self.list_once()
            self._relist_at = time.monotonic() + self._random.uniform(*self._timing.relist_s)
        start = time.monotonic()
        await self.watch_once(self._version)
        self.stats.restarts["ended"] += 1
        if time.monotonic() - start < 1:
            # A server that closes watches at once must not be asked in a tight loop.
            await asyncio.sleep(1)

    def _meet_refusal(self, refused: KubeRefused) -> float:
        if refused.code == 410:
            self._version = None
            self._note("expired", logging.INFO, str(refused))
            return self._random.uniform(0, 0.5)
        if self._optional and refused.code in (403, 404):
            if self._version is not None or not self.stats.synced:
                self._note(str(refused.code), logging.INFO, "not there, looked for again later")
            self.stats.synced = True
            # What is forbidden now may still be there: what was listed stays in use.
            if refused.code == 404 or not self.stats.lists:
                self._sink.retain(())
            self._version = None
            return self._timing.absent_s
        level = logging.ERROR if refused.code in (401, 403) else logging.WARNING
        self._note(str(refused.code), level, str(refused))
        return self._back_off.lengthen(refused, refused.retry_after_s or 0.0)

    def _note(self, cause: str, level: int, message: str) -> None:
        self.stats.restarts[cause] += 1
        log.log(
            level,
            "watch of Kubernetes objects was interrupted",
            extra={"fields": {"path": self.path, "cause": cause, "error": message}},
        )

    async def list_once(self) -> str:
        """Read all objects, page by page, and give them to the sink.

        Returns:
            The version from which a watch continues.

        Raises:
            KubeRefused: with code 410 if the pages took too long.
        """
        listed: set[str] = set()
        query = {**self._query, "limit": self._PAGE}
        timing = self._timing
        while True:
            async with self._api.get(
                self.path, query, total_s=timing.list_s, silence_s=timing.list_s
            ) as response:
                page = self._decode_page(await response.read())
            self._touch()
            # Page by page, so that the event loop gets its turn in between.
            for thing in page.items:
                listed.add(thing.metadata.uid)
                self._sink.put(thing)
            if not page.metadata.next_page:
                break
            query["continue"] = page.metadata.next_page
        self.stats.lists += 1
        self.stats.synced = True
        self._sink.retain(listed)
        return page.metadata.resource_version

    async def watch_once(self, version: str) -> None:
        """Follow changes from a version on, until the API server ends the watch.

        Raises:
            _Expired: the version is too old.
            KubeRefused: the API server refuses, or sends an error.
        """
        lifetime = int(self._random.uniform(*self._timing.watch_s))
        query = {
            **self._query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, lifetime)),
        }
        async with self._api.get(
            self.path, query, total_s=None, silence_s=self._timing.silence_s
        ) as response:
            self._touch()
            self.stats.watches += 1
            async for line in _split_lines(response.content, self._touch):
                self._take(self._decode_event(line))

    def _take(self, event: _Event) -> None:
        self.stats.events[event.type] += 1
        match event.type:
            case "ADDED" | "MODIFIED":
                thing = self._decode_object(event.object)
                self._sink.put(thing)
                self._version = thing.metadata.resource_version
            case "DELETED":
                thing = self._decode_object(event.object)
                self._sink.drop(thing)
                self._version = thing.metadata.resource_version
            case "BOOKMARK":
                bookmark = msgspec.json.decode(event.object, type=_Bookmark)
                self._version = bookmark.metadata.resource_version
            case "ERROR":
                status = msgspec.json.decode(event.object, type=KubeStatus)
                if status.code == 410 or status.reason in ("Expired", "Gone"):
                    raise _Expired
                raise KubeRefused(status.code, status.message)

    def _touch(self) -> None:
        self.stats.contact = time.monotonic()


async def _split_lines(
    content: aiohttp.StreamReader, on_data: Callable[[], None]
) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        on_data()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


def _page_type(kind: type[T]) -> type["_Page[T]"]:
    return _Page[kind]  # type: ignore[valid-type]


class _Page(msgspec.Struct, Generic[T], frozen=True):
    metadata: _ListMeta
    items: list[T]
