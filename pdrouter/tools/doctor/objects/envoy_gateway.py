"""Objects of Envoy Gateway, as far as they bear on the router."""

from typing import Any

import msgspec

from pdrouter.tools.doctor.objects.base import KubeObject, MatchExpression, Selector
from pdrouter.tools.doctor.objects.gateway_api import BackendRef
from pdrouter.tools.doctor.objects.status import Controlled
from pdrouter.tools.doctor.quantities import Seconds, Size


class BackendTls(msgspec.Struct, frozen=True, rename={"alpn_protocols": "alpnProtocols"}):
    """How Envoy speaks TLS to backends."""

    alpn_protocols: list[str] = []


class EnvoyProxySpec(
    msgspec.Struct,
    frozen=True,
    rename={
        "routing_type": "routingType",
        "backend_tls": "backendTLS",
        "merge_gateways": "mergeGateways",
    },
):
    """`spec` of an EnvoyProxy."""

    routing_type: str = "Endpoint"
    backend_tls: BackendTls = BackendTls()
    merge_gateways: bool = False


class EnvoyProxy(Controlled, frozen=True):
    """An EnvoyProxy."""

    spec: EnvoyProxySpec = EnvoyProxySpec()


class TargetRef(msgspec.Struct, frozen=True, rename="camel"):
    """An object that a policy is about."""

    kind: str
    name: str
    section_name: str = ""


class TargetNamespaces(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """The namespaces that a target selector looks into."""

    origin: str = "Same"


class TargetSelector(msgspec.Struct, frozen=True, rename="camel"):
    """Objects that a policy is about, by their labels."""

    kind: str
    match_labels: dict[str, str] = {}
    match_expressions: list[MatchExpression] = []
    namespaces: TargetNamespaces = TargetNamespaces()


class PolicySpec(msgspec.Struct, frozen=True, rename="camel"):
    """What the specs of Envoy Gateway's policies have in common."""

    target_ref: TargetRef | None = None
    target_refs: list[TargetRef] = []
    target_selectors: list[TargetSelector] = []


class Policy(Controlled, frozen=True):
    """A policy of Envoy Gateway."""

    spec: PolicySpec = PolicySpec()

    @property
    def targets(self) -> list[TargetRef]:
        """The objects that it names."""
        return self.spec.target_refs or ([self.spec.target_ref] if self.spec.target_ref else [])

    def applies_to(self, thing: KubeObject) -> bool:
        """Return whether it is about an object."""
        same_namespace = thing.metadata.namespace == self.metadata.namespace
        if same_namespace and any(
            (target.kind, target.name) == (thing.kind, thing.metadata.name)
            for target in self.targets
        ):
            return True
        return any(
            selector.kind == thing.kind
            and (same_namespace or selector.namespaces.origin == "All")
            and Selector(selector.match_labels, selector.match_expressions).matches(
                thing.metadata.labels
            )
            for selector in self.spec.target_selectors
        )


class CircuitBreaker(msgspec.Struct, frozen=True, rename="camel"):
    """Limits on what is in flight; each is 1,024 unless set."""

    max_connections: int = 1024
    max_parallel_requests: int = 1024
    max_pending_requests: int = 1024


class Connection(msgspec.Struct, frozen=True, rename="camel"):
    """Settings of connections to a backend."""

    buffer_limit: Size | None = None


class RetryOn(msgspec.Struct, frozen=True, rename="camel"):
    """After what a request is tried again."""

    triggers: list[str] = []
    http_status_codes: list[int] = []


class PerRetry(msgspec.Struct, frozen=True):
    """Limits of each try."""

    timeout: Seconds | None = None


class RetryPolicy(msgspec.Struct, frozen=True, rename="camel"):
    """Whether a request is tried again, and how often."""

    num_retries: int = 2
    retry_on: RetryOn = RetryOn()
    per_retry: PerRetry = PerRetry()


class ActiveCheck(msgspec.Struct, frozen=True):
    """A health check that Envoy sends by itself."""

    type: str = ""


class HealthCheck(msgspec.Struct, frozen=True):
    """How Envoy finds out whether a backend is well."""

    active: ActiveCheck | None = None


class BackendSettings(msgspec.Struct, frozen=True, rename="camel"):
    """How the cluster of an ext_proc server is set up."""

    connection: Connection = Connection()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    retry: RetryPolicy | None = None
    health_check: HealthCheck = HealthCheck()


class ProcessedPart(msgspec.Struct, frozen=True):
    """What is sent to the ext_proc server of a request or response; without a body, headers."""

    body: str | None = None


class ProcessingMode(msgspec.Struct, frozen=True, rename="camel"):
    """What is sent to the ext_proc server."""

    allow_mode_override: bool = False
    request: ProcessedPart | None = None
    response: ProcessedPart | None = None


class ExtProc(msgspec.Struct, frozen=True, rename="camel"):
    """An entry of `extProc`."""

    backend_refs: list[BackendRef] = []
    backend_settings: BackendSettings = BackendSettings()
    message_timeout: Seconds | None = None
    fail_open: bool = False
    processing_mode: ProcessingMode = ProcessingMode()


class ExtensionPolicySpec(PolicySpec, frozen=True, rename="camel"):
    """`spec` of an EnvoyExtensionPolicy."""

    ext_proc: list[ExtProc] = []


class ExtensionPolicy(Policy, frozen=True):
    """An EnvoyExtensionPolicy."""

    spec: ExtensionPolicySpec = ExtensionPolicySpec()


class NameMatch(msgspec.Struct, frozen=True):
    """A condition on the name of a header."""

    value: str
    type: str = "Exact"


class EarlyHeaders(msgspec.Struct, frozen=True, rename="camel"):
    """Changes headers before any filter runs."""

    remove: list[str] = []
    remove_on_match: list[NameMatch] = []


class ClientHeaders(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.headers` of a ClientTrafficPolicy."""

    early_request_headers: EarlyHeaders = EarlyHeaders()
    max_request_header_limit: Size | None = None


class ConnectionLimit(msgspec.Struct, frozen=True, rename="camel"):
    """Limits on connections of clients."""

    max_stream_duration: Seconds | None = None


class ClientConnection(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.connection` of a ClientTrafficPolicy."""

    buffer_limit: Size | None = None
    connection_limit: ConnectionLimit = ConnectionLimit()


class Http2(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.http2` of a ClientTrafficPolicy."""

    initial_stream_window_size: Size | None = None


class ClientHttpTimeout(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.timeout.http` of a ClientTrafficPolicy."""

    stream_idle_timeout: Seconds | None = None


class ClientTimeout(msgspec.Struct, frozen=True):
    """`spec.timeout` of a ClientTrafficPolicy."""

    http: ClientHttpTimeout = ClientHttpTimeout()


class ClientPolicySpec(PolicySpec, frozen=True, rename="camel"):
    """`spec` of a ClientTrafficPolicy."""

    connection: ClientConnection = ClientConnection()
    http2: Http2 = Http2()
    timeout: ClientTimeout = ClientTimeout()
    headers: ClientHeaders = ClientHeaders()


class ClientPolicy(Policy, frozen=True):
    """A ClientTrafficPolicy."""

    spec: ClientPolicySpec = ClientPolicySpec()


class OverrideSource(msgspec.Struct, frozen=True):
    """Where the address of the chosen pod is found."""

    header: str = ""


class EndpointOverride(msgspec.Struct, frozen=True, rename="camel"):
    """Sends a request to the endpoint that it names."""

    extract_from: list[OverrideSource] = []


class LoadBalancer(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.loadBalancer` of a BackendTrafficPolicy."""

    endpoint_override: EndpointOverride | None = None

    @property
    def headers(self) -> set[str]:
        """The headers from which an endpointOverride takes the address, in lower case."""
        override = self.endpoint_override or EndpointOverride()
        return {source.header.lower() for source in override.extract_from if source.header}


class BackendHttpTimeout(msgspec.Struct, frozen=True, rename="camel"):
    """`spec.timeout.http` of a BackendTrafficPolicy."""

    request_timeout: Seconds | None = None
    max_stream_duration: Seconds | None = None
    stream_idle_timeout: Seconds | None = None


class BackendTimeout(msgspec.Struct, frozen=True):
    """`spec.timeout` of a BackendTrafficPolicy."""

    http: BackendHttpTimeout = BackendHttpTimeout()


class BackendPolicySpec(PolicySpec, frozen=True, rename="camel"):
    """`spec` of a BackendTrafficPolicy."""

    load_balancer: LoadBalancer = LoadBalancer()
    timeout: BackendTimeout = BackendTimeout()
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    retry: RetryPolicy | None = None
    routing_type: str | None = None
    merge_type: str | None = None


class BackendPolicy(Policy, frozen=True):
    """A BackendTrafficPolicy."""

    spec: BackendPolicySpec = BackendPolicySpec()


class PatchOperation(msgspec.Struct, frozen=True, rename="camel"):
    """What a patch does, at a path or, where there is a `json_path`, below what that finds."""

    op: str = ""
    path: str = ""
    json_path: str = ""
    value: Any = None


class Patch(msgspec.Struct, frozen=True):
    """An entry of `jsonPatches`."""

    type: str = ""
    name: str = ""
    operation: PatchOperation = PatchOperation()


class PatchPolicySpec(msgspec.Struct, frozen=True, rename="camel"):
    """`spec` of an EnvoyPatchPolicy."""

    target_ref: TargetRef | None = None
    json_patches: list[Patch] = []


class PatchPolicy(Controlled, frozen=True):
    """An EnvoyPatchPolicy."""

    spec: PatchPolicySpec = PatchPolicySpec()


class SecurityPolicy(Policy, frozen=True):
    """A SecurityPolicy."""


class Backend(Controlled, frozen=True):
    """A Backend: an address outside the cluster, or a way to find one."""
