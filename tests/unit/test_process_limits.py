"""What the router asks of the system for its own process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pdrouter import process_limits
from pdrouter.process_limits import (
    FreedMemory,
    choose_body_memory,
    find_memory_limit,
    keep_freed_memory,
)

COUNT_FAULTS = """
import resource
from pdrouter.process_limits import keep_freed_memory
{tune}
size = {size}
def copy_bodies():
    for _ in range(20):
        copies = [b"x" * size for _ in range({count})]
        del copies
copy_bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
copy_bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(tune: str, size: int, count: int) -> int:
    script = COUNT_FAULTS.format(tune=tune, size=size, count=count)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has these thresholds")
def test_memory_of_large_bodies_is_used_again() -> None:
    tuned, untuned = (count_page_faults(tune, 1_000_000, 8) for tune in ("keep_freed_memory()", ""))
    assert tuned < untuned / 10


def test_memory_of_many_texts_is_used_again() -> None:
    tuned, untuned = (count_page_faults(tune, 400, 7000) for tune in ("keep_freed_memory()", ""))
    assert tuned < untuned / 10


def test_without_glibc_memory_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str | None] = []

    class OtherLibrary:
        def __init__(self, name: str | None) -> None:
            opened.append(name)

    monkeypatch.setattr("ctypes.CDLL", OtherLibrary)
    keep_freed_memory()
    assert opened == [None]


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {"memory.max": "1073741824"}, 1024 * MIB),
        # A container that sees the machine's path, but only its own group.
        ("0::/kubepods/pod1", {"memory.max": "1073741824"}, 1024 * MIB),
        ("0::/a/b", {"a/memory.max": "2097152", "a/b/memory.max": "4194304"}, 2 * MIB),
        ("0::/a/b", {"a/memory.max": "max", "a/b/memory.max": "4194304"}, 4 * MIB),
        ("0::/../a", {"a/memory.max": "4194304"}, 4 * MIB),
        ("4:cpu,memory:/x\n0::/", {"memory/x/memory.limit_in_bytes": "4194304"}, 4 * MIB),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": "4194304"}, 4 * MIB),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/", {"memory.max": "max"}, None),
        ("0::/", {}, None),
        ("", {}, None),
    ],
)
def test_the_containers_limit_is_found(
    tmp_path: Path, membership: str, files: dict[str, str], limit: int | None
) -> None:
    process, groups = tmp_path / "process", tmp_path / "groups"
    process.mkdir()
    (process / "cgroup").write_text(membership + "\n" if membership else "")
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert find_memory_limit(process, groups) == (limit or machine // 2)


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert find_memory_limit(tmp_path, tmp_path) > 0


@pytest.mark.parametrize(
    ("limit", "workers", "held"),
    [(1024 * MIB, 1, 277 * MIB), (2048 * MIB, 4, 106 * MIB), (128 * MIB, 1, 0)],
)
def test_bodies_get_a_part_of_the_limit(limit: int, workers: int, held: int) -> None:
    assert choose_body_memory(limit, workers) // MIB == held // MIB


@pytest.mark.parametrize(
    ("held", "resident_mib", "worth_it"),
    [
        # All is gone, much is left.
        ([300, 0, 0], [400, 400, 400], [False, False, True]),
        # In a burst, others would have to wait.
        ([300, 200, 100], [400, 400, 400], [False, False, False]),
        # What is held is not left over.
        ([300, 300, 300], [400, 400, 400], [False, False, False]),
        ([300, 300, 300], [600, 600, 600], [False, True, False]),
        # Once for each time that bodies have gone.
        ([300, 0, 0, 0], [400, 400, 400, 400], [False, False, True, False]),
        ([10, 0, 0], [400, 400, 400], [False, False, False]),
    ],
)
def test_memory_is_given_back_when_bodies_are_gone(
    monkeypatch: pytest.MonkeyPatch, held: list[int], resident_mib: list[int], worth_it: list[bool]
) -> None:
    resident = iter([50, *resident_mib])
    counts = iter(held)
    monkeypatch.setattr(process_limits, "read_resident_bytes", lambda: next(resident) * MIB)
    freed = FreedMemory(lambda: next(counts) * MIB)
    now: list[bool] = []
    for size in resident_mib:
        resident = iter([size])
        now.append(freed._is_worth_it())
    assert now == worth_it


FREE_BODIES = """
import asyncio
from pdrouter.process_limits import FreedMemory, keep_freed_memory, read_resident_bytes
keep_freed_memory()
freed = FreedMemory(lambda: sum(map(len, bodies)))
bodies = [b"x" * 7_000_000 for _ in range(40)]
# Something small above all of them keeps the heap from shrinking by itself.
kept = [b"x" * 100_000 for _ in range(20)]
async def main():
    task = asyncio.create_task(freed.run())
    await asyncio.sleep(0.05)
    for _ in range(3):
        freed._is_worth_it()
    bodies.clear()
    before = read_resident_bytes()
    while read_resident_bytes() > before / 2:
        await asyncio.sleep(0.05)
    task.cancel()
asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has this call")
def test_freed_memory_goes_back_to_the_system() -> None:
    subprocess.run([sys.executable, "-c", FREE_BODIES], check=True, timeout=60)
