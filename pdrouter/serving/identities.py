"""Who asks, by what a request's headers present."""

import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.header_values import list_keys, read_one
from pdrouter.openai.headers import USER
from pdrouter.serving.refusals import refuse_limits_unknown
from pdrouter.users.directory import Directory, DirectoryUnavailable
from pdrouter.users.keys import digest_key
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.roster import LONGEST_NAME
from pdrouter.users.user import User

_NO_KEY = "no API key was presented: send it as authorization: Bearer, x-api-key or api-key"
_WRONG_KEY = "Incorrect API key provided"


class Identity(msgspec.Struct, frozen=True):
    """Who asks.

    Attributes:
        user: the user; None for nobody in particular.
        by_key: whether that is by a key of one's own, which is no engine's business.
    """

    user: User | None = None
    by_key: bool = False


NOBODY = Identity()


@dataclass(frozen=True, slots=True)
class Identities:
    """Finds out who asks. One for the whole process.

    Attributes:
        keys: users by their keys.
        shared_key: a key that lets in whoever has it; None for none.
        trusts_header: whether the header `user` names who asks.
        directory: knows the users whom the header names; None where those of the file, and others
            with its default limits, are all there are.
        admits_unknown: whether users count as others with the default limits while the directory
            does not answer.
        failures: users who could not be found for that, among what else could not be counted.
    """

    keys: KeysFile
    shared_key: str | None = None
    trusts_header: bool = False
    directory: Directory | None = None
    admits_unknown: bool = True
    failures: Counter[str] = field(default_factory=Counter)

    async def identify(self, headers: Mapping[str, str]) -> Identity:
        """Return who asks.

        Raises:
            RequestRejected: whoever it is may not ask.
        """
        if self.keys.given or self.shared_key is not None:
            presented = list_keys(headers)
            by_digest = self.keys.roster.by_digest
            for key in presented if by_digest else ():
                user = by_digest.get(digest_key(key))
                if user is not None:
                    return Identity(user, by_key=True)
            self._check_shared(presented)
        name = _read_name(headers) if self.trusts_header else ""
        return Identity(await self._find(name)) if name else NOBODY

    def _check_shared(self, presented: Sequence[str]) -> None:
        """Check the key of a request that has none of a user's.

        Raises:
            RequestRejected: it needs one.
        """
        shared = self.shared_key
        if shared is None:
            if self.keys.given and not self.trusts_header:
                raise _refuse_key(presented)
        elif not any(hmac.compare_digest(key.encode(), shared.encode()) for key in presented):
            raise _refuse_key(presented)

    async def _find(self, name: str) -> User:
        """Return the user whom a header names.

        Raises:
            RequestRejected: there is none of this name, or nobody knows.
        """
        roster = self.keys.roster
        if self.directory is None or name in roster.users:
            return roster.name_user(name)
        try:
            user = await self.directory.find(name)
        except DirectoryUnavailable as error:
            self.failures["find"] += 1
            if self.admits_unknown:
                return roster.name_user(name)
            raise refuse_limits_unknown() from error
        if user is None:
            raise RequestRejected(401, "unknown_user", f"there is no user {name!r}", USER)
        return roster.complete(user)


def _refuse_key(presented: Sequence[str]) -> RequestRejected:
    message = _WRONG_KEY if presented else _NO_KEY
    return RequestRejected(401, "invalid_api_key", message, "api_key")


def _read_name(headers: Mapping[str, str]) -> str:
    """Return the name of the user that a request's headers claim; empty for none.

    Raises:
        RequestRejected: it is none that could be a user's.
    """
    name = read_one(headers.get(USER, ""))
    if len(name) > LONGEST_NAME or not name.isprintable():
        message = f"a user's name has at most {LONGEST_NAME} printable characters"
        raise RequestRejected(400, "invalid_user", message, USER)
    return name
