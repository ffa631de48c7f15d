"""What the router's service account may do at the API server."""

from collections.abc import Iterator
from dataclasses import dataclass

from pdrouter.cluster.source import ALL_NAMESPACES
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.access import (
    ClusterRole,
    ClusterRoleBinding,
    PolicyRule,
    RoleBinding,
    RoleManifest,
    RoleRef,
)
from pdrouter.tools.doctor.objects.workloads import ModelAdapter
from pdrouter.tools.doctor.router import RouterDeployment
from pdrouter.tools.doctor.snapshot import Snapshot

_KINDS = (RoleManifest, RoleBinding, ClusterRole, ClusterRoleBinding)


@dataclass(frozen=True, slots=True)
class _Need:
    """What the router has to do at the API server."""

    verbs: tuple[str, ...]
    group: str
    resource: str


_PODS = _Need(("list", "watch"), "", "pods")
_ADAPTERS = _Need(("list", "watch"), "model.aibrix.ai", "modeladapters")
_ROUTES = _Need(("get",), "gateway.networking.k8s.io", "httproutes")


def _find_blindness(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        for namespace in router.namespaces:
            yield from _judge(installation.snapshot, router, namespace, _PODS)


def _find_adapter_blindness(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        for namespace in router.namespaces:
            if not installation.snapshot.has_read(ModelAdapter, namespace):
                continue
            yield from _judge(installation.snapshot, router, namespace, _ADAPTERS)


def _find_route_blindness(installation: Installation) -> Iterator[Defect]:
    for router in installation.routers:
        if router.routes_by_model and router.knows("httproute_namespace"):
            namespace = router.settings.httproute_namespace
            yield from _judge(installation.snapshot, router, namespace, _ROUTES)


def _find_unwatched(installation: Installation) -> Iterator[Defect]:
    routers = [router for router in installation.routers if router.watches_kubernetes]
    watched = {namespace for router in routers for namespace in router.namespaces}
    if not routers or ALL_NAMESPACES in watched or not all(each.namespaces for each in routers):
        return
    for engine in installation.engines:
        namespace = engine.metadata.namespace
        if engine.pod is not None and namespace not in watched:
            yield Defect(
                engine.ref,
                "metadata.namespace",
                f"no router watches namespace {namespace}, but {', '.join(sorted(watched))}",
                "name it in the router's PDROUTER_NAMESPACES, and give the router a Role there; "
                "PDROUTER_NAMESPACES=* watches all, with a ClusterRole",
            )


def _judge(
    snapshot: Snapshot, router: RouterDeployment, namespace: str, need: _Need
) -> Iterator[Defect]:
    if not router.watches_kubernetes or not _is_known(snapshot, namespace):
        return
    account = router.deployment.spec.template.spec.service_account_name
    home = router.deployment.metadata.namespace
    rules = _find_rules(snapshot, home, account, namespace)
    if rules is None:
        return
    missing = [
        verb
        for verb in need.verbs
        if not any(rule.allows(verb, need.group, need.resource) for rule in rules)
    ]
    if missing:
        everywhere = namespace == "*"
        where = "in all namespaces" if everywhere else f"in namespace {namespace}"
        kind = "ClusterRole and ClusterRoleBinding" if everywhere else "Role and RoleBinding"
        group = need.group or '""'
        yield Defect(
            router.deployment.ref,
            "spec.template.spec.serviceAccountName",
            f"{home}/{account} may not {' or '.join(missing)} {need.resource} {where}",
            f"give it a {kind} with apiGroups [{group}], resources [{need.resource}], "
            f"verbs [{', '.join(need.verbs)}]",
        )


def _is_known(snapshot: Snapshot, namespace: str) -> bool:
    """Return whether the snapshot says who may do what; manifests may leave it to others."""
    if not all(snapshot.has_read(kind, namespace) for kind in _KINDS):
        return False
    return any(snapshot.of(kind) for kind in _KINDS)


def _find_rules(
    snapshot: Snapshot, home: str, account: str, namespace: str
) -> list[PolicyRule] | None:
    """Return what an account may do in a namespace; None if one of its roles is not known."""
    bindings: list[RoleBinding | ClusterRoleBinding] = [*snapshot.of(ClusterRoleBinding)]
    bindings += [
        binding for binding in snapshot.of(RoleBinding) if binding.metadata.namespace == namespace
    ]
    rules: list[PolicyRule] = []
    for binding in bindings:
        if any(subject.includes(home, account) for subject in binding.subjects):
            role = _find_role(snapshot, binding.role_ref, namespace)
            if role is None:
                return None
            rules += role.rules
    return rules


def _find_role(
    snapshot: Snapshot, ref: RoleRef, namespace: str
) -> RoleManifest | ClusterRole | None:
    roles: tuple[RoleManifest | ClusterRole, ...] = (
        snapshot.of(ClusterRole)
        if ref.kind == "ClusterRole"
        else tuple(
            role for role in snapshot.of(RoleManifest) if role.metadata.namespace == namespace
        )
    )
    return next((role for role in roles if role.metadata.name == ref.name), None)


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "engine-unwatched",
        Severity.ERROR,
        "No router watches an engine's namespace.",
        "The engine gets no requests: unless PDROUTER_NAMESPACES says otherwise, a router watches "
        "its own namespace only.",
        _find_unwatched,
    ),
    Check(
        "pods-forbidden",
        Severity.ERROR,
        "The router may not list or watch pods.",
        "It finds no engines, is never ready, and Envoy answers every request with an error.",
        _find_blindness,
    ),
    Check(
        "adapters-forbidden",
        Severity.WARNING,
        "The router may not list or watch ModelAdapters.",
        "Requests for an adapter's name get a 404.",
        _find_adapter_blindness,
    ),
    Check(
        "routes-forbidden",
        Severity.ERROR,
        "The router may not get HTTPRoutes, and no strategy is set.",
        "Requests without a strategy go by their model's HTTPRoute, whose status the router has to "
        "read first: they get a 503.",
        _find_route_blindness,
    ),
)
