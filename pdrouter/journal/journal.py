"""What one worker notes of its own changes, and takes over of those of the others."""

import asyncio
import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.journal.holder import Holder
from pdrouter.journal.language import Batch, Began, Change, Language, Wanted
from pdrouter.journal.memory import JournalLost, Ring, SharedMemory

log = logging.getLogger(__name__)

_TICK_S = 0.02
"""Time between two looks at the other journals of a worker that decides nothing meanwhile."""
_TOLD_AT_ONCE = 500
"""What a worker holds is told to one that comes later in pieces, so that nobody stalls."""
_STRANGERS_S = 60.0
"""Time after which a pod of which others write, and which is not known here, is forgotten."""
_News: TypeAlias = tuple[float, int, int, Any]
"""When a change was made, the number of its batch, its worker, and the change."""
_EVENTS = ("noted", "taken", "failed", "lost", "unreadable")


@dataclass(slots=True)
class _Other:
    """Another worker.

    Attributes:
        worker: its number.
        ring: its journal.
        find_head: returns how far that goes.
        position: up to where that was read.
        holds: whether anything may be held for it.
        strange: the language of its journal, where it was said that nobody here reads it.
    """

    worker: int
    ring: Ring
    find_head: Callable[[], int]
    position: int = 0
    holds: bool = False
    strange: int | None = None


class Journal:
    """The journals, as one of the workers writes and reads them.

    Attributes:
        language: what they say.
        at: when the change was made that is under way; None while there is none.
        follows: whether that is a change of another worker.
        events: what has come up: changes that were `noted` and `taken`, and that have `failed`;
            batches that were `lost`, and that are `unreadable`.
    """

    def __init__(
        self,
        memory: SharedMemory,
        worker: int,
        language: Language,
        *,
        list_pods: Callable[[], Iterable[Pod]] = tuple,
        forget: Callable[[str], object] = lambda uid: None,
        clock: Callable[[], float] = time.monotonic,
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """Set up; nothing is written or read yet.

        Args:
            memory: where the journals are.
            worker: which of the workers this is, from 0 on.
            language: what they say.
            list_pods: gives the pods that are known here.
            forget: forgets a pod that is not.
            clock: gives the time; the same for all workers.
            schedule: has something done soon; None for the next turn of the running loop.
        """
        self.language = language
        self.at: float | None = None
        self.follows = False
        self.events = Counter(dict.fromkeys(_EVENTS, 0))
        self._worker = worker
        self._list_pods = list_pods
        self._forget = forget
        self._clock = clock
        self._schedule = schedule or _call_soon
        self._ring = memory.ring(worker)
        self._others = [
            _Other(number, ring := memory.ring(number), ring.find_head)
            for number in range(memory.layout.workers)
            if number != worker
        ]
        self._pending: list[Change] = []
        self._scheduled = False
        self._holders: list[Holder] = []
        self._handlers: dict[type[Change], Callable[[int, Any], object]] = {
            Began: self._take_began,
            Wanted: self._take_wanted,
        }
        self._numbers = 0
        self._batch = 0
        self._untold: deque[Change] = deque()
        self._touched: set[str] = set()
        self._strangers: set[str] = set()
        self._greeted = clock()

    def clock(self) -> float:
        """Return the time; while a change is made, when it was made, whoever makes it."""
        return self._clock() if self.at is None else self.at

    def find_pod(self, uid: str) -> Pod | None:
        """Return a pod; None if it is not known here."""
        return next((pod for pod in self._list_pods() if pod.uid == uid), None)

    def number(self) -> int:
        """Return a new number, for something that is held."""
        self._numbers += 1
        return self._numbers

    def bind(self, change: type[Change], handler: Callable[[int, Any], object]) -> None:
        """Have changes of a kind that others have made handled, each with the worker's number.

        Raises:
            ValueError: they are already.
        """
        if change in self._handlers:
            raise ValueError(f"there are two memories for {change.__name__}")
        self._handlers[change] = handler

    def bind_holder(self, holder: Holder) -> None:
        """Have what others hold kept."""
        self._holders.append(holder)
        self.bind(holder.held, holder.take)
        self.bind(holder.let_go, holder.drop_one)

    def begin(self) -> float:
        """Begin a change of this worker: after those that others have made before; say when.

        Until `at` is None again, what else is changed is part of it.
        """
        self.catch_up()
        at = self.at = self._clock()
        return at

    def note(self, change: Change, *, at_once: bool = False) -> None:
        """Write a change.

        Args:
            change: what has been changed.
            at_once: whether others are to know it before this turn of the loop is over.
        """
        self._pending.append(change)
        if at_once:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._schedule(self._flush_late)

    def _flush_late(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Write what was noted."""
        pending = self._pending
        if pending:
            self._pending = []
            self.events["noted"] += len(pending)
            self._write(pending)

    def _write(self, changes: Sequence[Change]) -> None:
        self._batch += 1
        batch = self._encode(changes)
        if batch is not None:
            self._ring.append(batch)
        elif len(changes) > 1:
            half = len(changes) // 2
            self._write(changes[:half])
            self._write(changes[half:])
        else:
            self.events["failed"] += 1
            log.error("other workers cannot be told a change: %s", type(changes[0]).__name__)

    def _encode(self, changes: Sequence[Change]) -> bytes | None:
        """Return a batch; None if it, or a number in it, is too large, or a text is none."""
        try:
            batch = self.language.encode((self._batch, changes))
        except (OverflowError, UnicodeError):
            return None
        return batch if len(batch) <= self._ring.largest else None

    async def join(self) -> None:
        """Take over all that the journals still have, and begin to write this worker's own.

        What it has written in an earlier life is among that. Call it once the pods are known.
        """
        own = _Other(self._worker, self._ring, self._ring.find_head)
        everybody = [own, *self._others]
        for other in everybody:
            other.position = other.ring.find_oldest()
        turn = self._clock()
        for _ in self._replay(everybody):
            if self._clock() - turn >= _TICK_S:
                await asyncio.sleep(0)
                turn = self._clock()
        self._drop(own)
        self._drop_ended()
        self._strangers |= self._touched
        self._forget_strangers()
        self._ring.note_seen(self._clock())
        self._ring.begin_life(self.language.dialect)
        self.note(Began(at=self._clock()), at_once=True)

    async def run(self) -> None:
        """Follow the others until cancelled."""
        while True:
            self.tick()
            await asyncio.sleep(_TICK_S)

    def tick(self) -> None:
        """Do what is due, whether or not anything is decided here."""
        now = self._clock()
        self._ring.note_seen(now)
        self.catch_up()
        self._drop_ended()
        if self._untold:
            self._tell_more()
        if now - self._greeted >= _STRANGERS_S:
            self._greeted = now
            self._forget_strangers()

    def catch_up(self) -> None:
        """Take over what others have changed until now."""
        for other in self._others:
            if other.find_head() != other.position:
                self._hear()
                return

    def _hear(self) -> None:
        behind = [other for other in self._others if other.find_head() != other.position]
        if len(behind) > 1:
            for _ in self._replay(behind):
                pass
            return
        for other in behind:
            for batch in self._read(other):
                self._make(other.worker, self._decode(other, batch)[1])

    def leads(self, away_s: float) -> bool:
        """Return whether this is the first of the workers that run.

        Args:
            away_s: time without a sign of life after which a worker counts as one that does not.
        """
        now = self._clock()
        return not any(
            other.ring.is_alive and now - other.ring.seen < away_s
            for other in self._others
            if other.worker < self._worker
        )

    def _replay(self, others: Iterable[_Other]) -> Iterator[None]:
        """Make the changes of these workers one by one, in the order in which they were made."""
        behind = [other for other in others if other.find_head() != other.position]
        for *_, worker, change in heapq.merge(*map(self._list_changes, behind), key=_find_order):
            self._make(worker, (change,))
            yield

    def _list_changes(self, other: _Other) -> Iterator[_News]:
        for batch in self._read(other):
            number, changes = self._decode(other, batch)
            for change in changes:
                yield change.at, number, other.worker, change

    def _read(self, other: _Other) -> Sequence[bytes]:
        """Return the batches of another worker since its journal was read last."""
        worker, ring = other.worker, other.ring
        if ring.dialect != self.language.dialect:
            # Another version of the router runs there since it was started again.
            self.events["unreadable"] += 1
            if other.strange != ring.dialect:
                other.strange = ring.dialect
                log.error("worker %d speaks another language: start the router again", worker)
            other.position = ring.find_head()
            return ()
        other.holds = True
        try:
            batches, other.position = ring.read(other.position)
        except JournalLost:
            self.events["lost"] += 1
            log.warning("journal of worker %d was not read in time", worker)
            self._drop(other)
            other.position = ring.find_oldest()
            self.note(Wanted(at=self._clock(), worker=worker))
            return ()
        return batches

    def _decode(self, other: _Other, batch: bytes) -> Batch:
        try:
            news = self.language.decode(batch)
        except msgspec.MsgspecError as error:
            self.events["unreadable"] += 1
            log.error("journal of worker %d cannot be read: %s", other.worker, error)
            return 0, ()
        self._batch = max(self._batch, news[0])
        return news

    def _make(self, worker: int, changes: Sequence[Any]) -> None:
        """Make changes of another worker, each at its time."""
        handlers, touched = self._handlers, self._touched
        self.follows = True
        try:
            for change in changes:
                handler = handlers.get(type(change))
                if handler is None:
                    continue  # It is of a memory that is not kept here.
                self.at = change.at
                try:
                    handler(worker, change)
                except Exception:
                    # What one change does to one memory must not end the router.
                    self.events["failed"] += 1
                    log.exception("change of worker %d cannot be made: %r", worker, change)
                uid = getattr(change, "uid", None)
                if uid is not None:
                    touched.add(uid)
        finally:
            self.at, self.follows = None, False
        self.events["taken"] += len(changes)

    def _take_began(self, worker: int, change: Began) -> None:
        for holder in self._holders:
            holder.drop(worker)
        if worker != self._worker:
            self._tell_all()
        del change

    def _take_wanted(self, worker: int, change: Wanted) -> None:
        del worker
        if change.worker == self._worker:
            self._tell_all()

    def _tell_all(self) -> None:
        """Tell what this worker holds, to one that may not have read it."""
        self._untold.clear()
        for holder in self._holders:
            self._untold.extend(holder.list_own())

    def _tell_more(self) -> None:
        """Tell the next part of what this worker holds, without what it has let go meanwhile.

        Of that, others would never hear again.
        """
        held = {id(change) for holder in self._holders for change in holder.list_own()}
        for _ in range(min(len(self._untold), _TOLD_AT_ONCE)):
            change = self._untold.popleft()
            if id(change) in held:
                self.note(change)

    def _drop_ended(self) -> None:
        for other in self._others:
            if other.holds and not other.ring.is_alive and other.find_head() == other.position:
                self._drop(other)

    def _drop(self, other: _Other) -> None:
        other.holds = False
        for holder in self._holders:
            holder.drop(other.worker)

    def _forget_strangers(self) -> None:
        """Forget pods that were not known here the last time either."""
        strangers = (self._touched | self._strangers) - {pod.uid for pod in self._list_pods()}
        gone = strangers & self._strangers
        for uid in gone:
            self._forget(uid)
        self._strangers = strangers - gone
        self._touched.clear()


def _find_order(news: _News) -> tuple[float, int, int]:
    return news[:3]


def _call_soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)
