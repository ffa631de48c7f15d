"""Numbers and truth values, read as engines do; pydantic, which engines use, is the judge."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pdrouter.openai.coercion import UNREADABLE, as_boolean, as_integer, decode_scalar

_INTEGER = TypeAdapter(int)
_BOOLEAN = TypeAdapter(bool)


def judge(adapter: TypeAdapter[Any], value: object) -> Any:
    """What an engine makes of a value; None if it refuses it."""
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None


_NUMBER_TEXTS = st.from_regex(r"\A\s?[+-]?[0-9_]{0,4}(\.[0-9_]{0,3})?(e[0-9])?\s?\Z")
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.integers(-(2**70), 2**70).map(float),
    st.integers().map(str),
    _NUMBER_TEXTS,
    st.sampled_from(["true", "True", "YES", "y", "on", "Off", "n", "f", "0", "1", " true", ""]),
    st.text(max_size=6),
)


@settings(max_examples=500, deadline=None)
@given(_SCALARS)
@example(100.0)
@example(6000.5)
@example("100")
@example("1_0.0")
@example("1__0")
@example("0__0")
@example("+0_1")
@example("-0__1")
@example("0_")
@example("1.0_0")
@example(2.0**63)
@example(-(2.0**63))
@example(float("inf"))
@example("1\x1f")
@example("\u00a01")
@example("٣")
@example("1\u2028")
@example("-0")
@example("")
def test_values_are_read_as_pydantic_reads_them(value: Any) -> None:
    assert as_integer(value) == judge(_INTEGER, value)
    assert as_boolean(value) == judge(_BOOLEAN, value)


@pytest.mark.parametrize("value", [None, [], [1], {}, {"a": 1}, UNREADABLE])
def test_what_is_no_scalar_stands_for_nothing(value: object) -> None:
    assert as_integer(value) is None
    assert as_boolean(value) is None


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("1", 1),
        ("1e2", 100.0),
        ('"\\u0031"', "1"),
        ("true", True),
        ("9" * 4300, int("9" * 4300)),
        ("9" * 4301, UNREADABLE),
        ("9" * 9000, UNREADABLE),
        ('"' + "1" * 9000 + '"', UNREADABLE),
        ("1e400", UNREADABLE),
        ('"\\ud800"', UNREADABLE),
        ("18446744073709551617", 2**64 + 1),
        ("[1]", UNREADABLE),
        ("{}", UNREADABLE),
    ],
)
def test_only_scalars_of_a_sane_size_are_decoded(raw: str, value: object) -> None:
    assert decode_scalar(raw.encode()) == value


def test_lists_and_objects_are_not_walked() -> None:
    hostile = json.dumps([[]] * 1000).encode()
    assert decode_scalar(hostile) is UNREADABLE
