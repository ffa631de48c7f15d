"""The Envoy clusters: the routers, and the pods that serve the decode leg."""

from collections.abc import Iterable
from datetime import timedelta

from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request import (
    v3 as least_request,
)
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host import (
    v3 as override_host,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream_http
from envoy_data_plane.envoy.type import v3 as type_v3
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.openai.headers import DESTINATION_ENDPOINT, TARGET_POD
from pdrouter.settings.choices import Routing
from pdrouter.tools.envoy_config.options import (
    MAX_HEADER_KB,
    MAX_HEADERS,
    Address,
    EnvoyConfig,
)
from pdrouter.tools.envoy_config.pod_tls import build_pod_tls

ROUTER_CLUSTER = "pdrouter"
POD_CLUSTER = "pods"

_CONNECT_TIMEOUT = timedelta(seconds=5)
# uvicorn, in front of vLLM and SGLang, closes a connection after 5 idle seconds. Without retries a
# request must not meet that close, so Envoy forgets the connection first.
_POD_IDLE_TIMEOUT = timedelta(seconds=4)
# A pod's host object and its statistics go after this time without a request (Envoy: 5 s).
_POD_CLEANUP_INTERVAL = timedelta(minutes=10)
# Envoy's default number of frames that may wait, the largest that it takes, and their usual size.
_LEAST_FRAMES, _MOST_FRAMES, _FRAME_BYTES = 10_000, 2**32 - 1, 16 * 1024
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def build_router_cluster(config: EnvoyConfig) -> cluster.Cluster:
    """Builds the cluster of the routers: HTTP/2, health-checked, least loaded first."""
    resolved = all(address.is_ip for address in config.routers)
    return cluster.Cluster(
        name=ROUTER_CLUSTER,
        type=cluster.ClusterDiscoveryType.STATIC
        if resolved
        else cluster.ClusterDiscoveryType.STRICT_DNS,
        dns_lookup_family=cluster.ClusterDnsLookupFamily.V4_PREFERRED,
        connect_timeout=_CONNECT_TIMEOUT,
        lb_policy=cluster.ClusterLbPolicy.LEAST_REQUEST,
        # Send to routers that are not healthy only if none is, instead of below one half.
        common_lb_config=cluster.ClusterCommonLbConfig(
            healthy_panic_threshold=type_v3.Percent(value=1.0)
        ),
        health_checks=[_router_health_check()] if config.router_health_checks else [],
        circuit_breakers=_circuit_breakers(config),
        typed_extension_protocol_options={
            _HTTP_OPTIONS: Any.pack(
                upstream_http.HttpProtocolOptions(
                    explicit_http_config=upstream_http.HttpProtocolOptionsExplicitHttpConfig(
                        http2_protocol_options=_router_http2(config)
                    )
                )
            )
        },
        transport_socket=_router_tls(config) if config.router_ca_file else None,
        load_assignment=_load_assignment(ROUTER_CLUSTER, config.routers),
    )


def build_pod_cluster(config: EnvoyConfig) -> cluster.Cluster:
    """Builds the cluster through which Envoy reaches the pod that the router chose."""
    pods = cluster.Cluster(
        name=POD_CLUSTER,
        connect_timeout=_CONNECT_TIMEOUT,
        circuit_breakers=_circuit_breakers(config),
        transport_socket=None if config.pod_tls is None else build_pod_tls(config.pod_tls),
        typed_extension_protocol_options={
            _HTTP_OPTIONS: Any.pack(
                upstream_http.HttpProtocolOptions(
                    common_http_protocol_options=core.HttpProtocolOptions(
                        idle_timeout=_POD_IDLE_TIMEOUT,
                        max_headers_count=MAX_HEADERS,
                        max_response_headers_kb=MAX_HEADER_KB,
                    ),
                    explicit_http_config=upstream_http.HttpProtocolOptionsExplicitHttpConfig(
                        http_protocol_options=core.Http1ProtocolOptions()
                    ),
                )
            )
        },
    )
    if config.routing is Routing.ORIGINAL_DST:
        pods.type = cluster.ClusterDiscoveryType.ORIGINAL_DST
        pods.lb_policy = cluster.ClusterLbPolicy.CLUSTER_PROVIDED
        pods.cleanup_interval = _POD_CLEANUP_INTERVAL
        pods.original_dst_lb_config = cluster.ClusterOriginalDstLbConfig(
            use_http_header=True, http_header_name=TARGET_POD
        )
    else:
        pods.type = cluster.ClusterDiscoveryType.STATIC
        pods.load_assignment = _load_assignment(POD_CLUSTER, config.decode)
        pods.load_balancing_policy = _override_host()
    return pods


def build_collector_cluster(name: str, collector: Address) -> cluster.Cluster:
    """Builds the cluster of what takes Envoy's spans."""
    return cluster.Cluster(
        name=name,
        type=cluster.ClusterDiscoveryType.STATIC
        if collector.is_ip
        else cluster.ClusterDiscoveryType.STRICT_DNS,
        connect_timeout=_CONNECT_TIMEOUT,
        load_assignment=_load_assignment(name, (collector,)),
    )


def _circuit_breakers(config: EnvoyConfig) -> cluster.CircuitBreakers:
    # All of them, since they default to 1024: a request holds a connection (HTTP/1.1 pods) or a
    # stream (routers) for as long as the model answers. Retries default to 3 at a time; a router
    # that dies makes many.
    limit = config.max_concurrent_requests
    return cluster.CircuitBreakers(
        thresholds=[
            cluster.CircuitBreakersThresholds(
                max_connections=limit,
                max_pending_requests=limit,
                max_requests=limit,
                max_retries=limit,
            )
        ]
    )


def _router_http2(config: EnvoyConfig) -> core.Http2ProtocolOptions:
    return core.Http2ProtocolOptions(
        # One more than admitted: a full connection would make requests wait, where the circuit
        # breaker answers.
        max_concurrent_streams=config.max_concurrent_requests + 1,
        # Bodies wait here, in frames, for a router that is busy: by default, Envoy takes 10,000 of
        # them (160 MB) for an attack, and cuts the connection with all requests on it.
        max_outbound_frames=_count_frames(config),
        # Requests that end together do so with a reset each; by default, 1,000 are an attack.
        max_outbound_control_frames=max(2 * config.max_concurrent_requests, _LEAST_FRAMES),
        # Finds a router that vanished. A gRPC server with default settings takes such pings for
        # an attack and cuts all open requests; ours sets `grpc.http2.max_ping_strikes` to 0.
        connection_keepalive=core.KeepaliveSettings(
            interval=timedelta(seconds=30), timeout=timedelta(seconds=10)
        ),
    )


def _count_frames(config: EnvoyConfig) -> int:
    """Return how many frames there are when all requests have the largest message."""
    frames = -(-config.max_message_bytes // _FRAME_BYTES) * config.max_concurrent_requests
    return min(max(frames, _LEAST_FRAMES), _MOST_FRAMES)


def _router_health_check() -> core.HealthCheck:
    # A router that drains gets no new request after two intervals; those it has go on.
    return core.HealthCheck(
        timeout=timedelta(seconds=2),
        interval=timedelta(seconds=1),
        no_traffic_interval=timedelta(seconds=1),
        unhealthy_threshold=2,
        healthy_threshold=1,
        grpc_health_check=core.HealthCheckGrpcHealthCheck(),
    )


def _router_tls(config: EnvoyConfig) -> core.TransportSocket:
    names = {address.host: address.is_ip for address in config.routers}
    san_type = tls.SubjectAltNameMatcherSanType
    context = tls.UpstreamTlsContext(
        auto_host_sni=True,
        common_tls_context=tls.CommonTlsContext(
            validation_context=tls.CertificateValidationContext(
                trusted_ca=core.DataSource(filename=config.router_ca_file),
                match_typed_subject_alt_names=[
                    tls.SubjectAltNameMatcher(
                        san_type=san_type.IP_ADDRESS if is_ip else san_type.DNS,
                        matcher=matcher.StringMatcher(exact=name),
                    )
                    for name, is_ip in names.items()
                ],
            )
        ),
    )
    return core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=Any.pack(context))


def _override_host() -> cluster.LoadBalancingPolicy:
    fallback = _policy("least_request", least_request.LeastRequest())
    return _policy(
        "override_host",
        override_host.OverrideHost(
            override_host_sources=[
                override_host.OverrideHostOverrideHostSource(header=DESTINATION_ENDPOINT)
            ],
            fallback_policy=fallback,
        ),
    )


def _policy(
    name: str, settings: override_host.OverrideHost | least_request.LeastRequest
) -> cluster.LoadBalancingPolicy:
    return cluster.LoadBalancingPolicy(
        policies=[
            cluster.LoadBalancingPolicyPolicy(
                typed_extension_config=core.TypedExtensionConfig(
                    name=f"envoy.load_balancing_policies.{name}", typed_config=Any.pack(settings)
                )
            )
        ]
    )


def _load_assignment(name: str, addresses: Iterable[Address]) -> endpoint.ClusterLoadAssignment:
    return endpoint.ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            endpoint.LocalityLbEndpoints(
                lb_endpoints=[
                    endpoint.LbEndpoint(
                        endpoint=endpoint.Endpoint(
                            address=build_socket_address(address), hostname=address.host
                        )
                    )
                    for address in addresses
                ]
            )
        ],
    )


def build_socket_address(address: Address) -> core.Address:
    """Writes an address as Envoy wants it."""
    return core.Address(
        socket_address=core.SocketAddress(address=address.host, port_value=address.port)
    )
