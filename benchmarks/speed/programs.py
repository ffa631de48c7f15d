"""The programs of C speed that the benchmark needs: found, or explained."""

import shutil
from pathlib import Path

_PACKAGES = {"h2load": "nghttp2-client", "nginx": "nginx-light", "cc": "gcc libc6-dev"}
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")


class ProgramMissing(Exception):
    """A program is not installed; the message says how to install it."""


def find_program(name: str) -> Path:
    """Return where a program is.

    Raises:
        ProgramMissing: it is nowhere.
    """
    # Debian keeps nginx where the PATH of a plain user does not lead.
    found = shutil.which(name) or next(
        (found for folder in _SYSTEM_FOLDERS if (found := shutil.which(name, path=folder))), None
    )
    if found is None:
        raise ProgramMissing(
            f"{name} is missing: apt-get update && apt-get install -y {_PACKAGES[name]}"
        )
    return Path(found)
