"""The series of models that nobody serves any more: they are forgotten after a while."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock
from typing import Protocol, cast

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from pdrouter.cluster.view import PodCache

_KEPT_S = 3600.0
"""A model whose pods come back within that time goes on where its counters were."""


class Labelled(Protocol):
    """A metric with labels, as those of `prometheus_client` are."""

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Forget all series that have these labels.

        Raises:
            ValueError: it does not have labels of these names.
        """


class SeriesRegistry(CollectorRegistry):
    """A registry that can forget a model's series.

    Adapters may come and go for ever, each with a name of its own.
    """

    def __init__(self, cache: PodCache, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            cache: the pods, by whose models it is told which are served.
            clock: gives the time in seconds.
        """
        super().__init__()
        self._cache = cache
        self._clock = clock
        self._labelled: list[Labelled] = []
        self._seen: dict[str, float] = {}
        self._lock_of_seen = Lock()

    def register(self, collector: Collector) -> None:
        """Show what a collector has."""
        super().register(collector)
        if hasattr(collector, "remove_by_labels"):
            self._labelled.append(cast("Labelled", collector))

    def forget_models(self, counted: Iterable[str]) -> None:
        """Forget the series of models that have not been served for a while.

        Args:
            counted: the models that have series; they are looked at each time that these are shown.
        """
        for model in self._find_gone(counted):
            for metric in self._labelled:
                with suppress(ValueError):  # It has no such label.
                    metric.remove_by_labels({"model": model})

    def _find_gone(self, counted: Iterable[str]) -> list[str]:
        now = self._clock()
        # Several threads may show the series at the same time.
        with self._lock_of_seen:
            for model in filter(None, counted):
                self._seen.setdefault(model, now)
            self._seen.update(dict.fromkeys(self._cache.view.models, now))
            gone = [model for model, at in self._seen.items() if now - at >= _KEPT_S]
            for model in gone:
                del self._seen[model]
        return gone
