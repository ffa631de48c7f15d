"""What one stream owns while its request is served."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from pdrouter.serving.companion import Companion
from pdrouter.serving.drains import Drains
from pdrouter.serving.gate import Admission
from pdrouter.serving.held_bodies import HeldBodies, HeldBody
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.record import RequestRecord
from pdrouter.serving.release import HeldHandle
from pdrouter.users.user import User

log = logging.getLogger(__name__)


class Call(msgspec.Struct, eq=False):
    """The record of a request, what is counted for it, and the tasks that work for it.

    All of it ends with the stream, however that ends.

    Attributes:
        record: what is known of the request so far.
        on_failure: told of what a task raises: it ends the request.
        drains: owns what may end after the request.
        body: counts the request's body; None before that has come.
        chosen: counts the request on its last pod; None before there is one.
        user: who asks; None for nobody in particular.
        admission: counts the request against limits; None if nothing limits it.
        companion: the side leg that runs beside the last one; None if there is none.
        failed: whether a task has failed, by which the request ends.
        turn: is held by whoever says something, once tasks may; None as long as there are none.
        handle: the KV handle of a side leg, for as long as it may be that no engine has it.
        tasks: those that work for it.
        needs_body: whether the request's body is to be held even if they do not.
    """

    record: RequestRecord
    on_failure: Callable[[Exception], Awaitable[None]]
    drains: Drains
    body: HeldBody | None = None
    chosen: OpenDecision | None = None
    user: User | None = None
    admission: Admission | None = None
    companion: Companion | None = None
    failed: bool = False
    turn: asyncio.Lock | None = None
    handle: HeldHandle | None = None
    tasks: set[asyncio.Task[None]] = set()
    needs_body: bool = True

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work run beside the stream: it may outlast the reply to the request's body.

        It is cancelled when the stream ends; if it fails, so does the request.
        """
        self.turn = self.turn or asyncio.Lock()
        task = asyncio.create_task(self._run(work))
        self.tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not self.needs_body:
            self.release_body()

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it is, the request must learn of it
            self.failed = True
            await self.on_failure(error)

    def give_up_handle(self, *, unreachable: bool = False) -> None:
        """Have the blocks freed that no engine has been told of.

        Args:
            unreachable: whether the pod that was to fetch them could not be connected.
        """
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.release(unreachable=unreachable)

    def stop(self) -> None:
        """Cancel the tasks: the request has an answer to which they have nothing to add."""
        for task in self.tasks:
            task.cancel()

    def close(self) -> None:
        """Release what is counted, and cancel the tasks. Further calls change nothing.

        An answer that is to be read to its end goes on without the request.
        """
        if self.companion is not None and self.companion.joined:
            tasks, self.tasks = self.tasks, set()
            for task in tasks:
                self.drains.take(task)
        if self.tasks:
            self.stop()
        # Whoever is told refers to this call: without the circle, both go at once.
        self.on_failure = _tell_nobody
        if self.body is not None:
            self.body.release()
        if self.chosen is not None:
            self.chosen.close()
            self.chosen.routed.end(self.record)
        if self.admission is not None:
            self.admission.end(self.record)
        if not self.record.forwarded:  # Else only Envoy can say that no engine has it.
            self.give_up_handle()

    def hold_body(self, bodies: HeldBodies, size: int) -> None:
        """Hold room for the request's body, in place of what was held before.

        Raises:
            RequestRejected: there is none, or the body is too large.
        """
        if self.body is not None:
            self.body.release()
        self.body = bodies.hold(size)
        self.needs_body = True

    def release_body(self) -> None:
        """Hold the request's body for as long as tasks do. Further calls change nothing."""
        self.needs_body = False
        if self.body is not None and not self.tasks:
            self.body.release()
            self.body = None

    async def wait_closed(self) -> None:
        """Return once the tasks have ended, after `close`."""
        if self.tasks:
            await asyncio.wait(self.tasks)


async def _tell_nobody(error: Exception) -> None:
    log.debug("a task has failed after its stream had ended", exc_info=error)
