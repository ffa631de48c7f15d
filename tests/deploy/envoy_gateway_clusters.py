"""The clusters that Envoy Gateway makes of Services and of the settings that policies have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from manifests import Object, ext_proc, find

ROUTER = "envoyextensionpolicy"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_POLICIES = "type.googleapis.com/envoy.extensions.load_balancing_policies"


def name_backend(service: str) -> str:
    """Return the name of the cluster of a route's Service."""
    return f"httproute/{service}"


def make_clusters(
    objects: Sequence[Object], endpoints: Mapping[str, Sequence[str]], routes: Iterable[Object]
) -> Iterator[Object]:
    """Yield the cluster of the routers, and one for each Service that a route leads to."""
    processor = ext_proc(objects)
    settings = processor.get("backendSettings", {})
    service = processor["backendRefs"][0]["name"]
    yield {**make_router_cluster(settings, endpoints[service]), **_make_tls(objects, service)}
    traffic = find_traffic(objects)
    backends = {
        route["rule"]["backendRefs"][0]["name"]: route["object"]["metadata"]["name"]
        for route in routes
    }
    for service, route in backends.items():
        backend = make_backend(service, traffic.get(route, {}), endpoints[service])
        yield {**backend, **_make_tls(objects, service)}


def find_traffic(objects: Sequence[Object]) -> Mapping[str, Object]:
    """Return what BackendTrafficPolicies say of HTTPRoutes, by the name of the route."""
    return {
        reference["name"]: policy["spec"]
        for policy in objects
        if policy["kind"] == "BackendTrafficPolicy"
        for reference in policy["spec"]["targetRefs"]
    }


def make_router_cluster(settings: Object, addresses: Sequence[str]) -> Object:
    """Return the cluster of the routers, with what `backendSettings` say."""
    cluster: Object = {
        "name": ROUTER,
        "connect_timeout": "10s",
        "load_balancing_policy": _policy("least_request", "LeastRequest"),
        "circuit_breakers": _make_breakers(settings.get("circuitBreaker", {})),
        "load_assignment": _assign(ROUTER, addresses),
        "ignore_health_on_host_removal": True,
        **_speak({"http2_protocol_options": dict(_make_http2(settings.get("http2", {})))}),
    }
    health = settings.get("healthCheck", {})
    if "active" in health:
        cluster["health_checks"] = [_make_health_check(health["active"])]
    if "passive" in health:
        cluster["outlier_detection"] = _make_outlier_detection(health["passive"])
    if "panicThreshold" in health:
        cluster["common_lb_config"] = {
            "healthy_panic_threshold": {"value": health["panicThreshold"]}
        }
    return cluster


def _make_tls(objects: Sequence[Object], service: str) -> Object:
    """Return what a BackendTLSPolicy adds to the cluster of a Service; nothing without one."""
    policies = [
        one["spec"]
        for one in objects
        if one["kind"] == "BackendTLSPolicy"
        and any(target["name"] == service for target in one["spec"]["targetRefs"])
    ]
    if not policies:
        return {}
    (policy,) = policies
    validation = policy["validation"]
    authority = find(objects, "ConfigMap", validation["caCertificateRefs"][0]["name"])
    settings = find(objects, "EnvoyProxy")["spec"].get("backendTLS", {})
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": validation["hostname"],
        "common_tls_context": {
            "alpn_protocols": settings.get("alpnProtocols", []),
            "validation_context": {
                "trusted_ca": {"inline_string": authority["data"]["ca.crt"]},
                "match_typed_subject_alt_names": [
                    {"san_type": "DNS", "matcher": {"exact": validation["hostname"]}}
                ],
            },
        },
    }
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    return {"transport_socket": socket}


def _make_http2(http2: Object) -> Iterator[tuple[str, Any]]:
    if "maxConcurrentStreams" in http2:
        yield "max_concurrent_streams", http2["maxConcurrentStreams"]


def _make_breakers(breaker: Object) -> Object:
    fields = {
        "maxConnections": "max_connections",
        "maxPendingRequests": "max_pending_requests",
        "maxParallelRequests": "max_requests",
        "maxParallelRetries": "max_retries",
    }
    # Envoy Gateway's defaults; it has 1,024 for retries as well, where Envoy has 3.
    return {"thresholds": [{its: breaker.get(ours, 1024) for ours, its in fields.items()}]}


def _make_health_check(active: Object) -> Object:
    assert active["type"] == "GRPC"
    return {
        "timeout": active["timeout"],
        "interval": active["interval"],
        "unhealthy_threshold": active["unhealthyThreshold"],
        "healthy_threshold": active["healthyThreshold"],
        "grpc_health_check": {},
    }


def _make_outlier_detection(passive: Object) -> Object:
    return {
        "split_external_local_origin_errors": passive["splitExternalLocalOriginErrors"],
        "consecutive_local_origin_failure": passive["consecutiveLocalOriginFailures"],
        "consecutive_5xx": passive.get("consecutive5XxErrors", 5),
        "interval": passive["interval"],
        "base_ejection_time": passive["baseEjectionTime"],
        "max_ejection_percent": passive["maxEjectionPercent"],
        "always_eject_one_host": False,
    }


def make_backend(service: str, policy: Object, addresses: Sequence[str]) -> Object:
    """Return the cluster of a Service, with what a BackendTrafficPolicy says."""
    name = name_backend(service)
    override = policy.get("loadBalancer", {}).get("endpointOverride")
    fallback = _policy("least_request", "LeastRequest")
    balancing = fallback
    if override is not None:
        balancing = _policy(
            "override_host",
            "OverrideHost",
            override_host_sources=override["extractFrom"],
            fallback_policy=fallback,
        )
    idle = policy.get("timeout", {}).get("http", {}).get("connectionIdleTimeout")
    common = {} if idle is None else {"common_http_protocol_options": {"idle_timeout": idle}}
    return {
        "name": name,
        "load_balancing_policy": balancing,
        "circuit_breakers": _make_breakers(policy.get("circuitBreaker", {})),
        "load_assignment": _assign(name, addresses),
        **_speak({"http_protocol_options": {}}, **common),
    }


def _speak(protocol: Object, **common: Object) -> Object:
    options = {
        "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
        "explicit_http_config": protocol,
        **common,
    }
    return {"typed_extension_protocol_options": {_HTTP_OPTIONS: options}}


def _policy(name: str, message: str, **settings: Any) -> Object:
    config = {"@type": f"{_POLICIES}.{name}.v3.{message}", **settings}
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]}


def _assign(cluster: str, addresses: Sequence[str]) -> Object:
    hosts = [address.rpartition(":") for address in addresses]
    return {
        "cluster_name": cluster,
        "endpoints": [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {
                                "socket_address": {"address": host, "port_value": int(port)}
                            }
                        }
                    }
                    for host, _, port in hosts
                ]
            }
        ],
    }
