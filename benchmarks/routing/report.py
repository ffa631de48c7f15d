"""Writes findings down: a table for the terminal, a Markdown page and JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.routing.cluster.presets import HARDWARE
from benchmarks.routing.cluster.results import Targets
from benchmarks.routing.comparison import SHARE, Comparison
from benchmarks.routing.contenders import AIBRIX, OURS
from benchmarks.routing.experiment import Finding, Source
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
  token.
* **hit**: share of prompt tokens found cached. **wasted**: share computed although another prefill
  pod had them. **balance**: busiest pod's time to the mean, prefill/decode.
* **floor**: the p99 of TTFT with an idle pod for every request and an endless cache: no choice of
  pods can be better.
* Requests: the {half} of each trace. Defaults were tuned on the other half. The timestamps of
  the conversation trace, which are rounded to 3 s, are spread evenly at random. The Azure traces
  say nothing of shared prefixes: they show load and lengths only.
* All contenders see engine metrics every second and know of what they have sent at once. The index
  of prefixes is the same, but only mooncake and {ours} let it forget as fast as the engines'
  caches do, the others after 20 minutes, as aibrix's does. The two of aibrix are its formulas and
  thresholds as this router has them, with the defects mended that `docs/migrate-from-aibrix.md`
  lists.
"""


@dataclass(frozen=True, slots=True)
class Report:
    """All that a benchmark found.

    Attributes:
        source: where the workloads came from.
        targets: what counts as served well.
        findings: at the loads tried.
        equal: at the loads that aibrix's default holds.
        comparisons: one for each scenario.
    """

    source: Source
    targets: Targets
    findings: Sequence[Finding]
    equal: Sequence[Finding]
    comparisons: Sequence[Comparison]

    def write(self, folder: Path, artefacts: Path) -> None:
        """Write the report, and beside it what only this run's own reader needs.

        Args:
            folder: gets `routing.md`, and `routing.png` of the first cluster.
            artefacts: gets `routing.json`, and a PNG for each cluster.
        """
        folder.mkdir(parents=True, exist_ok=True)
        artefacts.mkdir(parents=True, exist_ok=True)
        described = {
            "half": self.source.half,
            "seed": self.source.seed,
            "targets": asdict(self.targets),
        }
        lines = [json.dumps(found.describe()) for found in (*self.findings, *self.equal)]
        head = json.dumps(described, indent=1).removesuffix("\n}")
        # A line for each simulation, so that a change shows as such.
        text = head + ',\n "findings": [\n' + ",\n".join(lines) + "\n ]\n}\n"
        (artefacts / "routing.json").write_text(text)
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
        )
        yield from _list_key_figures(self.comparisons)
        clusters = dict.fromkeys(
            (finding.run.scenario.hardware, finding.run.scenario.shape) for finding in self.findings
        )
        for hardware, shape in clusters:
            chosen = [
                finding
                for finding in self.findings
                if finding.run.scenario.hardware == hardware and finding.run.scenario.shape == shape
            ]
            name = f"routing-{hardware}-{shape}.png".replace("+", "-").lower()
            title = f"{shape}, {HARDWARE[hardware].name}"
            draw_cluster(artefacts / name, title, chosen)
            yield f"## {title}\n"
            if chosen[0] is self.findings[0]:
                draw_cluster(folder / "routing.png", title, chosen)
                yield "![Share in time and TTFT p99 at rising load](routing.png)\n"
            for comparison in self.comparisons:
                scenario = comparison.scenario
                if (scenario.hardware, scenario.shape) == (hardware, shape):
                    yield from _list_standings(comparison, chosen)


def format_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines of a table of findings, with headings for each scenario and load."""
    heading = None
    for finding in findings:
        run, summary = finding.run, finding.summary
        scenario = run.scenario
        if (scenario, run.load) != heading:
            heading = (scenario, run.load)
            yield (
                f"\n{scenario.workload}, {scenario.hardware}, {scenario.shape}, "
                f"load {run.load:.2f} ({finding.rate:.2f} requests/s)\n"
                f"{'':20}    TTFT p50     p90     p99  ITL p99  in TTFT  goodput    hit  wasted"
                "  balance"
            )
        yield (
            f"{run.contender:20} {summary.ttft_p50_s:9.2f} s {summary.ttft_p90_s:7.2f} "
            f"{summary.ttft_p99_s:7.2f} {summary.inter_token_p99_s * 1000:5.0f} ms "
            f"{summary.within_ttft:8.1%} {summary.goodput:8.1%} {summary.hit_rate:6.1%} "
            f"{summary.wasted:7.1%} {summary.prefill_balance:5.2f}/{summary.decode_balance:.2f}"
        )


def _list_key_figures(comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield "## Key figures\n"
    yield (
        f"| hardware | cluster | workload | load held by {AIBRIX} | by {OURS} | ratio "
        f"| TTFT p99 at that load, {AIBRIX} | {OURS} | ratio | floor "
        "| least goodput beside the best other |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for comparison in comparisons:
        scenario = comparison.scenario
        ours, aibrix = comparison.find(OURS), comparison.find(AIBRIX)
        worst = "-"
        if comparison.worst_ratio is not None:
            worst = (
                f"{comparison.worst_ratio:.2f} of {comparison.worst_rival}, "
                f"load {comparison.worst_load:.2f}"
            )
        yield (
            f"| {scenario.hardware} | {scenario.shape} | {scenario.workload} "
            f"| {_format(aibrix.held)} | {_format(ours.held)} "
            f"| **{_format(comparison.held_ratio)}** "
            f"| {_format_p99(aibrix.finding)} | {_format_p99(ours.finding)} "
            f"| **{_format(comparison.p99_ratio)}** | {comparison.floor_p99_s:.2f} s | {worst} |"
        )
    yield ""


def _list_standings(comparison: Comparison, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the contenders at the load that aibrix's default holds, or at the nearest one tried."""
    yield f"### {comparison.scenario.workload}\n"
    rows = [(known.held, known.finding) for known in comparison.standings if known.finding]
    if rows:
        finding = rows[0][1]
        yield f"At load {finding.run.load:.2f} ({finding.rate:.2f} requests/s), held by {AIBRIX}:\n"
    else:
        tried = [found for found in findings if found.run.scenario == comparison.scenario]
        loads = [found.run.load for found in tried]
        early = any(
            found.run.contender == AIBRIX
            and found.run.load == min(loads)
            and found.summary.within_ttft < SHARE
            for found in tried
        )
        load = min(loads) if early else max(loads)
        rows = [
            (comparison.find(found.run.contender).held, found)
            for found in tried
            if found.run.load == load
        ]
        yield f"The load that {AIBRIX} holds is beyond those tried. At load {load:.2f}:\n"
    yield from _list_rows(rows)


def _list_rows(rows: Sequence[tuple[float | None, Finding]]) -> Iterator[str]:
    yield (
        "| contender | held load | TTFT p50 | p90 | p99 | mean | inter-token p99 | within TTFT "
        "| goodput | hit | wasted | balance | rejected | preempted |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for held, finding in rows:
        summary = finding.summary
        yield (
            f"| {finding.run.contender} | {_format(held)} | {summary.ttft_p50_s:.2f} s "
            f"| {summary.ttft_p90_s:.2f} s | {summary.ttft_p99_s:.2f} s "
            f"| {summary.ttft_mean_s:.2f} s | {summary.inter_token_p99_s * 1000.0:.0f} ms "
            f"| {summary.within_ttft:.1%} | {summary.goodput:.1%} | {summary.hit_rate:.1%} "
            f"| {summary.wasted:.1%} "
            f"| {summary.prefill_balance:.2f}/{summary.decode_balance:.2f} "
            f"| {summary.rejected} | {summary.preemptions} |"
        )
    yield ""


def _format(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _format_p99(finding: Finding | None) -> str:
    return "-" if finding is None else f"{finding.summary.ttft_p99_s:.2f} s"
