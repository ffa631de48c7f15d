"""Draws results."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.speed import requests
from benchmarks.speed.requests import CONCURRENCIES, SIZES, Case
from benchmarks.speed.results import Results
from benchmarks.speed.variants import BEFORE, FLOOR, ROUTER

_COLORS = {FLOOR: "#909090", BEFORE: "#1030c0", ROUTER: "#d01010"}


def draw_requests(path: Path, results: Results) -> None:
    """Draw CPU and latency at rising concurrency, and CPU at rising size of bodies.

    Args:
        path: the PNG file to write.
        results: with the scenario `requests`.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    cpu, latency, sizes = figure.subplots(1, 3)
    _draw(
        cpu, results, "server_cpu_us", CONCURRENCIES, [case.concurrency for case in CONCURRENCIES]
    )
    _draw(latency, results, "p50_us", CONCURRENCIES, [case.concurrency for case in CONCURRENCIES])
    _draw(sizes, results, "server_cpu_us", SIZES, [case.kilobytes for case in SIZES])
    for axes, title, label in (
        (cpu, "CPU of the server per request, µs", "concurrency"),
        (latency, "p50 through Envoy, µs", "concurrency"),
        (sizes, "CPU of the server per request, µs", "KB of body"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(label, fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.tick_params(labelsize=8)
    handles, labels = latency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    # Without the version of matplotlib in it, the file changes only with what it shows.
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _draw(
    axes: Axes, results: Results, figure: str, cases: Sequence[Case], places: Sequence[int]
) -> None:
    for variant in results.variants(requests.NAME):
        spreads = [results.spread(requests.NAME, str(case), variant, figure) for case in cases]
        points = [(x, found) for x, found in zip(places, spreads, strict=True) if found]
        if not points:
            continue
        color = _COLORS.get(variant)
        x = [place for place, _ in points]
        axes.plot(x, [found.median for _, found in points], "o-", label=variant, color=color, ms=3)
        axes.fill_between(
            x,
            [found.low for _, found in points],
            [found.high for _, found in points],
            color=color,
            alpha=0.15,
        )
