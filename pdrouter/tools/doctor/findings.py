"""What the doctor has to say: checks, and what they find."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pdrouter.tools.doctor.objects.base import ObjectRef

Subject = TypeVar("Subject")
"""What checks look at: an installation, or the engines of an endpoints file."""


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Requests fail, go astray, or anybody can steer them."""
    WARNING = "warning"
    """Long, large or many requests suffer, or something has no effect."""


@dataclass(frozen=True, slots=True)
class Defect:
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
class Check(Generic[Subject]):
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
    find: Callable[[Subject], Iterable[Defect]]


@dataclass(frozen=True, slots=True)
class Finding:
    """Faults that read alike, with what the check knows of their kind.

    Attributes:
        check: what has found them.
        defects: one for each object; there is at least one.
    """

    check: Check[Any]
    defects: tuple[Defect, ...]

    @property
    def defect(self) -> Defect:
        """The first of them."""
        return self.defects[0]
