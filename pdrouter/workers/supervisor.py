"""Runs the workers of a router: starts them, restarts those that end, drains them together."""

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from pdrouter.journal.memory import Layout, SharedMemory, create_memory
from pdrouter.ports import naming_port
from pdrouter.settings import Settings
from pdrouter.workers.admin import CommonAdmin
from pdrouter.workers.process import NoAnswer, WorkerProcess

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 30.0
"""Before a worker is started again: twice as long each time that it did not last."""
_LASTING_S = 60.0
_LOOK_S = 0.05
"""Between two looks at whether a worker that was started serves."""
_CHECK_S = 10.0
_MISSED_CHECKS = 3
"""Checks without an answer, in a row, after which a worker is killed: the kubelet's figures for the
liveness probe of `deploy/base`, which sees the supervisor only."""
_GOOD_ENDS = (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
"""All but the first are ends of a worker that has not come so far as to handle the signal."""


class WorkersFailed(Exception):
    """The workers cannot serve, or did not end well; the message says which."""


async def supervise(
    settings: Settings, environment: Mapping[str, str], on_serving: Callable[[str], bool]
) -> None:
    """Run the workers until SIGTERM or SIGINT, then drain them. A second signal kills them.

    Args:
        settings: what the operator decided.
        environment: variables that say the same, for the workers.
        on_serving: called with the address of the HTTP port when all workers serve; returns
            whether the log need not say so.

    Raises:
        WorkersFailed: a worker ended before it served for the first time, or not well in a drain.
        PortUnusable: the HTTP port cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="pdrouter-") as directory:
        supervisor = Supervisor(settings, environment, Path(directory), on_serving)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop, number)
        await supervisor.run()


class Supervisor:
    """Keeps the workers running."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        directory: Path,
        on_serving: Callable[[str], bool],
    ) -> None:
        """Set up; nothing is started yet.

        Args:
            settings: what the operator decided.
            environment: variables that say the same, for the workers.
            directory: where the workers' sockets are to be.
            on_serving: called with the address of the HTTP port when all workers serve; returns
                whether the log need not say so.

        Raises:
            OSError: there is no memory for what the workers tell each other.
        """
        self._settings = settings
        self._on_serving = on_serving
        self._environment = environment
        self._sockets = (directory / f"{number}.sock" for number in count())
        self._stopping = asyncio.Event()
        self._running: dict[int, WorkerProcess] = {}
        self._waited_for = set(range(settings.workers))
        self._complete = asyncio.Event()
        self._admin = CommonAdmin(settings.kept_decisions, self._stopping.is_set)
        layout = Layout(settings.workers)
        self._journals = create_memory(layout)
        self._memory = SharedMemory(self._journals, layout)

    def stop(self, number: signal.Signals) -> None:
        """Begin to drain; the second time, kill what is left.

        Args:
            number: the signal that says so, for the workers.
        """
        if self._stopping.is_set():
            self._send(signal.SIGKILL)
            return
        log.info("workers draining")
        self._stopping.set()
        self._send(number)

    async def run(self) -> None:
        """Start the workers, and keep them running until `stop` is called.

        Raises:
            WorkersFailed: a worker ended before it served for the first time, or not well in a
                drain.
            PortUnusable: the HTTP port cannot be opened.
        """
        tasks = [
            asyncio.create_task(self._keep(number)) for number in range(self._settings.workers)
        ]
        complete = asyncio.create_task(self._complete.wait())
        keepers = asyncio.gather(*tasks)
        try:
            await asyncio.wait((keepers, complete), return_when=asyncio.FIRST_COMPLETED)
            if complete.done():
                await self._open_admin()
            _check_ends(await keepers)
        finally:
            # When something has failed: otherwise all of them have ended.
            self._send(signal.SIGKILL)
            for task in (complete, *tasks):
                task.cancel()
            await asyncio.gather(complete, keepers, *tasks, return_exceptions=True)
            await self._admin.stop()
            os.close(self._journals)
        log.info("workers stopped")

    async def _open_admin(self) -> None:
        with naming_port("PDROUTER_HTTP_BIND (--http-bind)", *self._settings.http_bind):
            await self._admin.start(*self._settings.http_bind)
        first = self._settings.grpc_bind[1]
        fields = {
            "grpc_ports": list(range(first, first + self._settings.workers)),
            "http": self._admin.address,
        }
        if self._on_serving(self._admin.address):
            return
        log.info("workers serving", extra={"fields": fields})

    async def _keep(self, number: int) -> int:
        """Run a worker, again and again, until all are to end; return its last exit code.

        Raises:
            WorkersFailed: it ended before it served for the first time.
        """
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_S
        code = 0
        while not self._stopping.is_set():
            start = loop.time()
            async with self._run_worker(number) as worker:
                if await _wait_until_serving(worker):
                    self._note_serving(worker)
                code = await _wait_for_end(worker)
            if self._stopping.is_set():
                break
            if number in self._waited_for:
                raise WorkersFailed(f"worker {number} {_describe_end(code)} before it served")
            if loop.time() - start >= _LASTING_S:
                pause = _FIRST_PAUSE_S
            _log_end(number, {"exit_code": code, "restart_in_s": pause})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return code

    @asynccontextmanager
    async def _run_worker(self, number: int) -> AsyncIterator[WorkerProcess]:
        worker = await WorkerProcess.start(
            number, self._environment, next(self._sockets), self._journals
        )
        self._running[number] = worker
        try:
            if self._stopping.is_set():
                worker.send(signal.SIGTERM)
            yield worker
        finally:
            worker.send(signal.SIGKILL)
            await worker.wait()
            # What it had in flight is no more: the others need not wait until it is back.
            self._memory.note_end(number)
            del self._running[number]
            self._admin.remove(worker)

    def _note_serving(self, worker: WorkerProcess) -> None:
        self._admin.add(worker)
        self._waited_for.discard(worker.number)
        if not self._waited_for:
            self._complete.set()

    def _send(self, number: signal.Signals) -> None:
        for worker in self._running.values():
            worker.send(number)


async def _wait_until_serving(worker: WorkerProcess) -> bool:
    """Wait until a worker serves, or has ended; return whether it serves."""
    while not worker.ended:
        with suppress(NoAnswer):
            await worker.get("/healthz")
            return True
        await asyncio.sleep(_LOOK_S)
    return False


async def _wait_for_end(worker: WorkerProcess) -> int:
    """Wait for the end of a worker, and kill it if it hangs; return its exit code."""
    missed = 0
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_S):
                return await worker.wait()
        try:
            await worker.get("/healthz")
        except NoAnswer:
            missed += 1
        else:
            missed = 0
        if missed == _MISSED_CHECKS:
            log.error("worker hangs", extra={"fields": {"worker": worker.number}})
            worker.send(signal.SIGKILL)


def _check_ends(codes: Sequence[int]) -> None:
    bad = [
        f"worker {number} {_describe_end(code)} while it drained"
        for number, code in enumerate(codes)
        if code not in _GOOD_ENDS
    ]
    if bad:
        raise WorkersFailed(", ".join(bad))


def _describe_end(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _log_end(number: int, fields: Mapping[str, Any]) -> None:
    log.error("worker ended", extra={"fields": {"worker": number, **fields}})
