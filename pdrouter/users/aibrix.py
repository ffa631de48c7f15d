"""Users as aibrix's metadata service keeps them in Redis."""

import msgspec

from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.user import Limits, User

_PREFIX = "aibrix-users/"
_DEFAULT_RPM = 100
_TOKENS_PER_REQUEST = 1000


class _UserObject(msgspec.Struct):
    name: str = ""
    rpm: int = 0
    tpm: int = 0


def name_key(user: str) -> str:
    """Return the key that has a user."""
    return f"{_PREFIX}{user}"


def parse_user(name: str, value: bytes | str) -> User:
    """Return a user as aibrix means the object.

    No limit that is written means 100 requests a minute, and 1,000 tokens for each of the requests;
    one below nothing lets nothing pass. The name is the one that was asked for, whatever the object
    says: aibrix counts by the object's, and so together whoever has none.

    Args:
        name: the user's name.
        value: what the key has.

    Raises:
        DirectoryUnavailable: that is no user object.
    """
    try:
        written = msgspec.json.decode(value, type=_UserObject)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        message = f"{name_key(name)} is no user object: {error}"
        raise DirectoryUnavailable(message) from error
    requests = max(0, written.rpm or _DEFAULT_RPM)
    tokens = max(0, written.tpm or requests * _TOKENS_PER_REQUEST)
    return User(name, limits=Limits(requests, tokens))
