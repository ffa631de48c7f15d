"""Label and field selectors, as list and watch requests carry them."""

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from .failures import ApiError

Predicate: TypeAlias = Callable[[Mapping[str, str]], bool]
"""Whether an object with these labels, or with these selectable fields, is wanted."""

SELECTABLE_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "status.phase",
    "status.podIP",
)
"""Fields that a field selector may name; the last three are fields of pods only."""

_COMMA = re.compile(r",(?![^()]*\))")
_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"^(?P<absent>!)?\s*(?P<key>[^\s!=,()]+)$")


def parse_label_selector(text: str) -> Predicate:
    """Compile a label selector: `a=b,c!=d,e in (f, g),h notin (i),j,!k`; empty selects all.

    Raises:
        ApiError: 400 if it cannot be parsed.
    """
    return _all_of([_label_requirement(term.strip()) for term in _split(text)])


def parse_field_selector(
    text: str, allowed: frozenset[str] = frozenset(SELECTABLE_FIELDS)
) -> Predicate:
    """Compile a field selector: `metadata.name=a,status.phase!=Failed`; empty selects all.

    Raises:
        ApiError: 400 if it cannot be parsed or names a field that cannot be selected by.
    """
    return _all_of([_field_requirement(term.strip(), allowed) for term in _split(text)])


def _split(text: str) -> list[str]:
    return _COMMA.split(text) if text.strip() else []


def _all_of(requirements: list[Predicate]) -> Predicate:
    return lambda values: all(requirement(values) for requirement in requirements)


def _label_requirement(term: str) -> Predicate:
    if found := _SET.match(term):
        key = found["key"]
        wanted = frozenset(value.strip() for value in found["values"].split(","))
        if found["op"] == "in":
            return lambda labels: labels.get(key) in wanted
        return lambda labels: labels.get(key) not in wanted
    if found := _EQUALITY.match(term):
        return _equality(found)
    if found := _EXISTS.match(term):
        key, absent = found["key"], found["absent"] is not None
        return lambda labels: (key in labels) != absent
    raise ApiError.bad_request(f"unable to parse requirement: found '{term}'")


def _field_requirement(term: str, allowed: frozenset[str]) -> Predicate:
    found = _EQUALITY.match(term)
    if found is None:
        raise ApiError.bad_request(f"invalid field selector: {term!r}")
    if found["key"] not in allowed:
        raise ApiError.bad_request(f'field label not supported: "{found["key"]}"')
    return _equality(found, missing="")


def _equality(found: re.Match[str], missing: str | None = None) -> Predicate:
    """Whether a value is (not) what a term says; an absent label differs from every value."""
    key, value = found["key"], found["value"]
    if found["op"] == "!=":
        return lambda values: values.get(key, missing) != value
    return lambda values: values.get(key, missing) == value
