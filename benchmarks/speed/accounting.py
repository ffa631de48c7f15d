"""What processes have used, from the kernel's own accounts (proc(5))."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def read_cpu_s(pids: Iterable[int]) -> float:
    """Return the seconds of CPU that processes and their children have used, all threads.

    A child that has ended counts for its parent. The kernel counts in ticks, 10 ms as a rule.
    """
    ticks = 0
    for pid in _with_children(pids):
        stat = (_PROC / str(pid) / "stat").read_text()
        # The name of the program, in brackets, may itself hold blanks and brackets.
        fields = stat.rpartition(")")[2].split()
        own_and_ended = fields[11:15]  # utime, stime, cutime, cstime
        ticks += sum(map(int, own_and_ended))
    return ticks / _TICKS_PER_S


def read_peak_memory_mb(pids: Iterable[int]) -> float:
    """Return the most memory that processes and their children have had resident, in MB."""
    kilobytes = 0
    for pid in _with_children(pids):
        status = (_PROC / str(pid) / "status").read_text()
        kilobytes += int(status.split("VmHWM:")[1].split()[0])
    return kilobytes / 1024


def _with_children(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        yield pid
        for task in (_PROC / str(pid) / "task").iterdir():
            yield from _with_children(map(int, (task / "children").read_text().split()))
