"""API keys: made once, shown once, and kept as nothing but their digests."""

import hashlib
import re
import secrets

PREFIX = "sk-pdr-"
"""What the keys begin with that are made here: scanners for secrets know such words."""

SHORTEST = 20
"""Characters of the shortest key that may be hashed: the digest of one that can be guessed is as
good as the key."""

_ALGORITHM = "sha256:"
_RANDOM_BYTES = 32
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ALMOST = re.compile(r"[0-9a-fA-F]{64}")


class DigestInvalid(ValueError):
    """A text is not the digest of a key; the message does not show it, since it may be a key."""


def create_key() -> str:
    """Return a new key, of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_key(key: str) -> str:
    """Return what a file has of a key.

    A key of so many random bits needs no salt and no slow hash: nobody can try them.
    """
    return _ALGORITHM + hashlib.sha256(key.encode()).hexdigest()


def check_digest(text: str) -> str:
    """Return the digest that a file has of a key.

    Raises:
        DigestInvalid: it is none, with what to write instead.
    """
    if _DIGEST.fullmatch(text):
        return text
    if _DIGEST.fullmatch(text.lower()):
        return text.lower()
    if _ALMOST.fullmatch(text):
        raise DigestInvalid("it is a digest without its algorithm: put sha256: before it")
    raise DigestInvalid(
        "it is not the digest of a key (sha256: and 64 hexadecimal digits). If it is a key itself, "
        "whoever reads this file has it: write what `pdrouter key --hash` prints of it"
    )
