"""A user, and what one may ask for."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

import msgspec
from msgspec.structs import astuple


class Limits(msgspec.Struct, frozen=True):
    """How much passes. None for any amount, 0 for nothing.

    Attributes:
        requests_per_minute: requests that begin within a minute.
        tokens_per_minute: tokens of prompts and answers within a minute.
        concurrent_requests: requests at a time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    def complete(self, others: "Limits") -> "Limits":
        """Return these, with others in place of what these do not limit."""
        return Limits(
            *(
                theirs if own is None else own
                for own, theirs in zip(astuple(self), astuple(others), strict=True)
            )
        )


UNLIMITED = Limits()
_NO_MODELS: Mapping[str, Limits] = MappingProxyType({})


class User(msgspec.Struct, frozen=True):
    """Who asks, and what for.

    Attributes:
        name: name in limits, metrics and logs.
        models: names of models that may be asked for, in which `*` stands for any text; None for
            all.
        limits: how much of all models together.
        model_limits: how much of each model, by the names of these.
    """

    name: str
    models: tuple[str, ...] | None = None
    limits: Limits = UNLIMITED
    model_limits: Mapping[str, Limits] = _NO_MODELS

    def may_use(self, model: str) -> bool:
        """Return whether a model may be asked for by this name."""
        return self.models is None or any(_matches(model, each) for each in self.models)


def _matches(model: str, pattern: str) -> bool:
    if "[" in pattern or "?" in pattern:
        # To fnmatch, these stand for others, too.
        pattern = pattern.replace("[", "[[]").replace("?", "[?]")
    return fnmatchcase(model, pattern)
