"""Members of objects whose names are almost those of fields."""

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import msgspec

from pdrouter.nearest import find_nearest

_OTHERS = frozenset(
    {
        "creationTimestamp",
        "http1",
        "http3",
        "initContainers",
        "maxParallelRetries",
        "podIPs",
        "serviceAccount",
    }
)
"""Fields that the doctor has no use for, and whose names are like those of some that it reads."""


class Misspelt(NamedTuple):
    """A member that no object of its kind has.

    Attributes:
        path: where it stands.
        meant: the field that was probably meant.
    """

    path: str
    meant: str


def find_misspelt(value: Any, kind: type, path: str = "") -> Iterator[Misspelt]:  # noqa: ANN401 - any JSON value
    """Yield the members of a value that are almost fields of its type, as far as it is known."""
    if isinstance(value, list):
        for index, member in enumerate(value):
            yield from find_misspelt(member, kind, f"{path}[{index}]")
    if not isinstance(value, Mapping):
        return
    fields = _list_fields(kind)
    for name, member in value.items():
        place = f"{path}.{name}" if path else str(name)
        if name in fields:
            inner = fields[name]
            if inner is not None:
                yield from find_misspelt(member, inner, place)
        elif isinstance(name, str) and name not in _OTHERS:
            meant = find_nearest(name, [each for each in fields if each not in value])
            if meant is not None:
                yield Misspelt(place, meant)


@cache
def _list_fields(kind: type) -> Mapping[str, type | None]:
    """Return the fields of a type, each with the type of objects in it, if any are."""
    return {field.encode_name: _find_struct(field.type) for field in msgspec.structs.fields(kind)}


def _find_struct(annotation: Any) -> type | None:  # noqa: ANN401 - any annotation
    """Return the type of the objects that a field holds, alone or in a list; None if of none."""
    if get_origin(annotation) in (Union, UnionType, list, tuple):
        return next(filter(None, map(_find_struct, get_args(annotation))), None)
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return None
