"""Who has a place now, where only so many requests may run at a time."""


class Places:
    """Keeps who holds a place, by the name of the limit. One for the whole process."""

    def __init__(self) -> None:
        self._holders: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def count(self, name: str) -> int:
        """Return how many hold a place."""
        return len(self._holders.get(name, ()))

    def has(self, name: str, holder: str) -> bool:
        """Return whether this one does."""
        return holder in self._holders.get(name, ())

    def hold(self, name: str, holder: str) -> None:
        """Give a place to one; further calls change nothing."""
        self._holders.setdefault(name, set()).add(holder)

    def free(self, name: str, holder: str) -> None:
        """Take a place back; further calls change nothing."""
        holders = self._holders.get(name)
        if holders is not None:
            holders.discard(holder)
            if not holders:
                del self._holders[name]
