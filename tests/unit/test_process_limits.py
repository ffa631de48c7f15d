"""What the router asks of the system for its own process."""

import platform
import subprocess
import sys

import pytest

from pdrouter.process_limits import keep_freed_memory

COUNT_FAULTS = """
import resource
from pdrouter.process_limits import keep_freed_memory
{tune}
def copy_bodies():
    for _ in range(20):
        copies = [b"x" * 1_000_000 for _ in range(8)]
        del copies
copy_bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
copy_bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(tune: str) -> int:
    script = COUNT_FAULTS.format(tune=tune)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has these thresholds")
def test_memory_of_large_bodies_is_used_again() -> None:
    assert count_page_faults("keep_freed_memory()") < count_page_faults("") / 10


def test_without_glibc_memory_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str | None] = []

    class OtherLibrary:
        def __init__(self, name: str | None) -> None:
            opened.append(name)

    monkeypatch.setattr("ctypes.CDLL", OtherLibrary)
    keep_freed_memory()
    assert opened == [None]
