"""The doctor's judgement of a snapshot."""

from dataclasses import dataclass

from pdrouter.doctor.findings import Finding, Severity
from pdrouter.doctor.installation import Installation
from pdrouter.doctor.registry import CHECKS
from pdrouter.doctor.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: the worst first.
        notes: what could not be looked at.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(1 for finding in self.findings if finding.check.severity is severity)


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """Run every check on a snapshot."""
    installation = Installation.examine(snapshot)
    findings = dict.fromkeys(
        Finding(check, fault) for check in CHECKS for fault in check.find(installation)
    )
    severities = list(Severity)
    return Diagnosis(
        tuple(sorted(findings, key=lambda finding: severities.index(finding.check.severity))),
        (*snapshot.notes, *_note_gaps(installation)),
    )


def _note_gaps(installation: Installation) -> list[str]:
    """Say which parts of an installation are not among the objects."""
    notes = []
    if not installation.routers:
        notes.append("no Deployment of the router was found: its settings were not checked")
    if not installation.attachments:
        notes.append("no EnvoyExtensionPolicy leads to a router: the gateway was not checked")
    for router in installation.routers:
        elsewhere = router.unknown - {refusal.variable for refusal in router.refusals}
        if elsewhere:
            names = ", ".join(sorted(elsewhere))
            notes.append(f"{router.deployment.ref}: not known from the objects: {names}")
    return notes


def describe_findings() -> str:
    """Return the table of all findings in Markdown."""
    lines = ["| Code | Severity | Meaning | Why it hurts |", "|---|---|---|---|"]
    lines += [
        f"| `{check.code}` | {check.severity} | {check.meaning} | {check.why} |" for check in CHECKS
    ]
    return "\n".join(lines) + "\n"
