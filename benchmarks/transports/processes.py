"""What processes use, by the kernel's accounting."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def read_cpu_s(pid: int) -> float:
    """Return the CPU time of a process in seconds, all threads together."""
    # The name of the program stands in parentheses, and may contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def read_resident_bytes(pid: int) -> int:
    """Return the memory that a process occupies."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True, slots=True)
class CpuMeter:
    """CPU time of a process from a moment on.

    Attributes:
        pid: the process.
        start_s: its CPU time at that moment.
    """

    pid: int
    start_s: float

    @classmethod
    def begin(cls, pid: int) -> "CpuMeter":
        """Measure from now on."""
        return cls(pid, read_cpu_s(pid))

    def read_s(self) -> float:
        """Return the seconds since then."""
        return read_cpu_s(self.pid) - self.start_s
