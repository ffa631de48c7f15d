"""What controllers say of objects: what they have not accepted, or not put into effect."""

from collections.abc import Iterator

from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.envoy_gateway import EnvoyProxy
from pdrouter.tools.doctor.objects.gateway_api import BackendTlsPolicy, InferencePool
from pdrouter.tools.doctor.objects.status import Controlled, StatusCondition

_WANTED = frozenset({"Accepted", "Programmed", "ResolvedRefs"})
"""Conditions that are True of an object that works."""
_UNWANTED = frozenset({"Conflicted", "PartiallyInvalid"})
"""Conditions that are True of an object that does not work, or of which a part does not.

Not `Overridden`: a policy of a Gateway may leave routes to their own."""

_SILENT_KINDS = (BackendTlsPolicy, EnvoyProxy, InferencePool)
"""Kinds of which nothing is said while nobody uses them, or in older versions never."""

_FIXES = {
    "Disabled": "set extensionApis.enableEnvoyPatchPolicy: true in Envoy Gateway's configuration, "
    "and restart it",
    "ResourceNotFound": "give the patch the name that Envoy Gateway gives to the resource: "
    "NAMESPACE/GATEWAY/LISTENER for a listener and its routes",
    "TargetNotFound": "let targetRefs name an object that exists in the policy's namespace",
    "NotAllowedByListeners": "let allowedRoutes of a listener take routes of this namespace",
    "NoMatchingParent": "let sectionName and port of parentRefs be those of a listener",
    "NoMatchingListenerHostname": "let the hostnames of route and listener have one in common",
    "RefNotPermitted": "add a ReferenceGrant in the namespace of the object that is named",
    "BackendNotFound": "let backendRefs name an object that exists",
    "InvalidParameters": "let parametersRef name an EnvoyProxy that exists and is valid",
    "Pending": "see whether the controller of its GatewayClass runs",
}
"""What to do, by the reason that a controller gives."""


def _find_refusals(installation: Installation) -> Iterator[Defect]:
    for thing in installation.snapshot.of(Controlled):
        for path, subject, condition in thing.said:
            if _is_bad(condition):
                whom = f" for {subject}" if subject else ""
                words = [word for word in (condition.reason, condition.message) if word]
                yield Defect(
                    thing.ref,
                    path,
                    f"{condition.type} is {condition.status}{whom}: "
                    + (": ".join(words) or "no reason is given"),
                    _FIXES.get(condition.reason, "change what the message names"),
                )


def _is_bad(condition: StatusCondition) -> bool:
    if condition.type in _WANTED:
        return condition.status != "True"
    return condition.type in _UNWANTED and condition.status == "True"


def _find_stale(installation: Installation) -> Iterator[Defect]:
    for thing in installation.snapshot.of(Controlled):
        current = thing.metadata.generation
        for path, subject, condition in thing.said:
            seen = condition.observed_generation
            if seen is not None and current and seen < current:
                whom = f" for {subject}" if subject else ""
                yield Defect(
                    thing.ref,
                    f"{path}.observedGeneration",
                    f"what is said{whom} is of generation {seen}; the object has {current}",
                    "see whether its controller runs, and what it logs",
                )


def _find_silence(installation: Installation) -> Iterator[Defect]:
    if not installation.snapshot.live:
        return
    for thing in installation.snapshot.of(Controlled):
        if not any(thing.said) and not isinstance(thing, _SILENT_KINDS):
            yield Defect(
                thing.ref,
                "status",
                "no controller has said anything of it",
                "see whether Envoy Gateway runs and watches the namespace, whether the "
                "GatewayClass has its controllerName, and whether the object leads to such a "
                "Gateway",
            )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "condition-not-met",
        Severity.ERROR,
        "A controller says that it has not accepted an object, or not put it into effect.",
        "The object does nothing, or only a part of what it says: requests get a 404, a 500 or a "
        "503, or pass the router by.",
        _find_refusals,
    ),
    Check(
        "status-missing",
        Severity.ERROR,
        "No controller has taken an object (in a cluster).",
        "The object does nothing: nobody turns it into configuration of Envoy.",
        _find_silence,
    ),
    Check(
        "status-stale",
        Severity.WARNING,
        "A controller has not looked at the newest version of an object.",
        "Envoy still runs with what the object said before.",
        _find_stale,
    ),
)
