"""The Envoy bootstrap: a listener whose requests pass the router, then go to the chosen pod."""

from datetime import timedelta

import yaml
from betterproto2 import Casing
from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap
from envoy_data_plane.envoy.config.common.mutation_rules import v3 as mutation_rules
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import (
    v3 as early_header_mutation,
)
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts
from envoy_data_plane.envoy.type import v3 as http_type
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.openai.headers import CONTROL_HEADERS
from pdrouter.serving.answers import ROUTER_NAMESPACE
from pdrouter.serving.last_leg import RESPONSE_ATTRIBUTES
from pdrouter.settings.choices import Routing
from pdrouter.settings.controls import RANK_PREFIX
from pdrouter.tools.envoy_config.access_logs import build_access_logs
from pdrouter.tools.envoy_config.clusters import (
    POD_CLUSTER,
    ROUTER_CLUSTER,
    build_pod_cluster,
    build_router_cluster,
    build_socket_address,
)
from pdrouter.tools.envoy_config.cors import build_cors_filters, build_cors_policy
from pdrouter.tools.envoy_config.local_replies import build_local_replies
from pdrouter.tools.envoy_config.options import (
    MAX_HEADER_KB,
    MAX_HEADERS,
    EnvoyConfig,
    ResponseBodyMode,
)
from pdrouter.tools.envoy_config.token_accounting import build_token_filters
from pdrouter.tools.envoy_config.tracing import (
    build_collector_clusters,
    build_request_ids,
    build_tracing,
)

# Envoy's defaults for flow control. The body limit of the route can raise them for a request but
# not lower them, so they must not exceed it.
_CONNECTION_BUFFER_BYTES = 1024 * 1024
_STREAM_WINDOW_BYTES = 16 * 1024 * 1024

_NEVER_ARRIVED = "connect-failure,refused-stream"
_SHORTEST_BACK_OFF, _LONGEST_BACK_OFF = timedelta(milliseconds=25), timedelta(milliseconds=250)
_ROUTER_RETRIES = 3
# How often Envoy draws another router when it has drawn one that was tried before.
_HOST_SELECTIONS = 10


def build_bootstrap(config: EnvoyConfig) -> bootstrap.Bootstrap:
    """Builds the bootstrap of one Envoy in front of the given routers."""
    return bootstrap.Bootstrap(
        admin=bootstrap.Admin(address=build_socket_address(config.admin)) if config.admin else None,
        static_resources=bootstrap.BootstrapStaticResources(
            listeners=[_build_listener(config)],
            clusters=[
                build_router_cluster(config),
                build_pod_cluster(config),
                *build_collector_clusters(config),
            ],
        ),
    )


def to_yaml(message: bootstrap.Bootstrap) -> str:
    """Writes a bootstrap as `envoy -c` reads it."""
    text: str = yaml.safe_dump(message.to_dict(casing=Casing.SNAKE), sort_keys=False)
    return text


def _build_listener(config: EnvoyConfig) -> listener.Listener:
    return listener.Listener(
        name="http",
        address=build_socket_address(config.listen),
        per_connection_buffer_limit_bytes=min(_CONNECTION_BUFFER_BYTES, config.body_limit_bytes),
        filter_chains=[
            listener.FilterChain(
                filters=[
                    listener.Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=Any.pack(_build_connection_manager(config)),
                    )
                ]
            )
        ],
    )


def _build_connection_manager(config: EnvoyConfig) -> hcm.HttpConnectionManager:
    return hcm.HttpConnectionManager(
        stat_prefix="http",
        codec_type=hcm.HttpConnectionManagerCodecType.AUTO,
        server_header_transformation=hcm.HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        stream_idle_timeout=timedelta(seconds=config.stream_idle_timeout_s),
        # Above the router's limits, so that clients get its error and not the end of a connection.
        common_http_protocol_options=core.HttpProtocolOptions(max_headers_count=MAX_HEADERS),
        max_request_headers_kb=MAX_HEADER_KB,
        http2_protocol_options=core.Http2ProtocolOptions(
            max_concurrent_streams=config.max_concurrent_requests,
            initial_stream_window_size=min(_STREAM_WINDOW_BYTES, config.body_limit_bytes),
        ),
        early_header_mutation_extensions=[_build_control_header_removal()],
        local_reply_config=build_local_replies(config.body_limit_bytes),
        access_log=build_access_logs(config),
        tracing=build_tracing(config),
        request_id_extension=build_request_ids(config),
        route_config=_build_routes(config),
        http_filters=[
            *build_cors_filters(config.cors_origins),
            *(build_token_filters() if config.token_accounting else ()),
            hcm.HttpFilter(
                name="envoy.filters.http.ext_proc", typed_config=Any.pack(_build_ext_proc(config))
            ),
            hcm.HttpFilter(
                name="envoy.filters.http.router", typed_config=Any.pack(router.Router())
            ),
        ],
    )


def _build_routes(config: EnvoyConfig) -> route.RouteConfiguration:
    return route.RouteConfiguration(
        name=POD_CLUSTER,
        virtual_hosts=[
            route.VirtualHost(
                name=POD_CLUSTER,
                domains=["*"],
                request_body_buffer_limit=config.body_limit_bytes,
                typed_per_filter_config=build_cors_policy(
                    config.cors_origins, credentials=config.cors_credentials
                ),
                routes=[
                    route.Route(
                        match=route.RouteMatch(prefix="/"),
                        route=route.RouteAction(
                            cluster=POD_CLUSTER,
                            retry_policy=_build_retry_policy(config.routing),
                            timeout=timedelta(0),  # an answer may take any time while it flows
                            idle_timeout=timedelta(seconds=config.stream_idle_timeout_s),
                        ),
                    )
                ],
            )
        ],
    )


def _build_retry_policy(routing: Routing) -> route.RetryPolicy | None:
    # The KV handle in the body is good for one request, and the router, which could make another,
    # is not asked again. A pod that could not be connected to has not seen it, so that the second
    # pod which the router names may have it; an `original-dst` cluster would try the same again.
    if routing is Routing.ORIGINAL_DST:
        return None
    return route.RetryPolicy(
        retry_on=_NEVER_ARRIVED,
        num_retries=1,
        retry_back_off=route.RetryPolicyRetryBackOff(
            base_interval=_SHORTEST_BACK_OFF, max_interval=_LONGEST_BACK_OFF
        ),
    )


def _build_ext_proc(config: EnvoyConfig) -> ext_proc.ExternalProcessor:
    headers = ext_proc.ProcessingModeHeaderSendMode
    body = ext_proc.ProcessingModeBodySendMode
    response_body = {ResponseBodyMode.NONE: body.NONE, ResponseBodyMode.STREAMED: body.STREAMED}
    message_timeout = timedelta(seconds=config.message_timeout_s)
    return ext_proc.ExternalProcessor(
        # Without a timeout: it would be that of the whole stream, which lasts as long as a request.
        grpc_service=core.GrpcService(
            envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=ROUTER_CLUSTER),
            retry_policy=_retry_elsewhere(),
        ),
        failure_mode_allow=False,
        # Envoy says 500, but a router that is away or full comes back: clients should retry.
        status_on_error=http_type.HttpStatus(code=http_type.StatusCode.ServiceUnavailable),
        processing_mode=ext_proc.ProcessingMode(
            request_header_mode=headers.SEND,
            request_body_mode=body.BUFFERED,
            request_trailer_mode=headers.SEND,
            response_header_mode=headers.SEND,
            response_body_mode=response_body[config.response_body],
            response_trailer_mode=headers.SKIP,
        ),
        message_timeout=message_timeout,
        max_message_timeout=message_timeout,
        allow_mode_override=config.allow_mode_override,
        # Which pod has answered, another than the chosen one if Envoy does not know that; or why
        # none has.
        response_attributes=[*RESPONSE_ATTRIBUTES],
        # So that the router can take away what has Envoy send a request twice.
        mutation_rules=mutation_rules.HeaderMutationRules(allow_envoy=True),
        metadata_options=_build_metadata_options() if config.router_log else None,
    )


def _retry_elsewhere() -> core.RetryPolicy:
    # Health checks find a router that has died after seconds only, and having no streams it is the
    # least loaded until then. Who could not be reached has not seen the request.
    return core.RetryPolicy(
        retry_on=_NEVER_ARRIVED,
        num_retries=_ROUTER_RETRIES,
        # The default begins with up to a second. Another router is up: it need not be waited for.
        retry_back_off=core.BackoffStrategy(
            base_interval=_SHORTEST_BACK_OFF, max_interval=_LONGEST_BACK_OFF
        ),
        retry_host_predicate=[
            core.RetryPolicyRetryHostPredicate(
                name="envoy.retry_host_predicates.previous_hosts",
                typed_config=Any.pack(previous_hosts.PreviousHostsPredicate()),
            )
        ],
        host_selection_retry_max_attempts=_HOST_SELECTIONS,
    )


def _build_control_header_removal() -> core.TypedExtensionConfig:
    return core.TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation",
        typed_config=Any.pack(
            early_header_mutation.HeaderMutation(
                mutations=[
                    *(mutation_rules.HeaderMutation(remove=name) for name in CONTROL_HEADERS),
                    mutation_rules.HeaderMutation(
                        remove_on_match=mutation_rules.HeaderMutationRemoveOnMatch(
                            key_matcher=matcher.StringMatcher(prefix=RANK_PREFIX)
                        )
                    ),
                ]
            )
        ),
    )


def _build_metadata_options() -> ext_proc.MetadataOptions:
    """Builds the leave to note for the access log which request an entry is of."""
    return ext_proc.MetadataOptions(
        receiving_namespaces=ext_proc.MetadataOptionsMetadataNamespaces(untyped=[ROUTER_NAMESPACE])
    )
