"""Header values as HTTP means them: lists with empty members, in any case, said more than once."""

from collections.abc import Mapping

_NO = frozenset({"0", "false", "no", "off"})
_IDENTITY = "identity"


def list_members(value: str) -> list[str]:
    """Return the members of a list, without the empty ones."""
    return [member for part in value.split(",") if (member := part.strip())]


def read_one(value: str) -> str:
    """Return what a header says that should say one thing, if it says the same thing each time.

    If it does not, that is what it says.
    """
    if "," not in value:
        return value.strip()
    members = dict.fromkeys(list_members(value))
    return ", ".join(members)


def read_strategy(value: str) -> str:
    """Return the name of a strategy, or a list of algorithms as it is written.

    A name that is said twice is one. Members of a list that are empty are mistakes there.
    """
    if "," not in value:
        return value.strip().lower().replace("_", "-")
    names = {member.strip().lower().replace("_", "-") for member in value.split(",")}
    return value.strip() if len(names) > 1 else names.pop()


def is_asked(headers: Mapping[str, str], name: str) -> bool:
    """Return whether a client asks for what a header of this name asks for by being there."""
    return name in headers and headers[name].strip().lower() not in _NO


def is_encoded(value: str) -> bool:
    """Return whether a `content-encoding` says that a body is not as it is."""
    return bool(value) and any(member.lower() != _IDENTITY for member in list_members(value))


KEY_HEADERS = ("authorization", "x-api-key", "api-key")
"""Headers in which clients present keys."""


def list_keys(headers: Mapping[str, str]) -> list[str]:
    """Return the keys that a client presents, as OpenAI's, Anthropic's or Azure's clients do."""
    keys = [
        key for name in ("x-api-key", "api-key") for key in _list_readings(headers.get(name, ""))
    ]
    for value in _list_readings(headers.get("authorization", "")):
        scheme, *rest = value.split(None, 1)
        if scheme.lower() == "bearer":
            keys += rest
    return keys


def _list_readings(value: str) -> dict[str, None]:
    """Return a value as it is, where a comma is part of it, and as what is said twice."""
    return dict.fromkeys(reading for reading in (value.strip(), read_one(value)) if reading)
