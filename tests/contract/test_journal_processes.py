"""A journal between two processes, on as many cores: what is read is what was written."""

import os
import subprocess
import sys

from pdrouter.journal.memory import JournalLost, Layout, SharedMemory, create_memory

LAYOUT = Layout(1, ring_bytes=64 * 1024)
BATCHES = 60_000
WRITER = f"""
import sys
from pdrouter.journal.memory import Layout, SharedMemory

ring = SharedMemory(int(sys.argv[1]), Layout(1, {LAYOUT.ring_bytes})).ring(0)
ring.begin_life(1)
for number in range({BATCHES}):
    # Each batch says its number again and again: parts of two would be seen.
    ring.append(number.to_bytes(4, "big") * (1 + number % 61))
"""


def test_a_reader_beside_a_writer_sees_whole_batches_in_their_order() -> None:
    descriptor = create_memory(LAYOUT)
    ring = SharedMemory(descriptor, LAYOUT).ring(0)
    position, seen = 0, 0
    expected: int | None = 0
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(descriptor)], pass_fds=(descriptor,)
    )
    try:
        while expected != BATCHES:
            ended = writer.poll()
            try:
                batches, position = ring.read(position)
            except JournalLost:
                position, expected = ring.find_oldest(), None
                continue
            for batch in batches:
                number = int.from_bytes(batch[:4], "big")
                assert batch == batch[:4] * (1 + number % 61)
                assert expected in (None, number)
                expected = number + 1
                seen += 1
            assert ended is None or (ended, expected) == (0, BATCHES)
    finally:
        writer.kill()
        writer.wait()
        os.close(descriptor)
    assert seen > 100
