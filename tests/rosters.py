"""Users for tests: everybody's key is one's name."""

from pathlib import Path
from typing import Any

from pdrouter.users.keys import digest_key
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.roster import Roster
from pdrouter.users.user import User


def keys_of(*users: User, **members: Any) -> KeysFile:
    """A file that has been read, with these users and these members besides."""
    keys = KeysFile(Path("users.yaml"))
    keys.roster = Roster(
        {user.name: user for user in users},
        {digest_key(user.name): user for user in users},
        **members,
    )
    return keys
