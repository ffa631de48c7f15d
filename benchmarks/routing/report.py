"""Writes findings down: a table for the terminal, and a Markdown page with plots."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing.aims import list_aims
from benchmarks.routing.cluster.presets import HARDWARE, SHAPES
from benchmarks.routing.cluster.results import Summary, Targets
from benchmarks.routing.comparison import Comparison, Spread
from benchmarks.routing.contenders import AIBRIX, COMPARED, LEAST_REQUEST, OURS, OURS_APART
from benchmarks.routing.experiment import SHARE, Finding, Source
from benchmarks.routing.plots import draw_cluster

_INTRODUCTION = """\
# Choosing pods: ways compared in a simulator

Made by `make bench-routing`, which leaves the numbers at all loads, and a plot of each cluster, in
`benchmarks/runs/`. A discrete-event model of prefill and decode engines
(`benchmarks/routing/cluster/`) runs request traces; the pods are chosen by the very code that
routes live requests. Engines are modelled, not measured: take comparisons from this page, not
seconds. What the model assumes, and where each number comes from, stands in
`benchmarks/routing/cluster/presets.py`.

* **load**: request rate, as a share of what the prefill pods could serve with nothing cached. It is
  changed by compressing time; no request is dropped.
* **target for the first token (TTFT)**: {ttft:g} s, and {factor:g} times what the request's own
  prompt takes on an idle pod with nothing cached. **Target between tokens**: {gap:g} ms in the
  request's mean. *Goodput* is the share of requests within both.
* **held load**: the load at which {share:.0%} of requests are within the target for the first
  token; in brackets the lowest and the highest of several seeds, where there are some.
* **between tokens**: p99 of the requests' means, and p99 of all single gaps: a step that takes a
  prompt along is a long gap for all who decode there.
* **whole**: share of requests that a decode pod has served without a prefill pod. **hit**: share of
  prompt tokens found cached where they were computed. **wasted**: share computed although a prefill
  pod had them. **balance**: busiest pod's time to the mean, prefill/decode.
* **floor**: the p99 of TTFT with an idle pod for every request and an endless cache: no choice of
  pods can be better.
* Requests: the {half} of each trace. Defaults were tuned on the other half. The timestamps of
  the conversation trace, which are rounded to 3 s, are spread evenly at random. The Azure traces
  say nothing of shared prefixes: they show load and lengths only. `short-and-long` is made up: one
  prompt in twenty has 30,000 to 65,000 tokens, the others some hundreds.
* Decode pods cache prompts and answers in the memory that they do not need, and compute prompts
  in chunks along with their steps, as vLLM does.
* All contenders see engine metrics every second and know of what they have sent at once; several
  routers get requests in turn. {least_request} adds what others have sent, as the metrics show it.
  The index of prefixes is the same, but only mooncake and {ours} let it forget as fast as the
  engines' caches do, the others after 20 minutes, as aibrix's does. The two of aibrix are its
  formulas and thresholds as this router has them, with the defects mended that
  `docs/migrate-from-aibrix.md` lists. {apart} is {ours} with `PDROUTER_AGGREGATE=never`.
"""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a benchmark found.

    Attributes:
        source: where the workloads came from.
        targets: what counts as served well.
        comparisons: one for each scenario.
    """

    source: Source
    targets: Targets
    comparisons: Sequence[Comparison]

    def write(self, folder: Path, artefacts: Path) -> None:
        """Write the report into folders.

        Args:
            folder: gets `routing.md`, and `routing.png` of the first cluster.
            artefacts: gets a PNG for each cluster.
        """
        folder.mkdir(parents=True, exist_ok=True)
        artefacts.mkdir(parents=True, exist_ok=True)
        (folder / "routing.md").write_text("\n".join(self._lines(folder, artefacts)) + "\n")

    def _lines(self, folder: Path, artefacts: Path) -> Iterator[str]:
        half = {"first": "first half", "second": "second half", "both": "whole"}[self.source.half]
        yield _INTRODUCTION.format(
            ttft=self.targets.ttft_s,
            factor=self.targets.ttft_factor,
            gap=self.targets.inter_token_s * 1000.0,
            share=SHARE,
            half=half,
            ours=OURS,
            apart=OURS_APART,
            least_request=LEAST_REQUEST,
        )
        yield from _list_versions(self.comparisons)
        yield from list_aims(self.comparisons)
        yield from _list_key_figures(self.comparisons)
        yield from _list_several_routers(self.comparisons)
        clusters: dict[tuple[str, str], list[Comparison]] = {}
        for comparison in self.comparisons:
            scenario = comparison.scenario
            clusters.setdefault((scenario.hardware, scenario.shape), []).append(comparison)
        for number, ((hardware, shape), compared) in enumerate(clusters.items()):
            name = f"routing-{hardware}-{shape}.png".replace("+", "-").lower()
            title = f"{shape}, {HARDWARE[hardware].name}"
            draw_cluster(artefacts / name, title, compared)
            yield f"## {title}\n"
            if number == 0:
                draw_cluster(folder / "routing.png", title, compared)
                yield "![Share in time and TTFT p99 at rising load](routing.png)\n"
            for comparison in compared:
                yield from _list_standings(comparison)


def format_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of a table of findings, with headings for each scenario and load."""
    heading = None
    for finding in sorted(findings, key=_find_place):
        run, summary = finding.run, finding.summary
        scenario = run.scenario
        if (scenario, run.load) != heading:
            heading = (scenario, run.load)
            yield (
                f"\n{scenario.workload}, {scenario.hardware}, {scenario.shape}, "
                f"load {run.load:.2f} ({finding.rate:.2f} requests/s)\n"
                f"{'':24}    TTFT p50     p90     p99  ITL p99  in TTFT  goodput    hit  wasted"
                "  whole  balance"
            )
        name = f"{run.contender}/{run.seed}"
        yield (
            f"{name:24} {summary.ttft_p50_s:9.2f} s {summary.ttft_p90_s:7.2f} "
            f"{summary.ttft_p99_s:7.2f} {summary.inter_token_p99_s * 1000:5.0f} ms "
            f"{summary.within_ttft:8.1%} {summary.goodput:8.1%} {summary.hit_rate:6.1%} "
            f"{summary.wasted:7.1%} {summary.whole:6.1%} "
            f"{summary.prefill_balance:5.2f}/{summary.decode_balance:.2f}"
        )


def _find_place(finding: Finding) -> tuple[str, str, str, float, int, int]:
    run = finding.run
    shown = COMPARED.index(run.contender) if run.contender in COMPARED else len(COMPARED)
    scenario = run.scenario
    return scenario.hardware, scenario.shape, scenario.workload, run.load, shown, run.seed


def _list_versions(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield which versions of the code the findings are of."""
    for kind, chosen in (("Those of this router", True), ("The others", False)):
        counts = Counter(
            finding.code or "unknown"
            for comparison in comparisons
            for finding in comparison.findings
            if (finding.run.contender in {OURS, OURS_APART}) is chosen
        )
        if counts:
            listed = ", ".join(f"`{code}` ({count})" for code, count in counts.most_common())
            yield f"{kind} were simulated with the code of these commits: {listed}."
    yield ""


def _list_key_figures(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "## Key figures\n"
    yield (
        f"*Farthest below* is where {OURS}'s share in time is lowest beside that of the best of "
        "random, power-of-two and least-request, in points, at loads from 0.3 (negative: it is "
        f"never below). *Gap* compares the p99 between tokens to that of {OURS_APART}, at that of "
        f"the loads that {OURS} holds where it is greatest.\n"
    )
    yield (
        f"| hardware | cluster | workload | load held by {AIBRIX} | by {LEAST_REQUEST} "
        f"| by {OURS} | to {AIBRIX} | TTFT p99 at that load, {AIBRIX} | {OURS} | floor "
        "| farthest below | gap |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for comparison in comparisons:
        scenario, load = comparison.scenario, comparison.equal_load
        tails = [
            None if load is None else comparison.measure(name, load, _get_tail)
            for name in (AIBRIX, OURS)
        ]
        worst, gap = comparison.find_worst(), comparison.find_greatest_gap_ratio()
        below = "-" if worst is None else f"{worst.points:.1f} at {worst.load:g} ({worst.rival})"
        yield (
            f"| {scenario.hardware} | {scenario.shape} | {scenario.workload} "
            f"| {comparison.describe_held(AIBRIX)} | {comparison.describe_held(LEAST_REQUEST)} "
            f"| {comparison.describe_held(OURS)} "
            f"| **{_format_ratio(comparison.held_ratio)}** "
            f"| {_format(tails[0], ' s')} | {_format(tails[1], ' s')} "
            f"| {comparison.floor_p99_s:.2f} s | {below} "
            f"| {'-' if gap is None else f'{gap[0]:.2f} at {gap[1]:g}'} |"
        )
    yield ""


def _list_several_routers(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the loads that are held by several routers, beside those by one."""
    alike: dict[Hashable, dict[int, Comparison]] = {}
    for comparison in comparisons:
        scenario = comparison.scenario
        shape = SHAPES[scenario.shape]
        key = scenario.hardware, shape.prefill, shape.decode, scenario.workload
        alike.setdefault(key, {})[shape.replicas] = comparison
    several = [by for by in alike.values() if len(by) > 1 and 1 in by]
    if not several:
        return
    yield "## Several routers\n"
    yield (
        f"Load held by {OURS} with so many routers, in brackets beside that with one; and by "
        f"{LEAST_REQUEST}.\n"
    )
    counts = sorted({count for by in several for count in by})
    yield f"| hardware | pods | workload | contender | {' | '.join(map(str, counts))} |"
    yield "|---|---|---|---|" + "---|" * len(counts)
    for by in several:
        scenario = by[1].scenario
        for contender in (OURS, LEAST_REQUEST, AIBRIX):
            one = by[1].find_held(contender)
            cells = []
            for count in counts:
                held = by[count].find_held(contender) if count in by else None
                cell = by[count].describe_held(contender) if count in by else "-"
                if held is not None:
                    cell = f"{held.mean:.2f}"
                if held is not None and one is not None and count > 1:
                    cell += f" ({100 * (held.mean / one.mean - 1):+.0f}%)"
                cells.append(cell)
            yield (
                f"| {scenario.hardware} | {scenario.shape} | {scenario.workload} | {contender} "
                f"| {' | '.join(cells)} |"
            )
    yield ""


def _list_standings(comparison: Comparison) -> Iterator[str]:
    """Yield the contenders at the load that aibrix's default holds, or at the highest tried."""
    yield f"### {comparison.scenario.workload}\n"
    load = comparison.equal_load
    if load is None:
        load = comparison.loads[-1]
        yield f"The load that {AIBRIX} holds is not among those tried. At load {load:.2f}:\n"
    else:
        (first, *_) = comparison.find_at(AIBRIX, load) or comparison.findings
        yield f"At load {load:.2f} ({first.rate:.2f} requests/s), held by {AIBRIX}:\n"
    yield (
        "| contender | held load | TTFT p50 | p90 | p99 | between tokens, p99 of means "
        "| of gaps | within TTFT | goodput | hit | wasted | whole | balance |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for contender in COMPARED:
        found = comparison.find_at(contender, load)
        if found:
            held = comparison.describe_held(contender)
            yield f"| {contender} | {held} | {_format_row(found)} |"
    yield ""


def _format_row(findings: Sequence[Finding]) -> str:
    """Return the figures of a contender: of the first seed, but with the spread of the tail."""
    summary = findings[0].summary
    tail = Spread.of(finding.summary.ttft_p99_s for finding in findings)
    return (
        f"{summary.ttft_p50_s:.2f} s | {summary.ttft_p90_s:.2f} s | {_format(tail, ' s')} "
        f"| {summary.inter_token_p99_s * 1000.0:.0f} ms "
        f"| {summary.token_gap_p99_s * 1000.0:.0f} ms "
        f"| {summary.within_ttft:.1%} | {summary.goodput:.1%} | {summary.hit_rate:.1%} "
        f"| {summary.wasted:.1%} | {summary.whole:.1%} "
        f"| {summary.prefill_balance:.2f}/{summary.decode_balance:.2f}"
    )


def _get_tail(summary: Summary) -> float:
    return summary.ttft_p99_s


def _format(spread: Spread | None, unit: str = "") -> str:
    return "-" if spread is None else spread.describe(unit)


def _format_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
