"""The objects of an installation at one moment, from wherever they were read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from pdrouter.doctor.findings import ObjectRef
from pdrouter.doctor.objects.base import KubeObject
from pdrouter.doctor.objects.kinds import BY_GROUP_AND_NAME, Kind
from pdrouter.doctor.quantities import decode_quantity

T = TypeVar("T", bound=KubeObject)


@dataclass(frozen=True, slots=True)
class InvalidObject:
    """An object that the API server would refuse.

    Attributes:
        ref: the object.
        problem: what is wrong, and where.
    """

    ref: ObjectRef
    problem: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of an installation.

    Attributes:
        objects: valid objects.
        invalid: the others.
        live: whether they come from a cluster, with their status and all pods.
        unread: kinds that could not be read: that one is not there means nothing.
        unreachable: addresses of pods to which no connection could be made, with the reason.
        notes: what could not be looked at, for people.
    """

    objects: tuple[KubeObject, ...] = ()
    invalid: tuple[InvalidObject, ...] = ()
    live: bool = False
    unread: frozenset[type[KubeObject]] = frozenset()
    unreachable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, kind: type[T]) -> tuple[T, ...]:
        """Return the objects of a kind."""
        return tuple(thing for thing in self.objects if isinstance(thing, kind))

    @classmethod
    def build(
        cls,
        documents: Iterable[Mapping[str, Any]],
        *,
        live: bool = False,
        unread: frozenset[type[KubeObject]] = frozenset(),
        notes: tuple[str, ...] = (),
    ) -> "Snapshot":
        """Return the snapshot of decoded documents.

        Kinds that the doctor does not know are left out. Of two documents for the same object the
        later one counts, as with `kubectl apply`.
        """
        objects: dict[ObjectRef, KubeObject] = {}
        invalid: dict[ObjectRef, InvalidObject] = {}
        for document in documents:
            kind = _find_kind(document)
            if kind is None:
                continue
            ref = _name(document, kind)
            objects.pop(ref, None)
            invalid.pop(ref, None)
            try:
                objects[ref] = _read(document, kind)
            except msgspec.ValidationError as error:
                invalid[ref] = InvalidObject(ref, str(error))
        return cls(
            tuple(objects.values()),
            tuple(invalid.values()),
            live,
            unread,
            notes=notes,
        )


def _find_kind(document: Mapping[str, Any]) -> Kind | None:
    version = document.get("apiVersion")
    group = version.rpartition("/")[0] if isinstance(version, str) else None
    name = document.get("kind")
    if group is None or not isinstance(name, str):
        return None
    return BY_GROUP_AND_NAME.get((group, name))


def _name(document: Mapping[str, Any], kind: Kind) -> ObjectRef:
    metadata = document.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    namespace = str(known.get("namespace") or "default") if kind.namespaced else ""
    return ObjectRef(kind.name, namespace, str(known.get("name")))


def _read(document: Mapping[str, Any], kind: Kind) -> KubeObject:
    """Decode an object.

    Raises:
        msgspec.ValidationError: a member has another type than it must have.
    """
    members = _drop_nulls(document)
    if isinstance(members.get("metadata"), dict) and kind.namespaced:
        members["metadata"].setdefault("namespace", "default")
    return msgspec.convert(members, kind.type, dec_hook=decode_quantity)


def _drop_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Copy a value without its nulls: to the API server, a null is a member that is not there."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(member) for key, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_drop_nulls(member) for member in value]
    return value
