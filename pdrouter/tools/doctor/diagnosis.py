"""The doctor's judgement of an installation, or of the engines of an endpoints file."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pdrouter.tools.doctor.all_checks import CHECKS
from pdrouter.tools.doctor.checks.endpoints import ENDPOINT_CHECKS
from pdrouter.tools.doctor.envoy_file import EnvoyFile, create_envoy_checks
from pdrouter.tools.doctor.findings import Check, Defect, Finding, Severity, Subject
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.snapshot import Snapshot
from pdrouter.tools.doctor.survey import Survey

_MANY = 5
"""So many defects of one field are told apart; more are one finding, whatever their words."""

_UNPROVEN = (
    "answered with a handle of {}, but does not say that it fetched the blocks, and has not "
    "computed the prompt again: see whether its vllm:external_prefix_cache_hits grows"
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        findings: the worst first.
        notes: what could not be looked at.
        facts: what was seen, where that is worth a line.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(1 for finding in self.findings if finding.check.severity is severity)


def diagnose(snapshot: Snapshot) -> Diagnosis:
    """Run every check on a snapshot."""
    installation = Installation.examine(snapshot)
    return Diagnosis(run_checks(CHECKS, installation), (*snapshot.notes, *_note_gaps(installation)))


def diagnose_envoy(file: EnvoyFile) -> Diagnosis:
    """Judge the configuration of an Envoy that nobody manages."""
    (known,) = (check for check in CHECKS if check.code == "handle-sent-twice")
    return Diagnosis(run_checks(create_envoy_checks(known), file))


def diagnose_engines(survey: Survey) -> Diagnosis:
    """Run every check on the engines of an endpoints file."""
    return Diagnosis(run_checks(ENDPOINT_CHECKS, survey), facts=tuple(_describe_engines(survey)))


def _describe_engines(survey: Survey) -> Iterator[str]:
    """Say of each engine that answers what it is, and of each pair that works that it does."""
    for pod in survey.pods:
        answers = survey.answers[pod.address]
        card = answers.find(pod.model)
        if card is not None:
            words = [f"{pod.address} serves {pod.model} ({pod.role})"]
            words += [" ".join(filter(None, (answers.software, answers.version)))]
            words += [f"{card.max_model_len} tokens"] if card.max_model_len else []
            yield ", ".join(filter(None, words))
    for trial in survey.trials:
        if trial.failed is None:
            what = "decoded what {} had prefilled" if trial.proven else _UNPROVEN
            prefill, model = trial.prefill.address, trial.prefill.model
            yield f"{trial.decode.address} {what.format(prefill)} ({model})"


def run_checks(checks: Iterable[Check[Subject]], subject: Subject) -> tuple[Finding, ...]:
    """Return what checks find, the worst first."""
    severities = list(Severity)
    findings = [finding for check in checks for finding in _group(check, check.find(subject))]
    return tuple(sorted(findings, key=lambda finding: severities.index(finding.check.severity)))


def _group(check: Check[Subject], defects: Iterable[Defect]) -> Iterator[Finding]:
    """Yield a check's findings: defects that are the same in several objects are one.

    So are many in one field that differ in their words only, such as an address or a name.
    """
    alike: defaultdict[tuple[str, str], list[Defect]] = defaultdict(list)
    for defect in dict.fromkeys(defects):
        alike[defect.object.kind, defect.field].append(defect)
    for members in alike.values():
        if len(members) > _MANY:
            yield Finding(check, tuple(members))
            continue
        same: defaultdict[tuple[str, str], list[Defect]] = defaultdict(list)
        for defect in members:
            same[defect.problem, defect.fix].append(defect)
        yield from (Finding(check, tuple(each)) for each in same.values())


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
    checks: list[Check[Any]] = [*CHECKS, *ENDPOINT_CHECKS]
    lines += [
        f"| `{check.code}` | {check.severity} | {check.meaning} | {check.why} |" for check in checks
    ]
    return "\n".join(lines) + "\n"
