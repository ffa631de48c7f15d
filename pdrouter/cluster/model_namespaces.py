"""Which namespaces may serve which models."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

ANY = "*"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?|\*")


@dataclass(frozen=True, slots=True)
class ModelNamespaces:
    """What the operator says about it.

    Attributes:
        rules: names of models, in which `*` stands for any text, with their namespaces. The first
            that fits a model decides; a model that none fits is anybody's.
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def allow(self, namespace: str, model: str) -> bool:
        """Return whether a namespace may serve a model or an adapter of that name."""
        for pattern, namespaces in self.rules:
            if _fits(pattern, model):
                return namespace in namespaces or ANY in namespaces
        return True


ANY_NAMESPACE = ModelNamespaces()
"""Lets every namespace serve every model."""


def parse_model_namespaces(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Read `MODEL=NAMESPACE,NAMESPACE;MODEL=NAMESPACE`.

    Raises:
        ValueError: it is not such a text, or names a model twice.
    """
    rules: dict[str, tuple[str, ...]] = {}
    for part in _split(text, ";"):
        model, equals, listed = part.rpartition("=")
        model, namespaces = model.strip(), tuple(_split(listed, ","))
        if not (equals and model and namespaces) or model in rules:
            raise ValueError(text)
        if not all(map(_NAMESPACE.fullmatch, namespaces)):
            raise ValueError(text)
        rules[model] = namespaces
    if not rules:
        raise ValueError(text)
    return tuple(rules.items())


def _split(text: str, separator: str) -> Iterable[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _fits(pattern: str, model: str) -> bool:
    """Return whether a name fits a pattern, without going back and forth in it."""
    first, *middle = pattern.split(ANY)
    if not middle:
        return pattern == model
    *middle, last = middle
    if not model.startswith(first) or len(model) < len(first) + len(last):
        return False
    end = len(model) - len(last)
    position = len(first)
    for part in middle:
        position = model.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return model.endswith(last)
