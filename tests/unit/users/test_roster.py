"""The file of users: what may stand in it, and what is said where something else does."""

import json
from contextlib import suppress
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.users.keys import digest_key
from pdrouter.users.roster import EMPTY, Roster, RosterInvalid, parse_roster
from pdrouter.users.user import UNLIMITED, Limits, User

ANN, BOB = digest_key("key-of-ann"), digest_key("key-of-bob")
FULL = f"""
default_limits: {{requests_per_minute: 600, concurrent_requests: 16}}
model_limits:
  llama31-8b: {{requests_per_minute: 10_000}}
  "*": {{concurrent_requests: 500}}
users:
- name: ann
  keys: ["{ANN}"]
  models: [llama31-8b, "demo-*"]
  limits:
    requests_per_minute: 60
    tokens_per_minute: 100000
  model_limits:
    demo-x: {{tokens_per_minute: 1000}}
- name: bob
  keys: {BOB}
  limits: {{requests_per_minute: unlimited}}
- name: eve
  limits: null
- name: joe
"""


def test_all_that_may_stand_in_a_file() -> None:
    roster = parse_roster(FULL)
    assert roster.default_limits == Limits(600, None, 16)
    assert roster.model_limits == {
        "llama31-8b": Limits(10_000),
        "*": Limits(concurrent_requests=500),
    }
    ann, bob, eve, joe = roster.users.values()
    assert ann == User(
        "ann",
        ("llama31-8b", "demo-*"),
        Limits(60, 100_000, 16),
        {"demo-x": Limits(tokens_per_minute=1000)},
    )
    assert bob.limits == Limits(None, None, 16)
    assert eve.limits == UNLIMITED
    assert joe.limits == roster.default_limits
    assert roster.by_digest == {ANN: ann, BOB: bob}


def test_a_bare_list_of_users_will_do_and_json_is_yaml() -> None:
    users = [{"name": "ann", "keys": [ANN, BOB]}]
    roster = parse_roster(json.dumps(users))
    assert [*roster.by_digest] == [ANN, BOB]
    assert parse_roster(json.dumps({"users": users})) == roster
    assert parse_roster("") == EMPTY
    assert parse_roster("users:\n") == EMPTY


def test_users_of_elsewhere_have_the_default_limits_where_they_have_none() -> None:
    roster = parse_roster(FULL)
    assert roster.name_user("bob") is roster.users["bob"]
    assert roster.name_user("new") == User("new", limits=Limits(600, None, 16))
    assert roster.complete(User("x", limits=Limits(5, 50))).limits == Limits(5, 50, 16)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("users: 3", "line 1: users must be a list"),
        ("- ann", "line 1: a user must be written as keys (name, keys"),
        ("- keys: []", "line 1: a user lacks the key 'name'"),
        ("- name: ann\n- name: ann", "line 2: there are two users 'ann'"),
        ("- name: ''", "line 1: the name of a user is empty"),
        (f"- name: {'x' * 129}", "at most 128 printable characters"),
        ('- name: "a\\nb"', "at most 128 printable characters"),
        ("- nam: ann", "unknown key 'nam' of a user: did you mean 'name'?"),
        ("- name: ann\n  limits: {rpm: 5}", "line 2: unknown key 'rpm' of limits of user 'ann'"),
        (
            "- name: ann\n  limits: {requests_per_minute: -1}",
            "must be a whole number from 0 to 1_000_000_000_000, or unlimited",
        ),
        ("- name: ann\n  limits: {requests_per_minute: 1.5}", "must be a whole number"),
        (f"- name: ann\n  limits: {{requests_per_minute: 1{'0' * 99}}}", "must be a whole number"),
        (f"- name: ann\n  limits: {{requests_per_minute: {'0' * 30}1{'0' * 13}}}", "whole number"),
        (f"- name: ann\n  limits: {{requests_per_minute: {'9' * 5000}}}", "must be a whole number"),
        (
            f"- name: ann\n  keys: {ANN}\n- name: bob\n  keys: {ANN}",
            "have the same key",
        ),
        ("model_limits: [1]", "model_limits must be limits by the names of models"),
        ("model_limits: {m: {}, m: {}}", "model 'm' occurs twice"),
        ("- name: [ann", "not valid YAML, near line"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, told: str) -> None:
    with pytest.raises(RosterInvalid) as caught:
        parse_roster(text)
    assert told in str(caught.value)


SECRET = "sk-pdr-plain-and-secret-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        "- name: ann\n  keys: [SECRET]",
        "- name: ann\n  keys: SECRET",
        "- name: ann\n  keys: {SECRET: 1}",
        "- name: ann\n  keys: [[SECRET]]",
        "- name: ann\n  key: SECRET",
        "- name: ann\n  SECRET: 1",
        "- SECRET",
        "SECRET",
        "users: SECRET",
        "- name: ann\n  limits: {requests_per_minute: SECRET}",
        "- name: ann\n  limits: SECRET",
        "- name: ann\n  keys: [SECRET",
        '- name: ann\n  keys: "SECRET\n',
        "- name: ann\n  keys: !SECRET x",
        "- name: ann\n  keys: *SECRET",
        "- name: ann\n SECRET",
        "SECRET: [1\nusers: 3",
    ],
)
def test_a_key_that_stands_in_the_file_is_refused_and_never_shown(text: str) -> None:
    with pytest.raises(RosterInvalid) as caught:
        parse_roster(text.replace("SECRET", SECRET))
    assert SECRET not in str(caught.value)


@given(st.text())
def test_any_text_is_a_file_or_is_refused(text: str) -> None:
    with suppress(RosterInvalid):
        assert isinstance(parse_roster(text), Roster)


def test_a_number_may_begin_with_any_number_of_zeros() -> None:
    roster = parse_roster(f"default_limits: {{requests_per_minute: {'0' * 5000}7}}")
    assert roster.default_limits.requests_per_minute == 7


def test_deep_and_circular_texts_are_refused() -> None:
    for text in ("[" * 5000, "&a [*a]", dedent("&a {name: x, keys: [*a]}")):
        with pytest.raises(RosterInvalid):
            parse_roster(text)
