"""What the router asks of the system for its own process."""

import asyncio
import ctypes
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

# Parameters of `mallopt` (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_IN_HEAP = 32 * 1024 * 1024
_KEPT_BYTES = 64 * 1024 * 1024
_MOST_FREED_BYTES = 128 * 1024 * 1024
_MOVED_BYTES = 32 * 1024 * 1024
_CALM_BYTES = 1024 * 1024
_OWN_BYTES = 192 * 1024 * 1024
_TRIM_INTERVAL_S = 1.0
_OBJECT_BYTES = 400
_OBJECTS = 10_000
_OBJECTS_TO_KEEP_ONE = 1000
_kept_objects: list[bytes] = []


def raise_file_limit() -> None:
    """Allow as many open files as the system lets the process have.

    Each prefill leg in flight holds a connection, and many shells and container runtimes start
    processes with a limit of 1,024, above which even probes would go unanswered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # Where "unlimited" is more than the kernel takes.
        log.warning("at most %d files can be open: %s", soft, error)


def keep_freed_memory() -> None:
    """Keep up to 64 MB that bodies had, and 4 MB that small objects had, for the next ones.

    A body of 1 MB is copied several times on its way. By default each copy is given back to the
    system and comes anew, page by page, which costs more than to copy it: by glibc, where that
    manages memory, and by Python, for the texts of a conversation while its end is looked for.
    Python gives back each MB of small objects (an arena) in which none is left.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    if not _kept_objects:
        objects = [bytes(_OBJECT_BYTES) for _ in range(_OBJECTS)]
        _kept_objects.extend(objects[::_OBJECTS_TO_KEEP_ONE])


def find_memory_limit(
    process: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how much memory the process may have: its container's limit, or half of the machine's.

    Args:
        process: what the kernel says of the process.
        groups: where control groups are mounted, of version 1 or 2.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    limits: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _read_limits(groups, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _read_limits(groups / "memory", path, "memory.limit_in_bytes")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Version 1 says "no limit" as a very large number.
    return min([limit for limit in limits if limit < machine], default=machine // 2)


def choose_body_memory(limit: int, workers: int) -> int:
    """Return how many bytes of request bodies a worker may hold.

    Args:
        limit: how much memory all of them may have.
        workers: how many processes share it.
    """
    # Beside what waits there is what arrives, copies that come and go, and gaps in between.
    return max(0, limit // workers - _OWN_BYTES) // 3


def _read_limits(mount: Path, path: str, name: str) -> list[int]:
    """Return the limits of a control group and of all above it, as far as they can be seen.

    In a container, the path may be that of the machine, while only its own group is mounted.
    """
    limits: list[int] = []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        file = mount.joinpath(*parts[:depth], name)
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            limits.append(int(text))
    return limits


class FreedMemory:
    """Gives memory back to the system that bodies had, once there is much of it."""

    def __init__(self, count_held: Callable[[], int]) -> None:
        """Begin with what the process has.

        Args:
            count_held: counts the bytes that are in use and come and go.
        """
        self._count_held = count_held
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._own = read_resident_bytes()
        self._held_before = 0
        self._held_at_trim = 0
        self._most_held = 0

    async def run(self) -> None:
        """Give memory back, again and again, until cancelled."""
        while self._trim is not None:
            await asyncio.sleep(_TRIM_INTERVAL_S)
            if self._is_worth_it():
                # In a thread: it takes some milliseconds, and lets go of the interpreter's lock.
                await asyncio.to_thread(self._trim, _KEPT_BYTES)

    def _is_worth_it(self) -> bool:
        """Return whether much is unused, bodies have come or gone since, and few do now.

        Nobody gets memory meanwhile: in a burst, that would be a pause for all.
        """
        held, before = self._count_held(), self._held_before
        self._held_before = held
        self._most_held = max(self._most_held, held)
        moved = max(self._most_held - held, held - self._held_at_trim)
        if abs(held - before) > _CALM_BYTES or moved < _MOVED_BYTES:
            return False
        if read_resident_bytes() - self._own - held < _MOST_FREED_BYTES:
            return False
        self._held_at_trim = self._most_held = held
        return True


def read_resident_bytes() -> int:
    """Return how much memory the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
