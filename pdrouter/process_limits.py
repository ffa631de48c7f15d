"""What the router asks of the system for its own process."""

import ctypes
import logging
import resource

log = logging.getLogger(__name__)

# Parameters of `mallopt` (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_IN_HEAP = 32 * 1024 * 1024
_KEPT_BYTES = 64 * 1024 * 1024


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
    """Keep up to 64 MB that bodies had, for the next ones, where glibc manages memory.

    A body of 1 MB is copied several times on its way. By default each copy is given back to the
    system and comes anew, page by page, which costs more than to copy it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
