"""Objects that the API server would refuse, or of which one would replace another."""

from pdrouter.tools.doctor.findings import Check, Severity
from pdrouter.tools.doctor.installation import Installation

CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "object-invalid",
        Severity.ERROR,
        "A value has a type that its field does not take.",
        "The API server refuses the object, and nothing else was checked in it.",
        lambda installation: installation.snapshot.invalid,
    ),
    Check(
        "kind-unknown",
        Severity.ERROR,
        "A document has a kind or apiVersion that does not exist, or no name.",
        "The API server refuses the object, and nothing in it was checked.",
        lambda installation: installation.snapshot.unknown,
    ),
    Check(
        "field-misspelt",
        Severity.ERROR,
        "An object has a member that is almost a field of its kind (in manifests).",
        "The API server refuses it, or drops it without a word: what it says has no effect.",
        lambda installation: installation.snapshot.misspelt,
    ),
    Check(
        "object-duplicate",
        Severity.WARNING,
        "An object is there twice.",
        "The later one replaces the first: what the first says has no effect.",
        lambda installation: installation.snapshot.duplicates,
    ),
)
