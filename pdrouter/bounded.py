"""What is remembered by names that others choose, and must not grow without end."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def make_room(entries: dict[K, V], key: K, most: int) -> None:
    """Let there be room for an entry: if there are as many as may be, the first one goes.

    What replaces an entry needs none. A dictionary of its own kind would cost each entry that is
    set ten times as much.
    """
    if key not in entries and len(entries) >= most:
        del entries[next(iter(entries))]
