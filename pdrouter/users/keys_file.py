"""The file with users and their keys, followed when it changes."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from pdrouter.users.roster import EMPTY, Roster, RosterInvalid, parse_roster

log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 1.0


class KeysFile:
    """The users of a file. Whoever asks gets those of its last good version.

    Attributes:
        roster: the users.
    """

    def __init__(
        self,
        path: Path | None = None,
        on_reload: Callable[[bool], object] = bool,
        poll_interval_s: float = _POLL_INTERVAL_S,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            path: the file, which is a symbolic link where Secrets are mounted; None for no users.
            on_reload: called after each attempt to read a changed file, with its success.
            poll_interval_s: seconds between two looks at the file.
        """
        self._path = path
        self._on_reload = on_reload
        self._poll_interval_s = poll_interval_s
        self._seen: object = None
        self.roster: Roster = EMPTY

    @property
    def given(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    async def load(self) -> None:
        """Read the file.

        Raises:
            RosterInvalid: it is missing or broken; the users stay as they are.
        """
        if self._path is not None:
            self.roster = await asyncio.to_thread(self._read, self._path)

    async def watch(self) -> None:
        """Read the file again whenever it changes, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(self._poll_interval_s)
            if await asyncio.to_thread(_identify, self._path) == self._seen:
                continue
            try:
                await self.load()
            except RosterInvalid as error:
                log.error("file of API keys is broken, the last good one stays in use: %s", error)
                self._on_reload(False)
            else:
                roster = self.roster
                counts = {"users": len(roster.users), "keys": len(roster.by_digest)}
                log.info("file of API keys was read again", extra={"fields": counts})
                self._on_reload(True)

    def _read(self, path: Path) -> Roster:
        # Noted before reading, so that a change while reading is seen at the next look.
        self._seen = _identify(path)
        try:
            return parse_roster(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, RosterInvalid) as error:
            cause: object = error
            if isinstance(error, OSError):
                cause = error.strerror
            elif isinstance(error, UnicodeDecodeError):
                cause = "it is not UTF-8"
            raise RosterInvalid(f"API keys in {path}: {cause}") from None


def _identify(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_size, status.st_mtime_ns
