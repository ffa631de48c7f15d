"""Routes by which a client gets around the router."""

from collections.abc import Iterator
from dataclasses import dataclass

from pdrouter.tools.doctor.checks.headers import removes_early
from pdrouter.tools.doctor.checks.routes import SERVED, covers_path
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.gateway_api import HttpRoute, PathMatch, RouteMatch, RouteRule
from pdrouter.tools.doctor.objects.workloads import Workload


@dataclass(frozen=True, slots=True)
class _Bypass:
    """A rule that takes requests which the router serves, before the router's own routes do.

    Attributes:
        route: the route.
        field: the match in it.
        match: what a request has to be like.
        path: a path that the router serves.
    """

    route: HttpRoute
    field: str
    match: RouteMatch
    path: str

    @property
    def names(self) -> list[str]:
        """Names of the headers that a request has to have."""
        return [header.name for header in self.match.headers]


def _find_bypasses(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        seen_by_router = [route.ref for other in installation.attachments for route in other.routes]
        for route in installation.snapshot.of(HttpRoute):
            if route.ref in seen_by_router or not attachment.routes:
                continue
            for bypass in _find_matches(installation, attachment, route):
                yield from _judge(installation, attachment, bypass)


def _judge(installation: Installation, attachment: Attachment, bypass: _Bypass) -> Iterator[Defect]:
    """Judge whether a client can send what a match asks for."""
    gateways = [
        gateway
        for gateway in installation.gateways(attachment)
        if (gateway.metadata.namespace, gateway.metadata.name) in bypass.route.gateways
    ]
    kept = [
        gateway
        for gateway in gateways
        if not any(removes_early(installation, gateway, name) for name in bypass.names)
    ]
    if not kept:
        return
    names = ", ".join(bypass.names)
    yield Defect(
        bypass.route.ref,
        bypass.field,
        f"a client's request for {bypass.path}"
        + (f" with the header {names}" if names else "")
        + f" takes this route at {kept[0].ref}, and not {attachment.routes[0].ref}",
        (f"add {names} to earlyRequestHeaders.remove of a ClientTrafficPolicy" if names else "")
        + (", or " if names else "")
        + f"let {attachment.policy.ref} name this route too",
    )


def _find_matches(
    installation: Installation, attachment: Attachment, route: HttpRoute
) -> Iterator[_Bypass]:
    """Yield the matches of a route that go before those of the router's routes."""
    if not route.gateways & attachment.gateways or _has_own_hosts(route, attachment):
        return
    for number, rule in enumerate(route.spec.rules):
        if not reaches_engines(installation, route, rule):
            continue
        for index, match in enumerate(rule.matches or [RouteMatch()]):
            path = _find_taken(match, route, attachment)
            if path is not None:
                yield _Bypass(route, f"spec.rules[{number}].matches[{index}]", match, path)


def _has_own_hosts(route: HttpRoute, attachment: Attachment) -> bool:
    """Return whether a route has hosts that the router is not responsible for."""
    ours = [set(each.spec.hostnames) for each in attachment.routes]
    theirs = set(route.spec.hostnames)
    return bool(theirs) and all(hosts and not hosts & theirs for hosts in ours)


def _find_taken(match: RouteMatch, route: HttpRoute, attachment: Attachment) -> str | None:
    """Return a path that the router serves, and of which a match takes requests before it."""
    for path, method in SERVED:
        if match.method not in (None, method) or not covers_path(match.path, path):
            continue
        ours = [
            (bool(each.spec.hostnames), own)
            for each in attachment.routes
            for rule in each.spec.rules
            for own in rule.matches or [RouteMatch()]
            if own.method in (None, method) and covers_path(own.path, path)
        ]
        mine = _rank(match, named_host=bool(route.spec.hostnames))
        if ours and all(mine > _rank(own, named_host=named) for named, own in ours):
            return path
    return None


def _rank(match: RouteMatch, *, named_host: bool) -> tuple[bool, int, int, bool, int, int]:
    """Return what decides which of several matches counts, in the order of the Gateway API."""
    return (
        named_host,
        _rank_path(match.path),
        len(match.path.value),
        match.method is not None,
        len(match.headers),
        len(match.query_params),
    )


def _rank_path(path: PathMatch) -> int:
    return {"Exact": 2, "RegularExpression": 1}.get(path.type, 0)


def reaches_engines(installation: Installation, route: HttpRoute, rule: RouteRule) -> bool:
    """Return whether a rule may lead to engines: where it leads may not be known."""
    for backend in rule.backend_refs:
        service = installation.service(backend, route.metadata.namespace)
        if service is None:
            return True
        engines = {engine.ref for engine in installation.engines}
        known = [
            workload.ref
            for workload in installation.snapshot.of(Workload)
            if service.selects(workload.metadata.namespace, workload.spec.template.metadata.labels)
        ]
        if not known or any(ref in engines for ref in known):
            return True
    return False


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "route-around-router",
        Severity.ERROR,
        "A client can choose a route that leads to engines without the router.",
        "Envoy chooses the route before the router has run: no router, no prefill, no key is asked "
        "for, and the client's own transfer fields reach the engine.",
        _find_bypasses,
    ),
)
