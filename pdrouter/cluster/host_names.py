"""Resolves host names off the event loop, and keeps what was found last."""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from threading import Thread

log = logging.getLogger(__name__)

_WAIT_S = 5.0

Resolve = Callable[[str], tuple[str, ...]]
"""Returns the addresses of a name; raises OSError if there are none."""


def resolve(name: str) -> tuple[str, ...]:
    """Return the addresses of a name: the IPv4 ones, or the IPv6 ones if there are no others.

    Both together would be each engine twice.

    Raises:
        OSError: there are none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from None
    by_family = {
        family: {str(address[0]) for kind, *_, address in found if kind is family}
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    # Name servers give them in turns; a zone means something on one interface only.
    usable = sorted(
        address
        for address in by_family[socket.AF_INET] or by_family[socket.AF_INET6]
        if "%" not in address
    )
    if not usable:
        raise OSError("it has no address")
    return tuple(usable)


class HostNames:
    """Looks names up again and again."""

    def __init__(self, resolve: Resolve = resolve, *, wait_s: float = _WAIT_S) -> None:
        """Set up.

        Args:
            resolve: called in a thread.
            wait_s: seconds for a look-up, after which the last good addresses stay in use. It goes
                on, and what it finds is used at the next look.
        """
        self._resolve = resolve
        self._wait_s = wait_s
        self._known: dict[str, tuple[str, ...]] = {}
        self._failing: set[str] = set()
        self._pending: dict[str, asyncio.Future[tuple[str, ...]]] = {}

    async def look_up(self, names: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the addresses by name; nothing for a name that has never had any.

        Args:
            names: what to look up. All others are forgotten.
        """
        for name in names:
            if name not in self._pending:
                self._pending[name] = self._start(name)
        if names:
            await asyncio.wait([self._pending[name] for name in names], timeout=self._wait_s)
        for name in names:
            self._take(name)
        self._known = {name: self._known[name] for name in names if name in self._known}
        self._pending = {name: self._pending[name] for name in names if name in self._pending}
        self._failing.intersection_update(names)
        return self._known

    def _take(self, name: str) -> None:
        """Take over what was found."""
        if not self._pending[name].done():
            self._note_failure(name, "no answer in time")
            return
        try:
            self._known[name] = self._pending.pop(name).result()
        except OSError as error:
            self._note_failure(name, error.strerror or str(error))
        else:
            if name in self._failing:
                self._failing.discard(name)
                log.info("host name is resolved again", extra={"fields": {"host": name}})

    def _note_failure(self, name: str, cause: str) -> None:
        if name not in self._failing:
            self._failing.add(name)
            kept = ", its last addresses stay in use" if name in self._known else ""
            log.error(
                "host name %s cannot be resolved%s: %s",
                name,
                kept,
                cause,
                extra={"fields": {"host": name}},
            )

    def _start(self, name: str) -> asyncio.Future[tuple[str, ...]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[str, ...]] = loop.create_future()

        def work() -> None:
            try:
                outcome: tuple[str, ...] | OSError = self._resolve(name)
            except OSError as error:
                outcome = error
            # The loop may have ended meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future, outcome)

        # A thread of its own, which the end of the process does not wait for: a name server that
        # is silent may hold it for half a minute.
        Thread(target=work, name="resolve", daemon=True).start()
        return future


def _settle(future: asyncio.Future[tuple[str, ...]], outcome: tuple[str, ...] | OSError) -> None:
    if future.cancelled():
        return
    if isinstance(outcome, OSError):
        future.set_exception(outcome)
        # Whoever asked may have gone.
        future.exception()
    else:
        future.set_result(outcome)
