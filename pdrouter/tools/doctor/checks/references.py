"""Objects that name others: these must exist, and may have to allow it."""

from collections.abc import Iterator

from pdrouter.nearest import find_nearest
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.gateway_api import Gateway, HttpRoute, Listener, ReferenceGrant
from pdrouter.tools.doctor.objects.workloads import Service
from pdrouter.tools.doctor.references import Naming, find_namings
from pdrouter.tools.doctor.snapshot import Snapshot


def _find_broken(installation: Installation) -> Iterator[Defect]:
    snapshot = installation.snapshot
    for naming in find_namings(snapshot):
        if naming.is_missing(snapshot):
            yield Defect(
                naming.thing.ref,
                naming.field,
                f"there is no {naming.target}",
                _advise(naming, snapshot),
            )
        else:
            yield from _judge_part(naming, snapshot)


def _advise(naming: Naming, snapshot: Snapshot) -> str:
    """Say what may have been meant: a name alike, or the same name in another namespace."""
    others = naming.find_others(snapshot)
    homes = sorted(each.namespace for each in others if each.name == naming.target.name)
    if homes:
        return f"there is one in namespace {homes[0]}: put both into one namespace" + (
            ", or name the namespace" if naming.backend else ""
        )
    near = find_nearest(
        naming.target.name,
        (each.name for each in others if each.namespace == naming.target.namespace),
    )
    return f"did you mean {near}?" if near else "create it, or name one that exists"


def _judge_part(naming: Naming, snapshot: Snapshot) -> Iterator[Defect]:
    """Judge the port or the part of an object that is named."""
    match naming.find(snapshot):
        case Service() as service if service.spec.type != "ExternalName":
            ports = [port.port for port in service.spec.ports]
            names = [port.name for port in service.spec.ports]
            if naming.port is not None and naming.port not in ports:
                yield _describe_part(naming, "port", naming.port, ports)
            if naming.section and naming.section not in names:
                yield _describe_part(naming, "port", naming.section, names)
        case Gateway() as gateway if gateway.spec.listeners:
            names = [listener.name for listener in gateway.spec.listeners]
            if naming.section and naming.section not in names:
                yield _describe_part(naming, "listener", naming.section, names)
        case _:
            return


def _describe_part(
    naming: Naming, part: str, named: int | str, known: list[int] | list[str]
) -> Defect:
    return Defect(
        naming.thing.ref,
        f"{naming.field}.{'sectionName' if isinstance(named, str) else 'port'}",
        f"{naming.target} has no {part} {named}",
        f"it has {', '.join(map(str, known)) or 'none'}: name one of these",
    )


def _find_ungranted(installation: Installation) -> Iterator[Defect]:
    snapshot = installation.snapshot
    for naming in find_namings(snapshot):
        home, target = naming.thing.metadata.namespace, naming.target
        if not naming.backend or target.namespace == home:
            continue
        expected = snapshot.expects(ReferenceGrant, target.namespace)
        # Who has the Service among the manifests has what goes with it there too.
        if not expected and (snapshot.live or naming.find(snapshot) is None):
            continue
        if not any(
            grant.metadata.namespace == target.namespace
            and grant.allows(naming.thing.kind, home, target.kind, target.name)
            for grant in snapshot.of(ReferenceGrant)
        ):
            yield Defect(
                naming.thing.ref,
                naming.field,
                f"it names {target}, and no ReferenceGrant there allows it",
                f"add a ReferenceGrant in namespace {target.namespace}: from {naming.thing.kind} "
                f"of {home}, to {target.kind}",
            )


def _find_unwelcome(installation: Installation) -> Iterator[Defect]:
    for naming in find_namings(installation.snapshot):
        gateway = naming.find(installation.snapshot)
        if not isinstance(naming.thing, HttpRoute) or not isinstance(gateway, Gateway):
            continue
        listeners = [
            listener for listener in gateway.spec.listeners if naming.section in ("", listener.name)
        ]
        if listeners and not any(_takes(gateway, each, naming.thing) for each in listeners):
            yield Defect(
                naming.thing.ref,
                naming.field,
                f"no listener of {gateway.ref} takes routes of namespace "
                f"{naming.thing.metadata.namespace}",
                "set allowedRoutes.namespaces of a listener, or move the route",
            )


def _takes(gateway: Gateway, listener: Listener, route: HttpRoute) -> bool:
    """Return whether a listener may take a route; labels of namespaces are not known."""
    if listener.allowed_routes.namespaces.origin == "Same":
        return gateway.metadata.namespace == route.metadata.namespace
    return listener.allowed_routes.namespaces.origin != "None"


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "reference-broken",
        Severity.ERROR,
        "An object names another one, or a part of it, that does not exist.",
        "The object does nothing: a route without its Gateway takes no requests, one without its "
        "Service answers 500, a policy without its target is not applied.",
        _find_broken,
    ),
    Check(
        "reference-not-granted",
        Severity.ERROR,
        "An object sends requests to another namespace, which does not allow it.",
        "Envoy answers with 500: without a ReferenceGrant there, the reference counts as broken.",
        _find_ungranted,
    ),
    Check(
        "route-not-allowed",
        Severity.ERROR,
        "A route belongs to a Gateway that takes no routes of its namespace.",
        "The route takes no requests: by default a listener takes those of its own namespace only.",
        _find_unwelcome,
    ),
)
