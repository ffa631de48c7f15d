"""A diagnosis as text for people, or as JSON."""

import textwrap

import msgspec

from pdrouter.tools.doctor.diagnosis import Diagnosis
from pdrouter.tools.doctor.findings import Finding, Severity
from pdrouter.tools.doctor.objects.base import ObjectRef

_WIDTH = 100
_NAMED = 5
"""So many of the further objects of a finding are named."""


def render_text(diagnosis: Diagnosis) -> str:
    """Return the report for people."""
    parts = [_render_finding(finding) for finding in diagnosis.findings]
    if diagnosis.facts:
        parts.append("\n".join(diagnosis.facts))
    parts += [_wrap("note", note, "") for note in diagnosis.notes]
    errors, warnings = (diagnosis.count(severity) for severity in Severity)
    parts.append(f"{_plural(errors, 'error')}, {_plural(warnings, 'warning')}")
    return "\n\n".join(parts) + "\n"


def render_json(diagnosis: Diagnosis) -> str:
    """Return the report for programs."""
    report = {
        "errors": diagnosis.count(Severity.ERROR),
        "warnings": diagnosis.count(Severity.WARNING),
        "findings": [
            {
                "code": finding.check.code,
                "severity": finding.check.severity,
                "object": _show(finding.defect.object),
                "objects": [
                    {**_show(defect.object), "problem": defect.problem, "fix": defect.fix}
                    for defect in finding.defects
                ],
                "field": finding.defect.field,
                "problem": finding.defect.problem,
                "why": finding.check.why,
                "fix": finding.defect.fix,
            }
            for finding in diagnosis.findings
        ],
        "notes": diagnosis.notes,
        "facts": diagnosis.facts,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def _render_finding(finding: Finding) -> str:
    check, defect = finding.check, finding.defect
    further = len(finding.defects) - 1
    lines = [
        f"{check.severity}: {defect.object}"
        + (f" and {further} more" if further else "")
        + f"  [{check.code}]",
        _wrap("where", defect.field),
        _wrap("found", defect.problem),
    ]
    if further:
        lines.append(_wrap("also", _name_further(finding)))
    lines += [
        _wrap("why", check.why),
        _wrap("fix", defect.fix),
    ]
    return "\n".join(lines)


def _name_further(finding: Finding) -> str:
    """Return the names of the objects after the first, as far as they can be read."""
    defects = finding.defects[1:]
    named = ", ".join(str(defect.object) for defect in defects[:_NAMED])
    if len({defect.problem for defect in finding.defects}) > 1:
        named += ", each in its own words"
    return named + (f", and {len(defects) - _NAMED} more" if len(defects) > _NAMED else "")


def _show(ref: ObjectRef) -> dict[str, str]:
    return {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name}


def _wrap(title: str, text: str, indent: str = "  ") -> str:
    start = f"{indent}{title + ':':<7}"
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plural(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")
