"""What the doctor has to say: checks, and what they find."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdrouter.doctor.installation import Installation


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Requests fail, go astray, or anybody can steer them."""
    WARNING = "warning"
    """Long, large or many requests suffer, or something has no effect."""


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


@dataclass(frozen=True, slots=True)
class Fault:
    """What a check has found in one place.

    Attributes:
        object: where it is.
        field: path of the field in the object; after the kind of another object where that is
            missing.
        problem: what is wrong there.
        fix: what to change.
    """

    object: ObjectRef
    field: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class Check:
    """Looks for one misconfiguration.

    Attributes:
        code: name of the finding; scripts may rely on it.
        severity: how bad it is.
        meaning: what is found, in a line.
        why: why it hurts.
        find: yields each place where it is so.
    """

    code: str
    severity: Severity
    meaning: str
    why: str
    find: "Callable[[Installation], Iterable[Fault]]"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, with what the check knows of its kind."""

    check: Check
    fault: Fault
