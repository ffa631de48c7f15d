"""Journals in memory that the workers of a router share: one each, that it alone writes.

A journal is a ring of batches of bytes. Its writer says where it is about to write, writes, and
then says how far the journal goes: so a reader sees whole batches only, and notices when what it
has copied was overwritten meanwhile. Nobody waits for anybody, and nothing is called in the kernel.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct

from xxhash import xxh32_intdigest as checksum

_HEADER_BYTES = 4096
_RING_BYTES = 8 * 1024 * 1024
"""A request takes about a kilobyte: so many of the last ones are there for who comes later."""
_PARTS = 64
"""In each part of a ring it is known where a batch begins."""
_FRAME = Struct("<II")
_FRAME_BYTES = _FRAME.size
_ALIGNED = 8
_PADDING = 0xFFFFFFFF
"""In place of a length: what follows up to the ring's end is nothing."""
_LOW_BITS = 0xFFFFFFFF
"""What is kept of a position: with it, nothing is taken for what stood there before."""

_LIFE, _ENDED, _DIALECT, _SEEN, _RESERVED, _HEAD, _BEGINNINGS = range(7)
"""Places in a journal's header, each of eight bytes: which life of its worker writes it, the last
life that has ended, what language it is written in, when the worker was seen last, up to where it
may be overwritten, how far it goes; then where batches begin, one for each part."""


class JournalLost(Exception):
    """Batches are gone that were not read yet."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How large the journals are.

    Attributes:
        workers: how many there are.
        ring_bytes: bytes of batches that each keeps.
    """

    workers: int
    ring_bytes: int = _RING_BYTES

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return self.workers * (_HEADER_BYTES + self.ring_bytes)


def create_memory(layout: Layout) -> int:
    """Create the memory, for processes that inherit it; return its file descriptor.

    It has no name in any file system, and is gone when the last of them has ended.

    Raises:
        OSError: there is no memory for it.
    """
    descriptor = os.memfd_create("pdrouter-journals", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, layout.bytes)
    return descriptor


class SharedMemory:
    """The journals of all workers, as one process sees them.

    Attributes:
        layout: how large they are.
    """

    def __init__(self, descriptor: int, layout: Layout) -> None:
        """Map them.

        Args:
            descriptor: of `create_memory`; may be closed afterwards.
            layout: the same as there.

        Raises:
            OSError: it is not the memory that it should be.
        """
        if os.fstat(descriptor).st_size != layout.bytes:
            raise OSError(f"the workers' shared memory is not of {layout.bytes} bytes")
        self.layout = layout
        self._map = mmap.mmap(descriptor, layout.bytes)
        self._view = memoryview(self._map)

    def ring(self, worker: int) -> "Ring":
        """Return the ring that a worker writes."""
        size = _HEADER_BYTES + self.layout.ring_bytes
        return Ring(self._view[worker * size : (worker + 1) * size])

    def note_end(self, worker: int) -> None:
        """Note that the worker which writes a journal has ended."""
        self.ring(worker).note_end()


class Ring:
    """One journal, as its writer and its readers have it.

    Attributes:
        find_head: returns how far it goes, in bytes since it was begun.
    """

    __slots__ = ("_end", "_header", "_part_bytes", "_reserved", "_ring", "_size", "find_head")

    def __init__(self, memory: memoryview) -> None:
        self._header = memory[:_HEADER_BYTES].cast("Q")
        self._ring = memory[_HEADER_BYTES:]
        self._size = len(self._ring)
        self._part_bytes = self._size // _PARTS
        self.find_head: Callable[[], int] = partial(self._header.__getitem__, _HEAD)
        # What its writer knows without looking there. What one that has died has reserved is free.
        self._end = self._reserved = self._header[_HEAD]

    @property
    def life(self) -> int:
        """Which life of its worker writes it: 1 for the first, 0 if none has begun."""
        return self._header[_LIFE]

    @property
    def is_alive(self) -> bool:
        """Whether its worker has begun, and is not known to have ended."""
        return self._header[_LIFE] > self._header[_ENDED]

    @property
    def dialect(self) -> int:
        """In which language it is written, as a number."""
        return self._header[_DIALECT]

    @property
    def seen(self) -> float:
        """When its worker has said last that it runs, on the clock of the machine."""
        return self._header[_SEEN] / 1e9

    def note_seen(self, now: float) -> None:
        """Say that the worker runs."""
        self._header[_SEEN] = round(now * 1e9)

    def note_end(self) -> None:
        """Note that the worker has ended; only who has started it does."""
        self._header[_ENDED] = self._header[_LIFE]

    def find_oldest(self) -> int:
        """Return where the oldest batch begins that is not about to be overwritten."""
        header, head = self._header, self.find_head()
        oldest = max(0, header[_RESERVED] - self._size + self._part_bytes)
        beginnings = (header[_BEGINNINGS + part] - 1 for part in range(_PARTS))
        return min((start for start in beginnings if oldest <= start < head), default=head)

    def begin_life(self, dialect: int) -> int:
        """Become its writer, in place of one that has ended; return which life that is."""
        header = self._header
        header[_RESERVED] = self._reserved = self._end = header[_HEAD]
        if header[_DIALECT] != dialect:
            # What was written so far, nobody who comes later could read.
            for part in range(_PARTS):
                header[_BEGINNINGS + part] = 0
            header[_DIALECT] = dialect
        header[_LIFE] = header[_LIFE] + 1
        return header[_LIFE]

    @property
    def largest(self) -> int:
        """Bytes that a batch may have."""
        return self._part_bytes - _FRAME_BYTES - _ALIGNED

    def append(self, batch: bytes) -> None:
        """Write a batch, of at most `largest` bytes; only its writer may."""
        length = len(batch)
        needed = _FRAME_BYTES + length + -length % _ALIGNED
        if self._end + needed > self._reserved:
            self._reserve(needed)
        start = self._end
        offset = start % self._size
        frame = _FRAME.pack(length, checksum(batch, start))
        self._ring[offset : offset + _FRAME_BYTES + length] = frame + batch
        self._header[_HEAD] = self._end = start + needed

    def _reserve(self, needed: int) -> None:
        """Say how far is about to be written: to a part's end, or to the batch's if that is behind.

        A batch of so many bytes that does not fit before the ring's end stands at its beginning.
        """
        header, part_bytes = self._header, self._part_bytes
        start = self._end
        left = self._size - start % self._size
        following = start + left if needed > left else start
        into_part = following % part_bytes
        self._reserved = max(following + needed, following - into_part + part_bytes)
        header[_RESERVED] = self._reserved
        if following > start:
            _FRAME.pack_into(self._ring, start % self._size, _PADDING, start & _LOW_BITS)
        self._end = following
        place = _BEGINNINGS + following % self._size // part_bytes
        if header[place] <= following - into_part:
            header[place] = following + 1

    def read(self, position: int) -> tuple[Sequence[bytes], int]:
        """Return the batches from a position on, and the position behind them.

        It ends early where a batch is not yet as its writer has written it: memory may be seen
        later than what says that it was written.

        Raises:
            JournalLost: there is no such batch any more.
        """
        header, ring, size = self._header, self._ring, self._size
        head = header[_HEAD]
        batches: list[bytes] = []
        while position < head:
            offset = position % size
            length, expected = _FRAME.unpack_from(ring, offset)
            start = offset + _FRAME_BYTES
            batch = ring[start : start + length].tobytes() if length != _PADDING else b""
            if header[_RESERVED] - position > size:
                raise JournalLost
            if length == _PADDING and expected == position & _LOW_BITS:
                position += size - offset
            elif length == len(batch) and checksum(batch, position) == expected:
                batches.append(batch)
                position += _FRAME_BYTES + length + -length % _ALIGNED
            else:
                break
        return batches, position
