"""How a setting is declared: once, with all that is known of it."""

from dataclasses import dataclass, field
from typing import TypeVar

from pdrouter.settings.kinds import BOOLEAN, ValueKind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What is known of one setting.

    Attributes:
        variable: environment variable.
        kind: how its text is read.
        doc: what it means.
        option: command line option of `pdrouter serve` that stands for it; empty for none.
        secret: whether its value must not be shown.
        advanced: whether it is for the few who have measured that they need it.
    """

    variable: str
    kind: ValueKind
    doc: str
    option: str = ""
    secret: bool = False
    advanced: bool = False

    @property
    def switch(self) -> bool:
        """Whether the option takes no value."""
        return self.kind is BOOLEAN


def declare(
    default: T,
    variable: str,
    kind: ValueKind,
    doc: str,
    option: str = "",
    *,
    secret: bool = False,
    advanced: bool = False,
) -> T:
    """Return a dataclass field for a setting, with what is known of it."""
    declaration = Declaration(variable, kind, doc, option, secret, advanced)
    value: T = field(default=default, repr=not secret, metadata={"declaration": declaration})
    return value
