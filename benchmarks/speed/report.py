"""Writes results for readers: targets first, then ratios, then everything."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.speed import requests
from benchmarks.speed.plots import draw_requests
from benchmarks.speed.results import Key, Results, Spread
from benchmarks.speed.targets import judge
from benchmarks.speed.variants import BEFORE, FLOOR

_INTRODUCTION = """\
# What the router costs

Made by `{command}` on {machine}, Python {python}. Load generator, Envoy, engines
and router share these cores: requests per second and latencies are comparative; CPU (from the
kernel's accounts) is the sturdier figure, and ratios between variants measured in turns are the
sturdiest. Figures are medians of {rounds} rounds; the least and the greatest stand behind them.

* **{floor}**: Envoy without ext_proc.
* **{before}**: the router as of commit {commit}, with the packages that it pinned then: grpc.aio
  carried its streams, and aiohttp its prefill legs.
* **pdrouter**: `pdrouter serve` with default policies, metrics and log lines.
"""


def write_report(folder: Path, artefacts: Path, results: Results) -> None:
    """Write the report, and beside it what `make bench-compare` reads.

    Args:
        folder: gets `speed.md` and, for the requests, `speed-requests.png`.
        artefacts: gets `speed.json`.
        results: what was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    artefacts.mkdir(parents=True, exist_ok=True)
    results.write(artefacts / "speed.json")
    if requests.NAME in results.scenarios():
        draw_requests(folder / "speed-requests.png", results)
    (folder / "speed.md").write_text("\n".join(_lines(results)) + "\n")


def _lines(results: Results) -> Iterator[str]:
    about = results.about
    yield _INTRODUCTION.format(
        command=about["command"],
        machine=about["machine"],
        python=about["python"],
        rounds=about["rounds"],
        floor=FLOOR,
        before=BEFORE,
        commit=about["before"],
    )
    yield from _list_targets(results)
    if requests.NAME in results.scenarios():
        yield "## Requests as multiples of the earlier router\n"
        yield "![CPU and latency at rising concurrency and body size](speed-requests.png)\n"
        yield from _list_ratios(results)
    for scenario in results.scenarios():
        yield f"## All figures: {scenario}\n"
        yield from _list_figures(results, scenario)


def _list_targets(results: Results) -> Iterator[str]:
    yield "## Targets\n"
    yield "| target | found | |"
    yield "|---|---|---|"
    for verdict in judge(results):
        yield f"| {verdict.target} | {verdict.found} | {'met' if verdict.met else '**missed**'} |"
    yield ""


def _list_ratios(results: Results) -> Iterator[str]:
    scenario = requests.NAME
    yield "| case | variant | CPU | CPU of Envoy | p50 | requests/s |"
    yield "|---|---|---|---|---|---|"
    for case in results.cases(scenario):
        for variant in results.variants(scenario):
            if variant in (FLOOR, BEFORE):
                continue
            cells = [
                results.ratio(scenario, case, figure, variant, BEFORE)
                for figure in ("server_cpu_us", "envoy_cpu_us", "p50_us", "requests_per_s")
            ]
            yield f"| {case} | {variant} | {' | '.join(map(_format, cells))} |"
    yield ""


def _list_figures(results: Results, scenario: str) -> Iterator[str]:
    figures = list(dict.fromkeys(key.figure for key in results.samples if key.scenario == scenario))
    yield f"| case | variant | {' | '.join(name.replace('_', ' ') for name in figures)} |"
    yield "|---" * (len(figures) + 2) + "|"
    for case in results.cases(scenario):
        for variant in results.variants(scenario):
            found = [results.samples.get(Key(scenario, case, variant, name)) for name in figures]
            if any(found):
                yield f"| {case} | {variant} | {' | '.join(map(_format_samples, found))} |"
    yield ""


def _format_samples(samples: Sequence[float] | None) -> str:
    return _format(Spread.of(samples) if samples else None)


def _format(spread: Spread | None) -> str:
    if spread is None:
        return ""
    if spread.low == spread.high:
        return _round(spread.median)
    return f"{_round(spread.median)} ({_round(spread.low)} … {_round(spread.high)})"


def _round(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
