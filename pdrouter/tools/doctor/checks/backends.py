"""Whether Envoy sends the decode leg to the pod that the router names."""

from collections.abc import Iterator

from pdrouter.cluster.pods import Role
from pdrouter.openai.headers import DESTINATION_ENDPOINT, TARGET_POD
from pdrouter.tools.doctor.checks.headers import steering_header
from pdrouter.tools.doctor.engines import Engine
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Attachment, Installation
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.objects.envoy_gateway import BackendPolicy
from pdrouter.tools.doctor.objects.gateway_api import BackendRef, HttpRoute
from pdrouter.tools.doctor.objects.workloads import Service, ServicePort

_SET_BY_ROUTER = (DESTINATION_ENDPOINT, TARGET_POD)


def _find_ignored_choices(installation: Installation) -> Iterator[Defect]:
    for attachment in installation.attachments:
        for cluster in attachment.original_dst:
            header = steering_header(cluster)
            if header not in _SET_BY_ROUTER:
                yield Defect(
                    cluster.policy,
                    f"{cluster.field}.original_dst_lb_config",
                    f"the address is read from {header}" if header else "no header is read",
                    f"set use_http_header to true and http_header_name to {TARGET_POD}",
                )
        if not attachment.steered_routes and not attachment.routes_by_model:
            for route in attachment.routes:
                yield from _judge_override(installation, route)


def _judge_override(installation: Installation, route: HttpRoute) -> Iterator[Defect]:
    if not installation.snapshot.has_read(BackendPolicy, route.metadata.namespace):
        return
    policies = installation.backend_policies(route)
    field = "spec.loadBalancer.endpointOverride.extractFrom"
    fix = f"set it to [{{header: {DESTINATION_ENDPOINT}}}]"
    overriding = [policy for policy in policies if policy.spec.load_balancer.endpoint_override]
    if not overriding:
        ref = policies[0].ref if policies else route.ref
        place = field if policies else f"BackendTrafficPolicy {field}"
        yield Defect(ref, place, "no policy of the route has an endpointOverride", fix)
    for policy in overriding:
        names = policy.spec.load_balancer.headers
        if not names & set(_SET_BY_ROUTER):
            yield Defect(
                policy.ref, field, f"it reads {', '.join(sorted(names)) or 'no header'}", fix
            )
        yield from _judge_routing_type(installation, route, policy)


def _judge_routing_type(
    installation: Installation, route: HttpRoute, policy: BackendPolicy
) -> Iterator[Defect]:
    """Judge what Envoy knows of a Service; a policy's word counts before an EnvoyProxy's."""
    said: list[tuple[ObjectRef, str | None]] = [(policy.ref, policy.spec.routing_type)]
    if policy.spec.routing_type is None:
        said = [
            (proxy.ref, proxy.spec.routing_type)
            for gateway in installation.gateways(route)
            for proxy in installation.proxies(gateway)
        ]
    for ref, routing_type in said:
        if routing_type == "Service":
            yield Defect(
                ref,
                "spec.routingType",
                "Service: Envoy knows one address for all pods",
                "set it to Endpoint",
            )


def _find_prefill_fallbacks(installation: Installation) -> Iterator[Defect]:
    for service, _ in _decode_services(installation):
        hit = [
            engine
            for engine in installation.engines
            if engine.role is Role.PREFILL and _selects(service, engine)
        ]
        if hit:
            yield Defect(
                service.ref,
                "spec.selector",
                f"it selects prefill pods too: {_name(hit)}",
                "add role-name: decode",
            )


def _find_outsiders(installation: Installation) -> Iterator[Defect]:
    services = [service for service, _ in _decode_services(installation)]
    if not services or len(services) < _count_backends(installation):
        return
    for engine in installation.engines:
        if engine.role is Role.DECODE and not any(_selects(each, engine) for each in services):
            yield Defect(
                engine.ref,
                f"{engine.prefix}metadata.labels",
                f"{_name_services(services)} does not select it",
                "make the route's Service select it",
            )


def _find_other_ports(installation: Installation) -> Iterator[Defect]:
    pairs = list(_decode_services(installation))
    for engine in installation.engines:
        if engine.role is not Role.DECODE or engine.pod is None:
            continue
        ports = {
            _resolve(port, engine)
            for service, port in pairs
            if port is not None and _selects(service, engine)
        }
        others = [rank.port for rank in engine.ranks if rank.port not in ports]
        if ports and others:
            shown = ", ".join(sorted(str(port) for port in ports))
            many = len(engine.ranks) > 1 and engine.ranks[0].port != engine.ranks[-1].port
            yield Defect(
                engine.ref,
                f"{engine.prefix}metadata.annotations",
                f"its port is {others[0]}; its Service has {shown}",
                "let the route name a port of the Service for each rank's, or put all ranks "
                "behind one (pdrouter/data-parallel-size)"
                if many
                else "make model.aibrix.ai/port and the Service's targetPort the same",
            )


def _decode_services(
    installation: Installation,
) -> Iterator[tuple[Service, ServicePort | None]]:
    """Yield the Services among whose pods an endpointOverride chooses, with the port."""
    for attachment in installation.attachments:
        for backend, namespace in _overridden_backends(installation, attachment):
            service = installation.service(backend, namespace)
            if service is not None:
                yield (
                    service,
                    next((port for port in service.spec.ports if port.port == backend.port), None),
                )


def _count_backends(installation: Installation) -> int:
    return sum(
        1
        for attachment in installation.attachments
        for _ in _overridden_backends(installation, attachment)
    )


def _overridden_backends(
    installation: Installation, attachment: Attachment
) -> Iterator[tuple[BackendRef, str]]:
    if attachment.steered_routes:
        return
    for route in attachment.routes:
        if any(
            policy.spec.load_balancer.endpoint_override
            for policy in installation.backend_policies(route)
        ):
            for rule in route.spec.rules:
                for backend in rule.backend_refs:
                    yield backend, route.metadata.namespace


def _selects(service: Service, engine: Engine) -> bool:
    return service.selects(engine.metadata.namespace, engine.metadata.labels)


def _resolve(port: ServicePort, engine: Engine) -> int | str:
    target = port.target_port or port.port
    if isinstance(target, int):
        return target
    return next((each.container_port for each in engine.ports if each.name == target), target)


def _name(engines: list[Engine]) -> str:
    return ", ".join(str(engine.ref) for engine in engines)


def _name_services(services: list[Service]) -> str:
    return ", ".join(str(service.ref) for service in services)


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "pod-choice-ignored",
        Severity.ERROR,
        "Nothing sends a request to the pod that the router has chosen.",
        "Envoy balances on its own: the decode leg reaches a pod that knows nothing of the "
        "prefill, or no engine at all.",
        _find_ignored_choices,
    ),
    Check(
        "fallback-reaches-prefill",
        Severity.ERROR,
        "The Service of the decode pods selects prefill pods as well.",
        "Where Envoy does not know the named pod it falls back to any pod of the Service, without "
        "saying so: a prefill pod would decode.",
        _find_prefill_fallbacks,
    ),
    Check(
        "decode-pod-outside-service",
        Severity.ERROR,
        "A decode pod is not among the endpoints of the route's Service.",
        "An endpointOverride chooses among these endpoints only; for any other Envoy falls back to "
        "another pod, without saying so.",
        _find_outsiders,
    ),
    Check(
        "port-not-in-service",
        Severity.ERROR,
        "A decode pod's port differs from that of the route's Service.",
        "The router names ip:port; Envoy knows the pod under another port and falls back to "
        "another pod, without saying so.",
        _find_other_ports,
    ),
)
