"""Findings on disk: a benchmark may be done in parts, and a report be made of all of them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec

from benchmarks.routing.cluster.results import Targets
from benchmarks.routing.experiment import Finding, Run, Scenario, Source, Sweep, perform_sweep


class FindingFile:
    """One line of JSON for each simulation; the last one counts where there are several.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path, source: Source, targets: Targets) -> None:
        """Name the file by what all findings in it have in common.

        Args:
            folder: where it is.
            source: where the workloads come from.
            targets: what counts as served well.
        """
        size = "" if source.requests is None else f"-{source.requests}"
        limits = "" if targets == Targets() else f"-{abs(hash(targets))}"
        self.path = folder / f"routing-{source.half}{size}{limits}.jsonl"

    def read(self) -> dict[Run, Finding]:
        """Return what has been found so far."""
        if not self.path.exists():
            return {}
        decoder = msgspec.json.Decoder(Finding)
        findings = map(decoder.decode, self.path.read_bytes().splitlines())
        return {finding.run: finding for finding in findings}

    def add(self, findings: Sequence[Finding]) -> None:
        """Add findings."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.writelines(msgspec.json.encode(finding) + b"\n" for finding in findings)


def perform_sweeps(
    sweeps: Sequence[Sweep], source: Source, targets: Targets, code: str, processes: int
) -> Iterator[Sequence[Finding]]:
    """Yield the findings of each sweep as it ends, several processes at work."""
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(perform_sweep, sweep, source, targets, code) for sweep in sweeps]
        for future in as_completed(futures):
            yield future.result()


def select_known(
    findings: Mapping[Run, Finding], scenario: Scenario, contender: str, seed: int
) -> Mapping[Run, float]:
    """Return the shares in time that are known of a contender in a scenario."""
    return {
        run: finding.summary.within_ttft
        for run, finding in findings.items()
        if (run.scenario, run.contender, run.seed) == (scenario, contender, seed)
    }
