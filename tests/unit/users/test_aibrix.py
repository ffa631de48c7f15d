"""Users as aibrix keeps them: the same limits, whatever the object leaves out."""

import pytest

from pdrouter.users.aibrix import name_key, parse_user
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.user import Limits, User


@pytest.mark.parametrize(
    ("value", "requests", "tokens"),
    [
        ('{"name": "ann", "rpm": 10, "tpm": 5000}', 10, 5000),
        ('{"name": "ann", "rpm": 0, "tpm": 0}', 100, 100_000),
        ('{"name": "ann"}', 100, 100_000),
        ('{"name": "ann", "rpm": 7}', 7, 7000),
        ('{"name": "ann", "tpm": 9}', 100, 9),
        ('{"rpm": -1, "tpm": -1}', 0, 0),
        ('{"name": "bob", "rpm": 3, "tpm": 2, "more": [1]}', 3, 2),
    ],
)
def test_limits_are_those_of_aibrix(value: str, requests: int, tokens: int) -> None:
    user = parse_user("ann", value)
    assert user == User("ann", limits=Limits(requests, tokens))


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"rpm": "many"}', b'{"rpm": 1.5}', b"\xff"])
def test_what_is_no_user_object_is_said_to_be_none(value: bytes) -> None:
    with pytest.raises(DirectoryUnavailable, match="aibrix-users/ann"):
        parse_user("ann", value)


def test_the_key_is_that_of_aibrix() -> None:
    assert name_key("ann") == "aibrix-users/ann"


def test_models_are_asked_for_by_name_or_pattern() -> None:
    user = User("ann", models=("llama31-8b", "demo-*"))
    assert [user.may_use(name) for name in ("llama31-8b", "demo-x", "Demo-x", "llama31-8b2")] == [
        True,
        True,
        False,
        False,
    ]
    # Nothing but `*` stands for anything else.
    odd = User("joe", models=("m[12]", "q?-*"))
    assert [odd.may_use(name) for name in ("m[12]", "q?-7b", "m1", "q2-7b")] == [True] * 2 + [
        False
    ] * 2
    assert User("bob").may_use("anything")
    assert not User("eve", models=()).may_use("anything")
