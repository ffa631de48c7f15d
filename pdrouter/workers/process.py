"""One worker: a process with a gRPC port of its own, and a socket that it can be asked through."""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp

_ANSWER_S = 5.0
"""Bound of a question to a worker."""


def list_options() -> Sequence[str]:
    """Return options with which Python finds the modules of this router, and no other's.

    It looks in the current directory first, where it is told to run a module.
    """
    try:
        from_here = Path.cwd().samefile(Path(__file__).parents[2])
    except FileNotFoundError:  # The directory is gone.
        from_here = False
    return () if from_here else ("-P",)


class NoAnswer(Exception):
    """A worker does not answer: it has ended, does not serve yet, or hangs."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker says.

    Attributes:
        status: HTTP status.
        body: the page.
    """

    status: int
    body: bytes


class WorkerProcess:
    """A worker that was started. It ends with the supervisor, however that ends.

    Attributes:
        number: which worker it is, from 0 on.
    """

    def __init__(self, number: int, process: Process, admin_socket: Path) -> None:
        self.number = number
        self._process = process
        self._session = aiohttp.ClientSession(
            "http://worker",
            connector=aiohttp.UnixConnector(str(admin_socket)),
            timeout=aiohttp.ClientTimeout(_ANSWER_S),
        )

    @classmethod
    async def start(
        cls, number: int, environment: Mapping[str, str], admin_socket: Path, journals: int
    ) -> Self:
        """Start a worker.

        Args:
            number: which one it is.
            environment: the settings, those of the whole router.
            admin_socket: where its admin pages are to be; a path that nothing else had before.
            journals: descriptor of the memory that the workers share.

        Raises:
            OSError: the process cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *list_options(), "-m", "pdrouter", "worker"),
            *("--number", str(number)),
            *("--admin-socket", str(admin_socket), "--journals", str(journals)),
            env=environment,
            pass_fds=(journals,),
            # The worker drains when it ends: when the supervisor is no more.
            stdin=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal reaches the supervisor only, which passes it on once.
            start_new_session=True,
        )
        return cls(number, process, admin_socket)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Wait for the end; return the exit code, below zero for the signal that ended it."""
        code = await self._process.wait()
        await self._session.close()
        return code

    async def get(self, path: str) -> Answer:
        """Ask for a page.

        Raises:
            NoAnswer: there is none.
        """
        try:
            async with self._session.get(path) as response:
                return Answer(response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError, RuntimeError) as error:
            # RuntimeError: the session was closed, because the worker has just ended.
            raise NoAnswer(f"worker {self.number}: {error}") from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is no more."""
        if not self.ended:
            self._process.send_signal(number)
