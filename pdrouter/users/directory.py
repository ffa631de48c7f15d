"""Where users are looked up by their names: the contract of what keeps them elsewhere."""

from typing import Protocol

from pdrouter.users.user import User


class DirectoryUnavailable(Exception):
    """Where users are kept cannot be reached, or does not answer in time, or makes no sense."""


class Directory(Protocol):
    """Knows users by name."""

    async def find(self, name: str) -> User | None:
        """Return a user; None if there is none of this name.

        Raises:
            DirectoryUnavailable: it is not known whether there is.
        """
