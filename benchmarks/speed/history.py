"""An earlier version of the router, out of the repository's own history, to be measured beside."""

import asyncio
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 300.0


class CommitUnusable(Exception):
    """An earlier version cannot be installed."""


async def install_commit(commit: str, directory: Path) -> Path:
    """Install the router as of a commit, with the packages that it pinned; return its Python.

    Args:
        commit: what `git` knows it by.
        directory: where it is installed.

    Raises:
        CommitUnusable: there is no such commit, or its packages cannot be had.
    """
    source, environment = directory / "source", directory / "environment"
    archive = await _run("git", "-C", str(_ROOT), "archive", "--format=zip", commit)
    await asyncio.to_thread(_unpack, archive, source)
    await _run(sys.executable, "-m", "venv", str(environment))
    python = environment / "bin" / "python"
    pip = (str(python), "-m", "pip", "install", "--quiet", "--no-deps")
    pinned = source / "constraints" / "runtime.txt"
    await _run(*pip, "--require-hashes", "--requirement", str(pinned))
    await _run(*pip, str(source))
    return python


def _unpack(archive: bytes, directory: Path) -> None:
    with ZipFile(BytesIO(archive)) as files:
        files.extractall(directory)


async def _run(*command: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CommitUnusable(f"{' '.join(command)}: {errors.decode().strip()}")
    return output
