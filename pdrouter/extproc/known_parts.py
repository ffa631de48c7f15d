"""Parts of messages that come again and again: each is told by its bytes, and read once."""

from collections.abc import Callable
from typing import Final, TypeVar

MOST: Final = 512
LARGEST: Final = 256
"""Bytes of the largest part that is kept; together they are 128 KiB at the most."""

T = TypeVar("T")


class KnownParts(dict[bytes, T]):
    """What parts of a kind say, by their bytes. To ask for one that is not known reads it."""

    __slots__ = ("_read",)

    def __init__(self, read: Callable[[bytes], T]) -> None:
        """Begin without any.

        Args:
            read: reads a part. All who ask for it get the same object.
        """
        super().__init__()
        self._read = read

    def __missing__(self, part: bytes) -> T:
        read = self._read(part)
        if len(part) <= LARGEST:
            if len(self) >= MOST:
                self.clear()
            self[part] = read
        return read
