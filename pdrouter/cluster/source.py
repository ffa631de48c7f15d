"""Where pods come from, whatever that is."""

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from pdrouter.cluster.reflector_stats import ReflectorStats

ALL_NAMESPACES = "*"
"""Stands for all namespaces where namespaces are named."""


class SourceUnusable(Exception):
    """A source of pods cannot be used at all; the message says why."""


class RouteUnavailable(Exception):
    """A model's own route is missing, or is not in force; the message names it and the reason."""


class RouteCheck(Protocol):
    """Checks that Envoy has a route for a model."""

    async def check(self, model: str) -> None:
        """Check the route of a model.

        Raises:
            RouteUnavailable: there is none in force.
        """


class PodSource(Protocol):
    """Feeds a cache with pods. An async context manager: entering it opens the source.

    Entering raises `SourceUnusable`.
    """

    @property
    def stats(self) -> Mapping[str, ReflectorStats]:
        """What its watches have met, by name; nothing if it has none."""

    @property
    def routes(self) -> RouteCheck | None:
        """Checks the models' own routes; None if the source knows of none."""

    async def watch(self) -> None:
        """Feed the cache until cancelled."""

    async def __aenter__(self) -> object:
        """Open the source."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
