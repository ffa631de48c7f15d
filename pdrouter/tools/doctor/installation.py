"""How the objects of a snapshot belong together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pdrouter.openai.headers import MODEL
from pdrouter.tools.doctor.engines import Engine, find_engines
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import (
    BackendPolicy,
    ClientPolicy,
    EnvoyProxy,
    ExtensionPolicy,
    ExtProc,
    PatchPolicy,
)
from pdrouter.tools.doctor.objects.gateway_api import (
    BackendRef,
    Gateway,
    GatewayClass,
    HttpRoute,
    ParametersRef,
)
from pdrouter.tools.doctor.objects.workloads import Deployment, Service
from pdrouter.tools.doctor.patches import Patched, find_clusters, find_ext_procs, find_routes
from pdrouter.tools.doctor.router import RouterDeployment, is_router, read_router
from pdrouter.tools.doctor.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Attachment:
    """An entry of an EnvoyExtensionPolicy that leads to the router, and what it is about.

    Attributes:
        policy: the policy.
        index: which of its entries it is.
        routers: the routers behind it.
        routes: the HTTPRoutes whose requests the router sees.
        gateways: namespace and name of the Gateways in front of it.
        clusters: clusters that patches add to these Gateways.
        patched_routes: routes that patches add to these Gateways.
    """

    policy: ExtensionPolicy
    index: int
    routers: tuple[RouterDeployment, ...]
    routes: tuple[HttpRoute, ...]
    gateways: frozenset[tuple[str, str]]
    clusters: tuple[Patched, ...]
    patched_routes: tuple[Patched, ...]

    @property
    def ext_proc(self) -> ExtProc:
        """The entry."""
        return self.policy.spec.ext_proc[self.index]

    def field(self, path: str) -> str:
        """Return the path of a field of the entry."""
        return f"spec.extProc[{self.index}].{path}"

    @property
    def filter_name(self) -> str:
        """The name that Envoy Gateway gives to the filter."""
        metadata = self.policy.metadata
        return (
            f"envoy.filters.http.ext_proc/envoyextensionpolicy/{metadata.namespace}/"
            f"{metadata.name}/extproc/{self.index}"
        )

    @property
    def original_dst(self) -> tuple[Patched, ...]:
        """Clusters that send a request to the address in one of its headers."""
        return tuple(cluster for cluster in self.clusters if cluster.text("type") == "ORIGINAL_DST")

    @property
    def steered_routes(self) -> tuple[Patched, ...]:
        """Patched routes to such clusters: the way that routed requests take, if there is one."""
        names = {cluster.text("name") for cluster in self.original_dst}
        return tuple(
            route for route in self.patched_routes if route.text("route", "cluster") in names
        )

    @property
    def prefill_timeout_s(self) -> float | None:
        """The longest deadline of a prefill; None if no router's is known."""
        return max(
            (router.prefill_timeout_s for router in self.routers if router.prefill_timeout_s),
            default=None,
        )

    @property
    def max_message_bytes(self) -> int | None:
        """The largest message that every router takes; None if no router's is known."""
        return min(
            (router.max_message_bytes for router in self.routers if router.max_message_bytes),
            default=None,
        )

    @property
    def routes_by_model(self) -> bool:
        """Whether requests without a strategy pass, by their model's own HTTPRoute."""
        return any(router.routes_by_model for router in self.routers)


@dataclass(frozen=True, slots=True)
class Installation:
    """The objects, and what they are to each other.

    Attributes:
        snapshot: the objects.
        routers: Deployments of the router.
        attachments: where Envoy calls it.
        engines: what it routes to.
    """

    snapshot: Snapshot
    routers: tuple[RouterDeployment, ...]
    attachments: tuple[Attachment, ...]
    engines: tuple[Engine, ...]

    @classmethod
    def examine(cls, snapshot: Snapshot) -> "Installation":
        """Return how the objects of a snapshot belong together."""
        routers = _find_routers(snapshot)
        return cls(
            snapshot,
            routers,
            tuple(_find_attachments(snapshot, routers)),
            tuple(find_engines(snapshot)),
        )

    def backend_policies(self, route: HttpRoute) -> list[BackendPolicy]:
        """Return the BackendTrafficPolicies that hold for a route.

        Those of its Gateways count if it has none of its own, or if its own are merged with them.
        """
        policies = self.snapshot.of(BackendPolicy)
        own = [policy for policy in policies if policy.applies_to(route)]
        if own and not any(policy.spec.merge_type for policy in own):
            return own
        gateways = self.gateways(route)
        return own + [
            policy
            for policy in policies
            if policy not in own and any(policy.applies_to(gateway) for gateway in gateways)
        ]

    def client_policies(self, gateway: Gateway) -> list[ClientPolicy]:
        """Return the ClientTrafficPolicies of a Gateway."""
        return [policy for policy in self.snapshot.of(ClientPolicy) if policy.applies_to(gateway)]

    def gateways(self, what: Attachment | HttpRoute) -> list[Gateway]:
        """Return the Gateways in front of the router or of a route, as far as they are known."""
        return [
            gateway
            for gateway in self.snapshot.of(Gateway)
            if (gateway.metadata.namespace, gateway.metadata.name) in what.gateways
        ]

    def proxies(self, gateway: Gateway) -> list[EnvoyProxy]:
        """Return the settings of a Gateway's Envoys."""
        wanted = []
        own = gateway.spec.infrastructure.parameters_ref
        if own is not None:
            wanted.append(_name_proxy(own, gateway.metadata.namespace))
        for gateway_class in self.snapshot.of(GatewayClass):
            shared = gateway_class.spec.parameters_ref
            if shared and gateway_class.metadata.name == gateway.spec.gateway_class_name:
                wanted.append(_name_proxy(shared, shared.namespace))
        return [proxy for proxy in self.snapshot.of(EnvoyProxy) if proxy.ref in wanted]

    def service(self, backend: BackendRef, namespace: str) -> Service | None:
        """Return the Service that a backend names; None if it is not known."""
        return _find_service(self.snapshot, backend, namespace)

    def model_routes(self, attachment: Attachment) -> list[HttpRoute]:
        """Return the HTTPRoutes that take requests by their `model` header."""
        return [
            route
            for route in self.snapshot.of(HttpRoute)
            if route.gateways & attachment.gateways
            and any(
                header.name.lower() == MODEL
                for rule in route.spec.rules
                for match in rule.matches
                for header in match.headers
            )
        ]


def _name_proxy(ref: ParametersRef, namespace: str) -> ObjectRef:
    return ObjectRef("EnvoyProxy", namespace, ref.name)


def _find_service(snapshot: Snapshot, backend: BackendRef, namespace: str) -> Service | None:
    wanted = ObjectRef("Service", backend.namespace or namespace, backend.name)
    if backend.kind != "Service":
        return None
    found = snapshot.find(wanted)
    return found if isinstance(found, Service) else None


def _find_routers(snapshot: Snapshot) -> tuple[RouterDeployment, ...]:
    """Return the Deployments that look like the router, else those that Envoy calls."""
    found = [
        read_router(deployment, index)
        for deployment in snapshot.of(Deployment)
        for index, container in enumerate(deployment.spec.template.spec.containers)
        if is_router(container)
    ]
    if found:
        return tuple(found)
    return tuple(
        read_router(deployment, 0)
        for deployment in snapshot.of(Deployment)
        if deployment.spec.template.spec.containers
        and any(
            _leads_to(snapshot, policy, ext_proc, deployment)
            for policy in snapshot.of(ExtensionPolicy)
            for ext_proc in policy.spec.ext_proc
        )
    )


def _leads_to(
    snapshot: Snapshot, policy: ExtensionPolicy, ext_proc: ExtProc, deployment: Deployment
) -> bool:
    for backend in ext_proc.backend_refs:
        service = _find_service(snapshot, backend, policy.metadata.namespace)
        labels = deployment.spec.template.metadata.labels
        if service is not None and service.selects(deployment.metadata.namespace, labels):
            return True
    return False


def _find_attachments(
    snapshot: Snapshot, routers: tuple[RouterDeployment, ...]
) -> Iterator[Attachment]:
    """Yield the ext_proc entries that lead to a router; all of them where that is not known."""
    found = [
        (
            policy,
            index,
            [router for router in routers if _leads_to(snapshot, policy, entry, router.deployment)],
        )
        for policy in snapshot.of(ExtensionPolicy)
        for index, entry in enumerate(policy.spec.ext_proc)
    ]
    known = any(behind for _, _, behind in found)
    for policy, index, behind in found:
        if behind or not known:
            yield _attach(snapshot, policy, index, tuple(behind or routers))


def _attach(
    snapshot: Snapshot, policy: ExtensionPolicy, index: int, routers: tuple[RouterDeployment, ...]
) -> Attachment:
    others = [each for each in snapshot.of(ExtensionPolicy) if each is not policy]
    direct = {
        (gateway.metadata.namespace, gateway.metadata.name)
        for gateway in snapshot.of(Gateway)
        if policy.applies_to(gateway)
    }
    routes = tuple(
        route
        for route in snapshot.of(HttpRoute)
        if policy.applies_to(route)
        or (route.gateways & direct and not any(other.applies_to(route) for other in others))
    )
    gateways = frozenset(direct.union(*(route.gateways for route in routes)))
    return Attachment(
        policy,
        index,
        routers,
        routes,
        gateways,
        tuple(_find_patched(snapshot, gateways, find_clusters)),
        tuple(_find_patched(snapshot, gateways, find_routes)),
    )


def _find_patched(
    snapshot: Snapshot,
    gateways: frozenset[tuple[str, str]],
    find: Callable[[PatchPolicy], Iterator[Patched]],
) -> Iterator[Patched]:
    """Yield what patches add to Gateways; to any, where none in front of the router is known."""
    for policy in snapshot.of(PatchPolicy):
        target = policy.spec.target_ref
        named = target is None or (policy.metadata.namespace, target.name) in gateways
        if named or not gateways or (target is not None and target.kind != "Gateway"):
            yield from find(policy)


def find_patched_ext_procs(snapshot: Snapshot) -> Iterator[Patched]:
    """Yield the ext_proc filters that patches add."""
    for policy in snapshot.of(PatchPolicy):
        yield from find_ext_procs(policy)
