"""The ring of batches that one worker writes and the others read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.journal.memory import JournalLost, Layout, Ring, SharedMemory, create_memory

SMALL = Layout(2, ring_bytes=64 * 256)


@contextmanager
def memory(layout: Layout = SMALL) -> Iterator[SharedMemory]:
    descriptor = create_memory(layout)
    try:
        yield SharedMemory(descriptor, layout)
    finally:
        os.close(descriptor)


@pytest.fixture
def ring() -> Iterator[Ring]:
    with memory() as shared:
        yield shared.ring(0)


def test_what_one_writes_another_reads_once_and_in_order(ring: Ring) -> None:
    ring.append(b"one")
    ring.append(b"")
    batches, position = ring.read(0)
    assert list(batches) == [b"one", b""]
    ring.append(b"two")
    batches, position = ring.read(position)
    assert list(batches) == [b"two"]
    assert ring.read(position) == ([], position)


def test_each_worker_has_a_ring_of_its_own() -> None:
    with memory() as shared:
        shared.ring(0).append(b"zero")
        shared.ring(1).append(b"one")
        assert shared.ring(0).read(0)[0] == [b"zero"]
        assert shared.ring(1).read(0)[0] == [b"one"]


def test_memory_of_another_size_is_refused() -> None:
    descriptor = create_memory(Layout(2, 64 * 256))
    try:
        with pytest.raises(OSError, match="is not of"):
            SharedMemory(descriptor, Layout(3, 64 * 256))
    finally:
        os.close(descriptor)


def test_the_memory_has_no_name_that_others_could_open() -> None:
    descriptor = create_memory(SMALL)
    try:
        assert "memfd" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


@given(st.lists(st.integers(0, 200), max_size=400), st.integers(1, 60))
def test_a_reader_sees_every_batch_or_is_told_that_it_does_not(
    sizes: list[int], every: int
) -> None:
    with memory() as shared:
        ring = shared.ring(0)
        written: list[bytes] = []
        seen: list[bytes] = []
        position = 0
        for number, size in enumerate(sizes):
            batch = number.to_bytes(2, "big") + b"x" * size
            ring.append(batch)
            written.append(batch)
            assert ring._header[4] >= ring.find_head(), (
                "readers were not told of what it overwrites"
            )
            if number % every == 0:
                try:
                    batches, position = ring.read(position)
                except JournalLost:
                    position = ring.find_oldest()
                    oldest, position = ring.read(position)
                    batches = oldest
                    seen = written[: len(written) - len(oldest)]
                seen += batches
                assert seen == written


@given(st.lists(st.integers(0, 200), min_size=1, max_size=600))
def test_who_comes_later_reads_the_last_batches_most_of_a_ring_of_them(sizes: list[int]) -> None:
    with memory() as shared:
        ring = shared.ring(0)
        written = [number.to_bytes(2, "big") + b"x" * size for number, size in enumerate(sizes)]
        for batch in written:
            ring.append(batch)
        batches, _ = ring.read(ring.find_oldest())
        assert batches == written[len(written) - len(batches) :]
        kept = sum(len(batch) for batch in batches)
        assert len(batches) == len(written) or kept > SMALL.ring_bytes // 2


def test_a_slow_reader_loses_what_was_overwritten(ring: Ring) -> None:
    for _ in range(100):
        ring.append(b"x" * 200)
    with pytest.raises(JournalLost):
        ring.read(0)


def test_a_batch_that_is_not_yet_there_is_not_read(ring: Ring) -> None:
    """As on machines where one core may see another one's writes in another order."""
    ring.append(b"whole")
    _, behind = ring.read(0)
    ring.append(b"torn")
    ring._ring[behind + 8] ^= 1
    assert ring.read(behind) == ([], behind)
    ring._ring[behind + 8] ^= 1
    assert ring.read(behind)[0] == [b"torn"]


@pytest.mark.parametrize(
    "size", [pytest.param(248, id="a-batch"), pytest.param(504, id="nothing-up-to-the-end")]
)
def test_what_stood_there_in_an_earlier_round_is_not_read(size: int, ring: Ring) -> None:
    """There, too, it may be seen for a while; and it is whole."""
    for _ in range(63):
        ring.append(b"x" * 248)  # With its frame, one of 64 equal parts of the ring.
    place = ring.find_head()
    ring.append(b"x" * size)
    before = ring._ring[place:].tobytes()
    while ring.find_head() % SMALL.ring_bytes != place:
        ring.append(b"y" * 248)
    position = ring.find_head()
    ring.append(b"z" * 248)
    now = ring._ring[place:].tobytes()
    ring._ring[place:] = before
    assert ring.read(position) == ([], position)
    ring._ring[place:] = now
    assert ring.read(position)[0] == [b"z" * 248]


def test_a_batch_of_which_only_the_checksum_is_there_is_not_read(ring: Ring) -> None:
    """With a length that stood there before, it would seem to end elsewhere."""
    for _ in range(63):
        ring.append(b"x" * 248)
    position = ring.find_head()
    ring.append(b"z" * 248)
    frame = ring._ring[position : position + 8].tobytes()
    for length in (504, 2**32 - 1):
        ring._ring[position : position + 4] = length.to_bytes(4, "little")
        assert ring.read(position) == ([], position)
    ring._ring[position : position + 8] = frame
    assert ring.read(position)[0] == [b"z" * 248]


def test_a_writer_that_has_died_while_it_wrote_leaves_nothing_behind(ring: Ring) -> None:
    ring.begin_life(1)
    ring.append(b"before")
    ring._header[4] = ring.find_head() + 64  # It had said where it would write, and no more.
    assert ring.read(0)[0] == [b"before"]
    assert ring.begin_life(1) == 2
    ring.append(b"after")
    assert ring.read(0)[0] == [b"before", b"after"]


def test_another_life_in_another_language_does_not_go_on_with_what_was_said(ring: Ring) -> None:
    ring.begin_life(1)
    ring.append(b"said in one")
    ring.begin_life(2)
    ring.append(b"said in two")
    assert ring.read(ring.find_oldest())[0] == [b"said in two"]


def test_a_worker_is_alive_from_its_beginning_to_its_end() -> None:
    with memory() as shared:
        ring = shared.ring(1)
        states = [ring.is_alive]
        ring.begin_life(1)
        states.append(ring.is_alive)
        shared.note_end(1)
        states.append(ring.is_alive)
        ring.begin_life(1)
        states.append(ring.is_alive)
        assert states == [False, True, False, True]
