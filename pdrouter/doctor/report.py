"""A diagnosis as text for people, or as JSON."""

import textwrap

import msgspec

from pdrouter.doctor.diagnosis import Diagnosis
from pdrouter.doctor.findings import Finding, Severity

_WIDTH = 100


def render_text(diagnosis: Diagnosis) -> str:
    """Return the report for people."""
    parts = [_render_finding(finding) for finding in diagnosis.findings]
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
                "object": {
                    "kind": finding.fault.object.kind,
                    "namespace": finding.fault.object.namespace,
                    "name": finding.fault.object.name,
                },
                "field": finding.fault.field,
                "problem": finding.fault.problem,
                "why": finding.check.why,
                "fix": finding.fault.fix,
            }
            for finding in diagnosis.findings
        ],
        "notes": diagnosis.notes,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def _render_finding(finding: Finding) -> str:
    check, fault = finding.check, finding.fault
    lines = [
        f"{check.severity}: {fault.object}  [{check.code}]",
        _wrap("where", fault.field),
        _wrap("found", fault.problem),
        _wrap("why", check.why),
        _wrap("fix", fault.fix),
    ]
    return "\n".join(lines)


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
