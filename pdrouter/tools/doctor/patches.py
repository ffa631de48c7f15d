"""What EnvoyPatchPolicies put into Envoy's configuration: clusters, routes, ext_proc filters."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import Patch, PatchPolicy
from pdrouter.tools.doctor.quantities import Seconds

_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")
_EXT_PROC_TYPE = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"


@dataclass(frozen=True, slots=True)
class Patched:
    """A message that a patch adds.

    Attributes:
        policy: the EnvoyPatchPolicy.
        type: type of the resource that is patched.
        field: where the message stands in the policy.
        content: its members, named as in protobuf (`snake_case`).
    """

    policy: ObjectRef
    type: str
    field: str
    content: dict[str, Any]

    def text(self, *path: str) -> str:
        """Return a string in it; nothing if it is not there."""
        value = dig(self.content, *path)
        return value if isinstance(value, str) else ""

    def seconds(self, *path: str) -> Seconds | None:
        """Return a duration in it; None if it is not there, or is none."""
        try:
            return Seconds.parse(self.text(*path))
        except ValueError:
            return None


def dig(value: Any, *path: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return what stands at a path of objects; None if nothing does."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def find_clusters(policy: PatchPolicy) -> Iterator[Patched]:
    """Yield the clusters that a policy adds."""
    for message in _messages(policy):
        if message.type.endswith(".Cluster") and "name" in message.content:
            yield message


def find_routes(policy: PatchPolicy) -> Iterator[Patched]:
    """Yield the routes to clusters that a policy adds."""
    for message in _messages(policy):
        for nested in _nested(message):
            if isinstance(nested.content.get("match"), dict) and "route" in nested.content:
                yield nested


def find_ext_procs(policy: PatchPolicy) -> Iterator[Patched]:
    """Yield the ext_proc filters that a policy adds."""
    for message in _messages(policy):
        for nested in _nested(message):
            if nested.text("@type").endswith(_EXT_PROC_TYPE):
                yield nested


def find_values(policy: PatchPolicy, name: str) -> Iterator[tuple[str, str, Any]]:
    """Yield what a policy sets members of a name to.

    Yields:
        Where the value stands in the policy, where the member is, and the value.
    """
    for index, patch in enumerate(policy.spec.json_patches):
        operation = patch.operation
        last = _unescape(operation.path.rpartition("/")[2])
        if operation.op in {"add", "replace"} and last == name:
            field = f"spec.jsonPatches[{index}].operation.value"
            yield field, f"{operation.json_path}{operation.path}", operation.value
    for message in _messages(policy):
        for nested in _nested(message):
            if name in nested.content:
                yield f"{nested.field}.{name}", nested.field, nested.content[name]


def _messages(policy: PatchPolicy) -> Iterator[Patched]:
    """Yield what a policy adds; what it then patches in that is a part of it."""
    added: list[tuple[Patch, str, Any]] = []
    for index, patch in enumerate(policy.spec.json_patches):
        operation = patch.operation
        if operation.op not in {"add", "replace"}:
            continue
        value = name_as_protobuf(operation.value)
        for earlier, _, content in reversed(added):
            if _is_within(patch, earlier):
                rest = operation.path[len(earlier.operation.path) + 1 :]
                _insert(content, [_unescape(each) for each in rest.split("/")], value)
                break
        else:
            added.append((patch, f"spec.jsonPatches[{index}].operation.value", value))
    for patch, field, value in added:
        yield from _unfold(policy.ref, patch.type, field, value)


def _is_within(patch: Patch, earlier: Patch) -> bool:
    """Return whether a patch changes what an earlier one has added."""
    parent = earlier.operation.path
    return (
        (patch.type, patch.name) == (earlier.type, earlier.name)
        and bool(parent)
        and patch.operation.path.startswith(f"{parent}/")
    )


def _insert(content: Any, names: list[str], value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Put a value into a message, with the objects on the way to it, as Envoy Gateway does."""
    *parents, last = names
    for name in parents:
        if isinstance(content, list):
            content = content[int(name)] if _is_index(name, content) else None
        elif isinstance(content, dict):
            content = content.setdefault(name, {})
    if isinstance(content, dict):
        content[last] = value
    elif isinstance(content, list) and _is_index(last, content):
        content[int(last)] = value


def _is_index(name: str, values: list[Any]) -> bool:
    return name.isdecimal() and int(name) < len(values)


def _unescape(name: str) -> str:
    """Return a name as it stands in a JSON pointer, without its escapes."""
    return _HUMP.sub(_lower_hump, name.replace("~1", "/").replace("~0", "~"))


def _unfold(policy: ObjectRef, kind: str, field: str, value: Any) -> Iterator[Patched]:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        yield Patched(policy, kind, field, value)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _unfold(policy, kind, f"{field}[{index}]", member)


def _nested(message: Patched) -> Iterator[Patched]:
    yield message
    for name, member in message.content.items():
        field = f"{message.field}.{name}"
        for inner in _unfold(message.policy, message.type, field, member):
            yield from _nested(inner)


def name_as_protobuf(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return a message with its members in `snake_case`; JSON may have them either way.

    Names of filters, which are keys too, have no capital letters.
    """
    if isinstance(value, dict):
        return {
            _HUMP.sub(_lower_hump, str(name)): name_as_protobuf(member)
            for name, member in value.items()
        }
    if isinstance(value, list):
        return [name_as_protobuf(member) for member in value]
    return value


def _lower_hump(hump: re.Match[str]) -> str:
    return "_" + hump.group().lower()
