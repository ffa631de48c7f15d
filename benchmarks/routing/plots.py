"""Draws findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.routing.comparison import Comparison
from benchmarks.routing.contenders import AIBRIX, COMPARED, OURS, OURS_APART
from benchmarks.routing.experiment import Finding

_HIGHLIGHTED = {OURS: "#d01010", OURS_APART: "#f09090", AIBRIX: "#1030c0"}
_OTHERS = ("#909090", "#c0a060", "#50a050", "#60a0e0", "#a070c0", "#404040")


def draw_cluster(path: Path, title: str, comparisons: Sequence[Comparison]) -> None:
    """Draw one cluster: for each workload, the share in time and the tail, at rising load.

    Args:
        path: the PNG file to write.
        title: what stands above it.
        comparisons: the cluster's.
    """
    figure = Figure(figsize=(3.6 * len(comparisons), 5.6), layout="constrained")
    grid = figure.subplots(2, len(comparisons), squeeze=False)
    for column, comparison in enumerate(comparisons):
        chosen = [found for found in comparison.findings if found.run.seed == comparison.first_seed]
        _draw_share(grid[0][column], chosen)
        _draw_tail(grid[1][column], chosen)
        grid[0][column].set_title(comparison.scenario.workload, fontsize=10)
    grid[0][0].set_ylabel("share within TTFT target")
    grid[1][0].set_ylabel("TTFT p99, s")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=11)
    # Without the version of matplotlib in it, the file changes only with what it shows.
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _draw_share(axes: Axes, findings: Sequence[Finding]) -> None:
    axes.set_prop_cycle(color=_OTHERS)
    for contender, chosen in _by_contender(findings).items():
        points = [(found.run.load, found.summary.within_ttft) for found in chosen]
        axes.plot(*zip(*points, strict=True), label=contender, **_style(contender))
    axes.axhline(0.9, color="#808080", linewidth=0.6, linestyle=":")
    axes.set_ylim(0.0, 1.02)
    axes.tick_params(labelsize=8)


def _draw_tail(axes: Axes, findings: Sequence[Finding]) -> None:
    axes.set_prop_cycle(color=_OTHERS)
    for contender, chosen in _by_contender(findings).items():
        points = [(found.run.load, found.summary.ttft_p99_s) for found in chosen]
        axes.plot(*zip(*points, strict=True), label=contender, **_style(contender))
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("load", fontsize=8)
    axes.tick_params(labelsize=8)


def _by_contender(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    return {
        name: chosen
        for name in COMPARED
        if (chosen := [finding for finding in findings if finding.run.contender == name])
    }


def _style(contender: str) -> dict[str, Any]:
    color = _HIGHLIGHTED.get(contender)
    if color is None:
        return {"linewidth": 0.9, "alpha": 0.7}
    return {"linewidth": 2.2, "color": color, "zorder": 5}
