"""Label selectors as Kubernetes writes them: `app=x,tier in (a, b),!canary`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_LENGTH = 4096
_MAX_REQUIREMENTS = 16
_NAME = r"[A-Za-z0-9._/-]+"
_VALUE = r"[A-Za-z0-9._-]*+"
_REQUIREMENT = re.compile(
    rf"""\s*(?:
        !\s*(?P<absent>{_NAME})
      | (?P<key>{_NAME})
        (?: \s*+(?P<operator>==?|!=)\s*+(?P<value>{_VALUE})
          | \s+(?P<set>in|notin)\s*\((?P<values>[A-Za-z0-9._,\s-]*)\)
        )?
    )\s*+(?:,|$)""",
    re.VERBOSE | re.ASCII,
)


class SelectorInvalid(ValueError):
    """The text is no label selector; the message says from where on."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is asked of one label.

    Attributes:
        key: name of the label.
        values: values of which it must have one; None where it only has to be there.
        negated: whether the opposite is asked.
    """

    key: str
    values: frozenset[str] | None
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels are as asked. A label that is absent has none of any values."""
        if self.values is None:
            return (self.key in labels) is not self.negated
        return (labels.get(self.key) in self.values) is not self.negated


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Requirements that labels must meet, all of them."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels are as asked."""
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_selector(text: str) -> LabelSelector:
    """Return the meaning of a selector; an empty one selects everything.

    Raises:
        SelectorInvalid: it is none, or is longer than anybody needs.
    """
    if len(text) > _MAX_LENGTH:
        raise SelectorInvalid(f"a label selector has at most {_MAX_LENGTH} characters")
    requirements: list[Requirement] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _REQUIREMENT.match(text, position, end)
        if found is None or (found.end() == end and text[end - 1] == ","):
            raise SelectorInvalid(f"not a label selector from {text[position:end][:50]!r} on")
        if len(requirements) == _MAX_REQUIREMENTS:
            raise SelectorInvalid(f"a label selector has at most {_MAX_REQUIREMENTS} requirements")
        requirements.append(_read(found))
        position = found.end()
    return LabelSelector(tuple(requirements))


def _read(found: re.Match[str]) -> Requirement:
    parts = found.groupdict()
    if parts["absent"] is not None:
        return Requirement(parts["absent"], None, negated=True)
    if parts["operator"] is not None:
        return Requirement(
            parts["key"], frozenset({parts["value"]}), negated=parts["operator"] == "!="
        )
    if parts["set"] is not None:
        values = frozenset(value.strip() for value in parts["values"].split(","))
        if any(len(value.split()) > 1 for value in values):
            raise SelectorInvalid(f"values are separated by commas: {parts['values'][:50]!r}")
        return Requirement(parts["key"], values, negated=parts["set"] == "notin")
    return Requirement(parts["key"], None, negated=False)
