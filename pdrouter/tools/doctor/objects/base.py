"""What all Kubernetes objects have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pdrouter.cluster.kubernetes.objects import ObjectMeta


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """Names a Kubernetes object."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else self.bare

    @property
    def bare(self) -> str:
        """Kind and name, as for objects without a namespace."""
        return f"{self.kind} {self.name}"


class Owner(msgspec.Struct, frozen=True):
    """An entry of `metadata.ownerReferences`."""

    kind: str = ""


class Metadata(ObjectMeta, frozen=True, rename="camel"):
    """`metadata` of any object, with its owners and the number of its last change."""

    generation: int = 0
    owner_references: tuple[Owner, ...] = ()


class KubeObject(msgspec.Struct, frozen=True):
    """Any object; `kind` is filled in where a list leaves it out."""

    kind: str
    metadata: Metadata

    @property
    def ref(self) -> ObjectRef:
        """Its name, for people."""
        return ObjectRef(self.kind, self.metadata.namespace, self.metadata.name)


class MatchExpression(msgspec.Struct, frozen=True):
    """An entry of `matchExpressions`."""

    key: str
    operator: str
    values: list[str] = []

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels meet the requirement."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


class Selector(msgspec.Struct, frozen=True, rename="camel"):
    """A label selector; an empty one selects everything."""

    match_labels: dict[str, str] = {}
    match_expressions: list[MatchExpression] = []

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether it selects what has these labels."""
        return self.match_labels.items() <= labels.items() and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )
