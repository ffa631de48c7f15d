"""Objects that the API server would refuse."""

from collections.abc import Iterator

from pdrouter.doctor.findings import Check, Fault, Severity
from pdrouter.doctor.installation import Installation


def _find_invalid(installation: Installation) -> Iterator[Fault]:
    for thing in installation.snapshot.invalid:
        problem, _, path = thing.problem.partition(" - at `$.")
        yield Fault(
            thing.ref,
            path.rstrip("`"),
            problem,
            "write the value as the kind's schema says",
        )


CHECKS = (
    Check(
        "object-invalid",
        Severity.ERROR,
        "A value has a type that its field does not take.",
        "The API server refuses the object, and nothing else was checked in it.",
        _find_invalid,
    ),
)
