"""The objects of an installation at one moment, from wherever they were read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from pdrouter.tools.doctor.findings import Defect
from pdrouter.tools.doctor.objects.base import KubeObject, ObjectRef
from pdrouter.tools.doctor.objects.fields import find_misspelt
from pdrouter.tools.doctor.objects.kinds import BY_GROUP_AND_NAME, ObjectKind
from pdrouter.tools.doctor.objects.known_kinds import find_oddity
from pdrouter.tools.doctor.quantities import decode_quantity

T = TypeVar("T", bound=KubeObject)

_EVERYWHERE = "*"


class Document(NamedTuple):
    """An object as it was read, not yet decoded.

    Attributes:
        content: its members.
        source: file and line where it begins; empty for objects of a cluster.
    """

    content: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of an installation.

    Attributes:
        objects: valid objects.
        invalid: what is wrong with objects that the API server would refuse.
        unknown: documents whose kind or apiVersion nobody knows.
        duplicates: objects that are there twice.
        misspelt: members that no object of the kind has, but that are almost fields.
        live: whether they come from a cluster, with their status and all pods.
        scopes: of a cluster: the namespaces in which all objects of a kind were read, `*` for all;
            a kind that is not installed or may not be read has none.
        unreachable: addresses of pods to which no connection could be made, with the reason.
        notes: what could not be looked at, for people.
    """

    objects: tuple[KubeObject, ...] = ()
    invalid: tuple[Defect, ...] = ()
    unknown: tuple[Defect, ...] = ()
    duplicates: tuple[Defect, ...] = ()
    misspelt: tuple[Defect, ...] = ()
    live: bool = False
    scopes: Mapping[type[KubeObject], frozenset[str]] = field(default_factory=dict)
    unreachable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _of: dict[type[KubeObject], tuple[KubeObject, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _named: dict[ObjectRef, KubeObject] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Note the objects by name: checks look for thousands of them."""
        self._named.update((thing.ref, thing) for thing in self.objects)

    def of(self, kind: type[T]) -> tuple[T, ...]:
        """Return the objects of a kind."""
        if kind not in self._of:
            self._of[kind] = tuple(thing for thing in self.objects if isinstance(thing, kind))
        return cast("tuple[T, ...]", self._of[kind])

    def find(self, ref: ObjectRef) -> KubeObject | None:
        """Return the object of a name; None if there is none."""
        return self._named.get(ref)

    def has_read(self, kind: type[KubeObject], namespace: str = _EVERYWHERE) -> bool:
        """Return whether nothing of a kind was withheld in a namespace, or in any."""
        if not self.live:
            return True
        scope = self.scopes.get(kind, frozenset())
        return _EVERYWHERE in scope or namespace in scope

    def expects(self, kind: type[KubeObject], namespace: str) -> bool:
        """Return whether an object that is not there is missing.

        Manifests may leave objects to others: only where they have some of a kind, a further one
        of that kind and namespace is expected to be among them.
        """
        if self.live:
            return self.has_read(kind, namespace)
        return any(thing.metadata.namespace == namespace for thing in self.of(kind))

    @classmethod
    def build(
        cls,
        documents: Iterable[Document],
        *,
        live: bool = False,
        scopes: Mapping[type[KubeObject], frozenset[str]] | None = None,
        notes: tuple[str, ...] = (),
    ) -> "Snapshot":
        """Return the snapshot of decoded documents.

        Of two documents for the same object the later one counts, as with `kubectl apply`.
        """
        objects: dict[ObjectRef, KubeObject] = {}
        invalid: dict[ObjectRef, Defect] = {}
        unknown: list[Defect] = []
        duplicates: list[Defect] = []
        misspelt: list[Defect] = []
        first: dict[tuple[str, ObjectRef], Document] = {}
        for document in documents:
            oddity = find_oddity(document.content)
            if oddity is not None:
                path, problem, fix = oddity
                ref = _name(document.content, namespaced=True)
                unknown.append(Defect(ref, path, problem + _locate(document), fix))
                continue
            kind = _find_kind(document.content)
            ref = _name(document.content, namespaced=kind is None or kind.namespaced)
            group = str(document.content.get("apiVersion")).rpartition("/")[0]
            twin = first.setdefault((group, ref), document)
            if twin is not document:
                duplicates.append(_describe_twins(ref, twin, document))
            if kind is None:
                continue
            if not live:
                # The API server has no object with such members.
                misspelt += _describe_misspelt(ref, document, kind)
            objects.pop(ref, None)
            invalid.pop(ref, None)
            try:
                objects[ref] = _read(document.content, kind)
            except msgspec.ValidationError as error:
                invalid[ref] = _describe_invalid(ref, error, document)
        return cls(
            tuple(objects.values()),
            tuple(invalid.values()),
            tuple(unknown),
            tuple(duplicates),
            tuple(misspelt),
            live,
            scopes or {},
            notes=notes,
        )


def _find_kind(document: Mapping[str, Any]) -> ObjectKind | None:
    group = str(document["apiVersion"]).rpartition("/")[0]
    return BY_GROUP_AND_NAME.get((group, str(document["kind"])))


def _name(document: Mapping[str, Any], *, namespaced: bool) -> ObjectRef:
    metadata = document.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    namespace = str(known.get("namespace") or "default") if namespaced else ""
    name = known.get("name") or known.get("generateName") or "?"
    return ObjectRef(str(document.get("kind") or "Object"), namespace, str(name))


def _read(document: Mapping[str, Any], kind: ObjectKind) -> KubeObject:
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


def _describe_invalid(ref: ObjectRef, error: msgspec.ValidationError, document: Document) -> Defect:
    problem, _, path = str(error).partition(" - at `$.")
    return Defect(
        ref,
        path.rstrip("`") or "the object",
        problem + _locate(document),
        "write the value as the kind's schema says",
    )


def _describe_misspelt(ref: ObjectRef, document: Document, kind: ObjectKind) -> Iterator[Defect]:
    for path, meant in find_misspelt(document.content, kind.type):
        problem = f"{kind.name} has no such field{_locate(document)}"
        yield Defect(ref, path, problem, f"did you mean {meant}?")


def _describe_twins(ref: ObjectRef, first: Document, second: Document) -> Defect:
    alike = "the same" if first.content == second.content else "another content"
    return Defect(
        ref,
        "metadata.name",
        f"it is there twice, the second time with {alike}{_locate(second)}"
        + (f"; the first is at {first.source}" if first.source else ""),
        "keep one of them, or give one another name or namespace",
    )


def _locate(document: Document) -> str:
    return f", at {document.source}" if document.source else ""
