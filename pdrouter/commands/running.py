"""Runs the router in this process until it is told to stop."""

import asyncio
import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdrouter.app import Application
from pdrouter.cluster.pods import format_address
from pdrouter.commands.starting import describe_models, describe_serving, greet
from pdrouter.journal.memory import Layout, SharedMemory
from pdrouter.process_limits import keep_freed_memory, raise_file_limit
from pdrouter.settings import Settings

log = logging.getLogger(__name__)


class StopSignals:
    """SIGTERM, SIGINT, and SIGHUP of a terminal that is closed. The second ends all at once.

    Attributes:
        interrupted: whether somebody has pressed Ctrl-C.
        child: process that must not outlive this one; None for none.
    """

    def __init__(self) -> None:
        """Handle the signals from now on, in the running loop."""
        self.interrupted = False
        self.child: int | None = None
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive, number)
        # Under nohup it is ignored, and stays so.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            loop.add_signal_handler(signal.SIGHUP, self._receive, signal.SIGHUP)

    def _receive(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            if self.child is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.child, signal.SIGKILL)
            os._exit(1)
        self.interrupted = number is signal.SIGINT
        self._stopping.set()

    def follow_stdin(self) -> None:
        """Stop when the standard input ends, to which nothing is ever written."""
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._stop_for_good)

    def _stop_for_good(self) -> None:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._stopping.set()

    async def wait(self) -> None:
        """Wait for the first."""
        await self._stopping.wait()


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """The place of a worker among those of its router.

    Attributes:
        number: which one it is, from 0 on: the first asks the engines for all.
        admin_socket: the Unix socket for its admin pages.
        journals: descriptor of the memory that they share.
    """

    number: int
    admin_socket: Path
    journals: int


async def serve(settings: Settings, place: WorkerPlace | None = None) -> None:
    """Run the router until it is told to stop, then drain it. A second signal exits at once.

    Args:
        settings: what the operator decided.
        place: of a worker, its place among the others; None for the only one. A worker is also
            drained when its standard input ends, for then its supervisor is gone.
    """
    signals = prepare_process()
    if place is None:
        router = Application(settings)
    else:
        signals.follow_stdin()
        journals = SharedMemory(place.journals, Layout(settings.workers))
        router = Application(
            settings,
            place.admin_socket,
            place.number,
            asks_engines=place.number == 0,
            journals=journals,
        )
    async with router as app:
        settle_process()
        _announce(app, settings, for_people=place is None)
        await signals.wait()
        await drain(app, interrupted=signals.interrupted)
    log.info("stopped")


def prepare_process() -> StopSignals:
    """Ask of the system what a router needs, and handle signals from now on."""
    raise_file_limit()
    keep_freed_memory()
    return StopSignals()


def settle_process() -> None:
    """Spare the event loop what would hold it, once everything is loaded."""
    # What was loaded so far stays: looking through it again and again for garbage would hold
    # the event loop for 30 ms and more (`python -m benchmarks.kubernetes`).
    gc.freeze()
    # A thread writes the metrics page: it must not hold the event loop for the usual 5 ms.
    sys.setswitchinterval(0.001)


async def drain(app: Application, *, interrupted: bool) -> None:
    """Let open requests finish.

    Args:
        app: the router.
        interrupted: whether somebody waits for the end at a terminal.
    """
    count = len(app.telemetry.open)
    log.info("draining", extra={"fields": {"requests": count}})
    if interrupted and count and sys.stderr.isatty():
        print(f"\nwaiting for {count} open requests; Ctrl-C ends them at once", file=sys.stderr)
    await app.drain(lame_duck=not interrupted or count > 0)


def _announce(app: Application, settings: Settings, *, for_people: bool) -> None:
    view = app.cache.view
    host, _ = settings.grpc_bind
    addresses = [format_address(host, app.server.port)]
    text = describe_serving(addresses, app.admin.address, describe_models(view))
    if for_people and greet(text):
        return
    log.info(
        "serving",
        extra={
            "fields": {
                "grpc_port": app.server.port,
                "http": app.admin.address,
                "models": sorted(view.models),
                "settings": settings.show(),
            }
        },
    )
