"""What controllers say of objects in their status."""

from collections.abc import Iterator

import msgspec

from pdrouter.tools.doctor.objects.base import KubeObject


class StatusCondition(msgspec.Struct, frozen=True, rename="camel"):
    """A condition: one thing that a controller says of an object."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int | None = None


class Reference(msgspec.Struct, frozen=True, rename="camel"):
    """The object for which something is said; empty if it is said of the object as a whole."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    section_name: str = ""

    def __str__(self) -> str:
        namespace = f"{self.namespace}/" if self.namespace else ""
        section = f" {self.section_name}" if self.section_name else ""
        return f"{self.kind or 'Gateway'} {namespace}{self.name}{section}"


class Parent(msgspec.Struct, frozen=True, rename="camel"):
    """What is said of a route for one of its parents."""

    parent_ref: Reference = Reference()
    conditions: list[StatusCondition] = []


class Ancestor(msgspec.Struct, frozen=True, rename="camel"):
    """What is said of a policy for one of the objects that it bears on."""

    ancestor_ref: Reference = Reference()
    conditions: list[StatusCondition] = []


class ListenerStatus(msgspec.Struct, frozen=True):
    """What is said of one listener of a Gateway."""

    name: str = ""
    conditions: list[StatusCondition] = []


class Status(msgspec.Struct, frozen=True):
    """`status` of an object of the Gateway API or of Envoy Gateway."""

    conditions: list[StatusCondition] = []
    listeners: list[ListenerStatus] = []
    parents: list[Parent] = []
    ancestors: list[Ancestor] = []


class Controlled(KubeObject, frozen=True):
    """An object in whose status its controller says what it made of it."""

    status: Status = Status()

    @property
    def said(self) -> Iterator[tuple[str, str, StatusCondition]]:
        """All conditions: the path of each in the object, and for what it is said."""
        status = self.status
        groups = [("status", "", status.conditions)]
        for index, listener in enumerate(status.listeners):
            path = f"status.listeners[{index}]"
            groups.append((path, f"listener {listener.name}", listener.conditions))
        for index, parent in enumerate(status.parents):
            path = f"status.parents[{index}]"
            groups.append((path, str(parent.parent_ref), parent.conditions))
        for index, ancestor in enumerate(status.ancestors):
            path = f"status.ancestors[{index}]"
            groups.append((path, str(ancestor.ancestor_ref), ancestor.conditions))
        for path, subject, conditions in groups:
            for condition in conditions:
                yield f"{path}.conditions[{condition.type}]", subject, condition
