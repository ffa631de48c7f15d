"""Files of certificates and keys, which may be replaced while they are in use."""

import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


class CertificatesInvalid(Exception):
    """The files for TLS cannot be used."""


class FollowedContext:
    """What TLS is spoken with: made anew when its files change; while they are broken, it stays."""

    def __init__(self, paths: Sequence[Path], create: Callable[[], ssl.SSLContext]) -> None:
        """Read the files.

        Args:
            paths: the files.
            create: makes a context of what is in them.

        Raises:
            CertificatesInvalid: they cannot be used now.
        """
        self._paths = paths
        self._create = create
        self._looks = self._look()
        self._contents = self._read()
        self._newest = self._make()

    def follow(self) -> ssl.SSLContext:
        """Return what is in the files now, or was when they were last good."""
        looks = self._look()
        if looks == self._looks:
            return self._newest
        self._looks = looks
        try:
            contents = self._read()
            if contents != self._contents:
                # A new one: authorities can only be added to the old.
                self._newest = self._make()
                self._contents = contents
                log.info("TLS certificates were replaced")
        except CertificatesInvalid as error:
            log.error("TLS certificates are broken, the last good ones stay in use: %s", error)
        return self._newest

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes when a file does: to read them takes longer than to look."""
        return tuple(map(_look_at, self._paths))

    def _read(self) -> tuple[bytes, ...]:
        try:
            return tuple(path.read_bytes() for path in self._paths)
        except OSError as error:
            raise CertificatesInvalid(f"TLS files: {error}") from error

    def _make(self) -> ssl.SSLContext:
        with naming_files(self._paths):
            return self._create()


@contextmanager
def naming_files(paths: Sequence[Path]) -> Iterator[None]:
    """Say of which files it is that something fails with them.

    Raises:
        CertificatesInvalid: one cannot be read, is not PEM, or the key is of another certificate,
            as it is for a moment while the files are replaced one by one.
    """
    try:
        yield
    except OSError as error:  # Those of OpenSSL are among them.
        raise CertificatesInvalid(f"TLS files {', '.join(map(str, paths))}: {error}") from error


def _look_at(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns
