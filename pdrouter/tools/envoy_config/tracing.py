"""Envoy's own spans: sent to a collector over OTLP/HTTP, in the traces of clients and routers."""

from datetime import timedelta

from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.trace import v3 as trace
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.request_id.uuid import v3 as uuid
from envoy_data_plane.envoy.type import v3 as http_type
from envoy_data_plane.google.protobuf import Any

from pdrouter.tools.envoy_config.clusters import build_collector_cluster
from pdrouter.tools.envoy_config.options import EnvoyConfig

COLLECTOR_CLUSTER = "traces"
_EXPORT_TIMEOUT = timedelta(seconds=10)


def build_tracing(config: EnvoyConfig) -> hcm.HttpConnectionManagerTracing | None:
    """Builds what makes spans of requests; None where there is no collector.

    A span for each request, and one for each time that it is sent: the engine's belong to that.
    """
    if config.trace_collector is None:
        return None
    settings = trace.OpenTelemetryConfig(
        service_name="envoy",
        http_service=core.HttpService(
            http_uri=core.HttpUri(
                uri=f"http://{config.trace_collector}/v1/traces",
                cluster=COLLECTOR_CLUSTER,
                timeout=_EXPORT_TIMEOUT,
            )
        ),
    )
    return hcm.HttpConnectionManagerTracing(
        provider=trace.TracingHttp(
            name="envoy.tracers.opentelemetry", typed_config=Any.pack(settings)
        ),
        # Of requests whose `traceparent` has not decided it.
        random_sampling=http_type.Percent(value=config.trace_percent),
        spawn_upstream_span=True,
    )


def build_request_ids(config: EnvoyConfig) -> hcm.RequestIdExtension | None:
    """Builds what keeps `x-request-id` as it is; None where nothing would change it.

    With traces, Envoy writes into the id that the router has given why a request is traced. The
    legs of some wires would then not find each other any more.
    """
    if config.trace_collector is None:
        return None
    settings = uuid.UuidRequestIdConfig(pack_trace_reason=False)
    return hcm.RequestIdExtension(typed_config=Any.pack(settings))


def build_collector_clusters(config: EnvoyConfig) -> list[cluster.Cluster]:
    """Builds the cluster of the collector, if there is one."""
    if config.trace_collector is None:
        return []
    return [build_collector_cluster(COLLECTOR_CLUSTER, config.trace_collector)]
