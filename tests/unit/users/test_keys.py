"""Keys: random, and kept as digests alone."""

import hashlib

import pytest

from pdrouter.users.keys import (
    PREFIX,
    SHORTEST,
    DigestInvalid,
    check_digest,
    create_key,
    digest_key,
)


def test_keys_are_new_each_time_and_long_enough_to_be_hashed() -> None:
    keys = {create_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(PREFIX) and len(key) >= SHORTEST + 20 for key in keys)


def test_a_digest_is_what_anybody_can_compute() -> None:
    expected = hashlib.sha256(b"sk-example").hexdigest()
    assert digest_key("sk-example") == f"sha256:{expected}"
    assert check_digest(digest_key("sk-example")) == digest_key("sk-example")
    assert check_digest("SHA256:" + expected.upper()) == digest_key("sk-example")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sk-pdr-secret-secret-secret", "pdrouter key --hash"),
        ("", "pdrouter key --hash"),
        ("sha256:abc", "pdrouter key --hash"),
        ("ab" * 32, "put sha256: before it"),
    ],
)
def test_what_is_no_digest_is_refused_and_not_shown(text: str, told: str) -> None:
    with pytest.raises(DigestInvalid) as caught:
        check_digest(text)
    assert told in str(caught.value)
    assert not text or text not in str(caught.value)
