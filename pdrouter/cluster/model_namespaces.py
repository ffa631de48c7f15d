"""Which namespaces may serve which models."""

from dataclasses import dataclass

ANY = "*"


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
