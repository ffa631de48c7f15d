"""Bytes that stand in several places."""

import msgspec


class Pieces(msgspec.Struct, frozen=True):
    """An edited body, as pieces of the original and what comes between them: it takes no memory.

    Attributes:
        parts: what is to be written, one after the other.
        unchanged: whether this is the original, as it was.
    """

    parts: tuple[bytes | memoryview, ...]
    unchanged: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)
