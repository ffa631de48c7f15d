"""Objects of the Gateway API, as far as they bear on the router."""

from typing import Any

import msgspec

from pdrouter.tools.doctor.objects.base import KubeObject, Selector
from pdrouter.tools.doctor.objects.status import Controlled
from pdrouter.tools.doctor.quantities import Seconds


class ParentRef(msgspec.Struct, frozen=True, rename="camel"):
    """The Gateway that a route belongs to."""

    name: str
    kind: str = "Gateway"
    namespace: str = ""
    section_name: str = ""


class PathMatch(msgspec.Struct, frozen=True):
    """A condition on the path."""

    type: str = "PathPrefix"
    value: str = "/"


class HeaderMatch(msgspec.Struct, frozen=True):
    """A condition on a header."""

    name: str


class RouteMatch(msgspec.Struct, frozen=True, rename="camel"):
    """Which requests a rule takes."""

    path: PathMatch = PathMatch()
    method: str | None = None
    headers: list[HeaderMatch] = []
    query_params: list[Any] = []


class HeaderValue(msgspec.Struct, frozen=True):
    name: str


class HeaderModifier(msgspec.Struct, frozen=True, rename={"put": "set"}):
    """Changes headers."""

    put: list[HeaderValue] = []
    add: list[HeaderValue] = []
    remove: list[str] = []

    @property
    def names(self) -> set[str]:
        """The headers that it changes, in lower case."""
        changed = [header.name for header in (*self.put, *self.add)] + self.remove
        return {name.lower() for name in changed}


class RouteFilter(msgspec.Struct, frozen=True, rename="camel"):
    """What a rule does to a request."""

    request_header_modifier: HeaderModifier | None = None


class BackendRef(msgspec.Struct, frozen=True):
    """Where requests go."""

    name: str
    kind: str = "Service"
    namespace: str = ""
    port: int | None = None
    filters: list[RouteFilter] = []


class RouteTimeouts(msgspec.Struct, frozen=True, rename="camel"):
    """Limits on a request."""

    request: Seconds | None = None
    backend_request: Seconds | None = None


class RouteRetry(msgspec.Struct, frozen=True):
    """Whether a request is tried again."""

    codes: list[int] = []
    attempts: int | None = None


class RouteRule(msgspec.Struct, frozen=True, rename="camel"):
    """A rule of an HTTPRoute."""

    matches: list[RouteMatch] = []
    filters: list[RouteFilter] = []
    backend_refs: list[BackendRef] = []
    timeouts: RouteTimeouts = RouteTimeouts()
    retry: RouteRetry | None = None


class HttpRouteSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of an HTTPRoute."""

    parent_refs: list[ParentRef] = []
    hostnames: list[str] = []
    rules: list[RouteRule] = []


class HttpRoute(Controlled, frozen=True):
    """An HTTPRoute."""

    spec: HttpRouteSpec = HttpRouteSpec()

    @property
    def gateways(self) -> set[tuple[str, str]]:
        """Namespace and name of the Gateways that it belongs to."""
        return {
            (parent.namespace or self.metadata.namespace, parent.name)
            for parent in self.spec.parent_refs
            if parent.kind == "Gateway"
        }


class ParametersRef(msgspec.Struct, frozen=True):
    """The EnvoyProxy that a Gateway or its class uses."""

    kind: str
    name: str
    namespace: str = ""


class Infrastructure(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.infrastructure` of a Gateway."""

    parameters_ref: ParametersRef | None = None


class RouteNamespaces(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """The namespaces whose routes a listener takes."""

    origin: str = "Same"
    selector: Selector | None = None


class AllowedRoutes(msgspec.Struct, frozen=True):
    """The routes that a listener takes."""

    namespaces: RouteNamespaces = RouteNamespaces()


class Listener(msgspec.Struct, frozen=True, rename="camel"):
    """A port that a Gateway listens on."""

    name: str
    port: int = 0
    protocol: str = ""
    allowed_routes: AllowedRoutes = AllowedRoutes()


class GatewaySpec(msgspec.Struct, frozen=True, rename="camel"):
    gateway_class_name: str = ""
    infrastructure: Infrastructure = Infrastructure()
    listeners: list[Listener] = []


class Gateway(Controlled, frozen=True):
    spec: GatewaySpec = GatewaySpec()


class GatewayClassSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a GatewayClass."""

    parameters_ref: ParametersRef | None = None


class GatewayClass(Controlled, frozen=True):
    """A GatewayClass."""

    spec: GatewayClassSpec = GatewayClassSpec()


class ServiceTarget(msgspec.Struct, frozen=True, rename="camel"):
    """A Service that a policy is about."""

    kind: str
    name: str
    section_name: str = ""


class BackendTlsSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of a BackendTLSPolicy."""

    target_refs: list[ServiceTarget] = []


class BackendTlsPolicy(Controlled, frozen=True):
    """A BackendTLSPolicy: Envoy speaks TLS to a Service."""

    spec: BackendTlsSpec = BackendTlsSpec()


class GrantedFrom(msgspec.Struct, frozen=True):
    """Objects that may name others."""

    kind: str
    namespace: str


class GrantedTo(msgspec.Struct, frozen=True):
    """Objects that may be named; all of the kind without a name."""

    kind: str
    name: str = ""


class GrantSpec(msgspec.Struct, frozen=True, rename={"origins": "from", "targets": "to"}):
    """`spec` of a ReferenceGrant."""

    origins: list[GrantedFrom] = []
    targets: list[GrantedTo] = []


class ReferenceGrant(KubeObject, frozen=True):
    """A ReferenceGrant: objects of other namespaces may name some of its own."""

    spec: GrantSpec = GrantSpec()

    def allows(self, kind: str, namespace: str, target: str, name: str) -> bool:
        """Return whether objects of a kind and namespace may name an object of its namespace."""
        return any(
            (origin.kind, origin.namespace) == (kind, namespace) for origin in self.spec.origins
        ) and any(
            granted.kind == target and granted.name in ("", name) for granted in self.spec.targets
        )


class InferencePool(Controlled, frozen=True):
    """An InferencePool (`inference.networking.k8s.io`)."""
