"""The metrics page, which is written beside the event loop."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import Metric

from pdrouter.telemetry.page import render_page


def make_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    requests = Counter("requests", "Requests that have ended.", ("model",), registry=registry)
    for model in ("m", 'a "quoted" one'):
        requests.labels(model).inc(3)
    Gauge("pods", "Pods, and\nwhat else there is.", registry=registry).set(0.5)
    return registry


def test_the_page_is_the_librarys() -> None:
    registry = make_registry()
    assert render_page(registry.collect()) == generate_latest(registry)
    assert render_page(()) == b""


def test_there_is_a_pause_after_some_work_thrice_as_long_as_that() -> None:
    families = [Gauge(f"pods_{number}", "Pods.", registry=None) for number in range(4)]
    computed = [0.0]
    costs = iter((0.0005, 0.004, 0.0005, 0.0))
    pauses: list[float] = []

    def look() -> float:
        return computed[0]

    def list_families() -> Iterator[Metric]:
        for family in families:
            yield from family.collect()
            computed[0] += next(costs)  # What comes before the next one, and its writing.

    page = render_page(list_families(), look, pauses.append)
    assert page.count(b"# HELP") == 4
    assert pauses == pytest.approx([3 * 0.0045])
