"""What EnvoyPatchPolicies patch: it must have the names that Envoy Gateway gives."""

import re
from collections.abc import Iterator

from pdrouter.nearest import find_nearest
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.envoy_gateway import ExtensionPolicy, Patch, PatchPolicy
from pdrouter.tools.doctor.objects.gateway_api import Gateway, HttpRoute
from pdrouter.tools.doctor.patches import dig, find_routes
from pdrouter.tools.doctor.snapshot import Snapshot

_LISTENER_TYPES = (".Listener", ".RouteConfiguration")
_BY_PORT = re.compile(r"(tcp|udp|http|https|tls)-[0-9]+")
"""The names of Envoy Gateway's newer scheme, which it has to be told to use."""
_ROUTE_CLUSTER = re.compile(r"httproute/([^/]+)/([^/]+)/rule/([0-9]+)(?:/.*)?")
_FILTER = re.compile(
    r"envoy\.filters\.http\.ext_proc/envoyextensionpolicy/([^/]+/[^/]+/extproc/[0-9]+)"
)


def _find_unknown_targets(installation: Installation) -> Iterator[Defect]:
    snapshot = installation.snapshot
    for policy in snapshot.of(PatchPolicy):
        for index, patch in enumerate(policy.spec.json_patches):
            field = f"spec.jsonPatches[{index}].name"
            if patch.type.endswith(_LISTENER_TYPES):
                yield from _judge_listener(snapshot, policy, field, patch)
            elif patch.type.endswith(".Cluster") and patch.operation.path:
                yield from _judge_cluster(snapshot, policy, field, patch)
        yield from _judge_filters(snapshot, policy)


def _judge_listener(
    snapshot: Snapshot, policy: PatchPolicy, field: str, patch: Patch
) -> Iterator[Defect]:
    """Judge the name of a listener, which is that of its routes too."""
    target = policy.spec.target_ref
    if target is None or _BY_PORT.fullmatch(patch.name):
        return
    gateways = [
        gateway
        for gateway in snapshot.of(Gateway)
        if target.kind == "GatewayClass"
        or (gateway.metadata.namespace, gateway.metadata.name)
        == (policy.metadata.namespace, target.name)
    ]
    names = [
        f"{gateway.metadata.namespace}/{gateway.metadata.name}/{listener.name}"
        for gateway in gateways
        for listener in gateway.spec.listeners
    ]
    prefix = f"{policy.metadata.namespace}/{target.name}/"
    right = patch.name in names if names else patch.name.startswith(prefix)
    if right or (target.kind == "GatewayClass" and not names):
        return
    near = find_nearest(patch.name, names)
    yield Defect(
        policy.ref,
        field,
        f"Envoy Gateway gives no listener or routes the name {patch.name!r}",
        f"did you mean {near}?" if near else f"name it {', '.join(names) or prefix + 'LISTENER'}",
    )


def _judge_cluster(
    snapshot: Snapshot, policy: PatchPolicy, field: str, patch: Patch
) -> Iterator[Defect]:
    """Judge the name of a cluster that Envoy Gateway makes for a rule of a route."""
    match = _ROUTE_CLUSTER.fullmatch(patch.name)
    if match is None:
        return
    namespace, name, rule = match.groups()
    routes = [each for each in snapshot.of(HttpRoute) if each.metadata.namespace == namespace]
    found = next((each for each in routes if each.metadata.name == name), None)
    if found is None and snapshot.expects(HttpRoute, namespace):
        near = find_nearest(name, (each.metadata.name for each in routes))
        yield Defect(
            policy.ref,
            field,
            f"there is no HTTPRoute {namespace}/{name}, so no cluster {patch.name}",
            f"did you mean {near}?" if near else "name a route that exists",
        )
    elif found is not None and int(rule) >= len(found.spec.rules):
        yield Defect(
            policy.ref,
            field,
            f"{found.ref} has no rule {rule}",
            f"name a rule from 0 to {len(found.spec.rules) - 1}",
        )


def _judge_filters(snapshot: Snapshot, policy: PatchPolicy) -> Iterator[Defect]:
    """Judge the names of ext_proc filters: those that routes turn on, and those in paths."""
    named = [
        (f"{route.field}.typed_per_filter_config", str(key))
        for route in find_routes(policy)
        if isinstance(filters := dig(route.content, "typed_per_filter_config"), dict)
        for key in filters
    ]
    for index, patch in enumerate(policy.spec.json_patches):
        path = f"{patch.operation.json_path} {patch.operation.path}".replace("~1", "/")
        named.append((f"spec.jsonPatches[{index}].operation.path", path))
    known = {
        f"{each.metadata.namespace}/{each.metadata.name}/extproc/{number}"
        for each in snapshot.of(ExtensionPolicy)
        for number in range(len(each.spec.ext_proc))
    }
    # A filter in a path is one that a route turns on, too.
    seen: set[str] = set()
    for field, text in named:
        match = _FILTER.search(text)
        if match is not None and known and match[1] not in known | seen:
            seen.add(match[1])
            yield Defect(
                policy.ref,
                field,
                f"no EnvoyExtensionPolicy gives a filter the name {match[0]}",
                "the names end in " + ", ".join(sorted(known)),
            )


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "patch-target-unknown",
        Severity.ERROR,
        "A patch names a listener, route or filter that Envoy Gateway does not make.",
        "The patch has no effect: Envoy Gateway names listeners and their routes "
        "NAMESPACE/GATEWAY/LISTENER, and filters after their policy.",
        _find_unknown_targets,
    ),
)
