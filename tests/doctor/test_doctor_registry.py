"""All checks: each has a code of its own, a description, and a case that it finds."""

from test_doctor_checks import BROKEN as SETTINGS
from test_doctor_gateway import BROKEN as GATEWAY
from test_doctor_labels import BROKEN as LABELS
from test_doctor_references import BROKEN as REFERENCES
from test_doctor_retries import BROKEN as RETRIES

from pdrouter.tools.doctor.all_checks import CHECKS
from pdrouter.tools.doctor.diagnosis import describe_findings

ELSEWHERE = {
    # Reachability and silence need a cluster; so does what pods run.
    "pod-unreachable",
    "pod-unmatched",
    "status-missing",
    # What stands in documents before they are objects, and what controllers add to them.
    "kind-unknown",
    "field-misspelt",
    "object-duplicate",
    "condition-not-met",
    "status-stale",
}


def test_every_check_has_a_case() -> None:
    cases = [*SETTINGS, *GATEWAY, *LABELS, *REFERENCES, *RETRIES]

    assert {case.code for case in cases} | ELSEWHERE == {check.code for check in CHECKS}


def test_codes_are_unique_and_described() -> None:
    described = [line.split("`")[1] for line in describe_findings().splitlines()[2:]]

    assert described[: len(CHECKS)] == [check.code for check in CHECKS]
    assert len(set(described)) == len(described)
