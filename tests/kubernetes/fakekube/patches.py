"""The patch formats of the API: merge, strategic merge, and JSON patch."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from .failures import ApiError
from .objects import Json

_MERGE_KEYS = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
"""Lists that a strategic merge joins item by item, and the member that tells items apart."""


def merge_patch(current: Any, patch: Any) -> Any:
    """Apply an RFC 7386 merge patch; the result shares no container with the current value."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(current) if isinstance(current, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def strategic_merge_patch(current: Any, patch: Any) -> Any:
    """Apply a strategic merge patch, as built-in kinds take it.

    An approximation: lists are joined by the keys of `_MERGE_KEYS` wherever they stand, all other
    lists are replaced; the order of joined lists is that of the current list.
    """
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {name: value for name, value in patch.items() if name != "$patch"}
    merged = dict(current) if isinstance(current, dict) else {}
    if retained := patch.get("$retainKeys"):
        merged = {name: value for name, value in merged.items() if name in retained}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            _, _, list_name = name.partition("/")
            merged[list_name] = [item for item in merged.get(list_name, []) if item not in value]
        elif name.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            merged.pop(name, None)
        elif key := _merge_key(name, value):
            merged[name] = _merge_list(merged.get(name) or [], value, key)
        else:
            merged[name] = strategic_merge_patch(merged.get(name), value)
    return merged


def json_patch(current: Any, operations: Any) -> Any:
    """Apply an RFC 6902 patch to a value that may be changed; gives the result.

    Raises:
        ApiError: 422 if an operation cannot be done, 400 if there is no such operation.
    """
    document = {"": current}
    for operation in operations:
        try:
            _apply_operation(document, operation)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise ApiError(
                422, f"the server rejected our request due to an error in our request: {error}"
            ) from error
    return document[""]


def _merge_key(name: str, value: Any) -> str | None:
    """The member by which this list is joined, or None if it is replaced as a whole."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    items = [item for item in value if item.keys() != {"$patch"}]
    for key in _MERGE_KEYS.get(name, ()):
        if all(key in item for item in items):
            return key
    return None


def _merge_list(current: list[Json], patch: list[Json], key: str) -> list[Json]:
    if {"$patch": "replace"} in patch:
        return [item for item in patch if "$patch" not in item]
    merged = {item.get(key): item for item in current}
    for item in patch:
        if item.get("$patch") == "delete":
            merged.pop(item[key], None)
        else:
            merged[item[key]] = strategic_merge_patch(merged.get(item[key]), item)
    return list(merged.values())


def _apply_operation(document: Json, operation: Json) -> None:
    name = operation["op"]
    apply = _OPERATIONS.get(name)
    if apply is None:
        raise ApiError.bad_request(f"unknown JSON patch operation: {name!r}")
    apply(document, operation)


def _add(document: Json, operation: Json) -> None:
    _put(document, operation["path"], operation["value"])


def _remove(document: Json, operation: Json) -> None:
    _take(document, operation["path"])


def _replace(document: Json, operation: Json) -> None:
    _take(document, operation["path"])
    _put(document, operation["path"], operation["value"])


def _move(document: Json, operation: Json) -> None:
    _put(document, operation["path"], _take(document, operation["from"]))


def _copy(document: Json, operation: Json) -> None:
    original = _look_up(document, operation["from"])
    _put(document, operation["path"], msgspec.json.decode(msgspec.json.encode(original)))


def _test(document: Json, operation: Json) -> None:
    path = operation["path"]
    if _look_up(document, path) != operation["value"]:
        raise ValueError(f"testing value {path} failed")


_OPERATIONS: dict[str, Callable[[Json, Json], None]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def _steps(pointer: str) -> Iterator[str]:
    """The names of a JSON pointer; the first, empty, is the document itself."""
    for step in pointer.split("/"):
        yield step.replace("~1", "/").replace("~0", "~")


def _parent(document: Any, pointer: str) -> tuple[Any, str]:
    *parents, last = _steps(pointer)
    for step in parents:
        document = document[int(step)] if isinstance(document, list) else document[step]
    return document, last


def _look_up(document: Any, pointer: str) -> Any:
    parent, last = _parent(document, pointer)
    return parent[int(last)] if isinstance(parent, list) else parent[last]


def _take(document: Any, pointer: str) -> Any:
    parent, last = _parent(document, pointer)
    return parent.pop(int(last)) if isinstance(parent, list) else parent.pop(last)


def _put(document: Any, pointer: str, value: Any) -> None:
    parent, last = _parent(document, pointer)
    if not isinstance(parent, list):
        parent[last] = value
    elif last == "-":
        parent.append(value)
    else:
        index = int(last)
        if not 0 <= index <= len(parent):
            raise IndexError(f"no index {index} at {pointer}")
        parent.insert(index, value)
