"""aibrix's user objects, read where its metadata service writes them."""

import logging

from pdrouter.users.aibrix import name_key, parse_user
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.redis.link import RedisLink, RedisUnavailable
from pdrouter.users.user import User

log = logging.getLogger(__name__)

MAX_OBJECT_BYTES = 64 * 1024
"""Of a user object; of a longer one the rest is not read, and it makes no sense."""


class RedisDirectory:
    """Knows the users in aibrix's Redis."""

    def __init__(self, link: RedisLink) -> None:
        """Begin.

        Args:
            link: the way to the server.
        """
        self._link = link

    async def find(self, name: str) -> User | None:
        """Return a user; None if there is none of this name.

        Raises:
            DirectoryUnavailable: it is not known whether there is.
        """
        try:
            value = await self._link.get(name_key(name), MAX_OBJECT_BYTES)
        except RedisUnavailable as unavailable:
            raise DirectoryUnavailable(str(unavailable)) from unavailable
        try:
            return parse_user(name, value) if value else None
        except DirectoryUnavailable as invalid:
            log.warning("a user cannot be read: %s", invalid)
            raise
