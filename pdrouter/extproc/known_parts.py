"""Parts of messages that come again and again: each is told by its bytes, and read once."""

from collections.abc import Callable
from typing import Final, TypeVar

MOST: Final = 512
LARGEST: Final = 256
"""Bytes of the largest part that is kept; together they are 128 KiB at the most."""

T = TypeVar("T")


class KnownParts(dict[bytes, T]):
    """What parts of a kind say, by their bytes. To ask for one that is not known reads it."""

    __slots__ = ("_may_keep", "_read")

    def __init__(
        self, read: Callable[[bytes], T], may_keep: Callable[[T], bool] = lambda _: True
    ) -> None:
        """Begin without any.

        Args:
            read: reads a part. All who ask for it get the same object.
            may_keep: tells of what was read whether it may be kept.
        """
        super().__init__()
        self._read = read
        self._may_keep = may_keep

    def __missing__(self, part: bytes) -> T:
        read = self._read(part)
        if len(part) <= LARGEST and self._may_keep(read):
            if len(self) >= MOST:
                self.clear()
            self[part] = read
        return read
