"""Routes: which paths the router sees, and which get around it."""

from collections.abc import Iterator

from pdrouter.openai.paths import ENDPOINTS, MODELS_PATH
from pdrouter.tools.doctor.checks.patterns import may_match
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.gateway_api import HttpRoute, PathMatch, RouteMatch
from pdrouter.tools.doctor.patches import Patched, dig

SERVED = (*((path, "POST") for path in ENDPOINTS), (MODELS_PATH, "GET"))
"""Path and method of what the router serves."""


def _find_uncovered_paths(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        missing = [
            f"{method} {path}"
            for path, method in SERVED
            if not any(_covers(route, path, method) for route in attachment.routes)
        ]
        if missing and attachment.routes:
            refs = ", ".join(str(route.ref) for route in attachment.routes)
            yield Defect(
                attachment.routes[0].ref,
                "spec.rules",
                f"{refs} do{'es' if len(attachment.routes) == 1 else ''} not match: "
                + ", ".join(missing),
                "add matches for the paths that clients use",
            )


def _covers(route: HttpRoute, path: str, method: str) -> bool:
    return any(
        _match_covers(match, path, method)
        for rule in route.spec.rules
        for match in rule.matches or [RouteMatch()]
    )


def _match_covers(match: RouteMatch, path: str, method: str) -> bool:
    """Return whether a match takes a path whatever else the request says."""
    if match.headers or match.query_params or match.method not in (None, method):
        return False
    return covers_path(match.path, path)


def covers_path(match: PathMatch, path: str) -> bool:
    """Return whether a condition on the path takes a path."""
    match match.type:
        case "Exact":
            return path == match.value
        case "RegularExpression":
            return may_match(match.value, path)
        case _:
            prefix = match.value.rstrip("/")
            return path == prefix or path.startswith(f"{prefix}/")


def _find_detours(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        for route in attachment.patched_routes:
            if _takes_served_paths(route) and not _passes_router(route, attachment):
                yield Defect(
                    route.policy,
                    f"{route.field}.typed_per_filter_config",
                    f"the route to {route.text('route', 'cluster') or 'a cluster'} does not turn "
                    "on the ext_proc filter",
                    f'add the key "{attachment.filter_name}" with '
                    '{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}',
                )


def _takes_served_paths(route: Patched) -> bool:
    match = dig(route.content, "match")
    for path, _ in SERVED:
        prefix = dig(match, "prefix") or dig(match, "path_separated_prefix")
        if isinstance(prefix, str) and path.startswith(prefix):
            return True
        if dig(match, "path") == path:
            return True
    return dig(match, "safe_regex") is not None


def _passes_router(route: Patched, attachment: Attachment) -> bool:
    filters = dig(route.content, "typed_per_filter_config")
    own = dig(filters, attachment.filter_name)
    return own is not None and dig(own, "disabled") is not True


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "path-not-covered",
        Severity.WARNING,
        "The routes with the ext_proc policy do not match every path that the router serves.",
        "Requests to the others get a 404, or take another route without the router.",
        _find_uncovered_paths,
    ),
    Check(
        "route-without-router",
        Severity.ERROR,
        "A patched route leads to engines without the ext_proc filter.",
        "Envoy Gateway turns the filter off and each of its own routes turns it on: requests on "
        "this route pass the router by, with the client's own headers.",
        _find_detours,
    ),
)
