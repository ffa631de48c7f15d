"""Envoy's own accounting of tokens: filters that read `usage`, and a gRPC access log for it."""

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.access_loggers.grpc import v3 as grpc_log
from envoy_data_plane.envoy.extensions.content_parsers.json import v3 as json_parser
from envoy_data_plane.envoy.extensions.filters.http.json_to_metadata import v3 as json_to_metadata
from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as lua
from envoy_data_plane.envoy.extensions.filters.http.sse_to_metadata import v3 as sse_to_metadata
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.extproc.access_log.entries import (
    FIRST_BODY_KEY,
    PLAIN_USAGE_PATHS,
    STREAM_USAGE_PATHS,
    USAGE_NAMESPACE,
)
from pdrouter.tools.envoy_config.clusters import ROUTER_CLUSTER

LOG_NAME = "pdrouter"

# The last event of a stream of /v1/responses has the whole answer in it.
_MAX_EVENT_BYTES = 4 * 1024 * 1024

# Headers come before the first token from engines that wait for it with the body alone. The
# script ends with the first piece of the body: the others pass without it.
_NOTE_FIRST_BODY = f"""\
function envoy_on_response(handle)
  for chunk in handle:bodyChunks() do
    local metadata = handle:streamInfo():dynamicMetadata()
    local now = handle:timestampString(EnvoyTimestampResolution.MICROSECOND)
    metadata:set("{USAGE_NAMESPACE}", "{FIRST_BODY_KEY}", tostring(now))
    return
  end
end
"""


def build_token_filters() -> list[hcm.HttpFilter]:
    """Builds the filters that note an answer's usage, and when its first byte came."""
    sse = sse_to_metadata.SseToMetadata(
        response_rules=sse_to_metadata.SseToMetadataProcessingRules(
            content_parser=core.TypedExtensionConfig(
                name="envoy.content_parsers.json",
                typed_config=Any.pack(
                    json_parser.JsonContentParser(
                        rules=[
                            json_parser.JsonContentParserRuleConfig(rule=_build_rule(path))
                            for path in STREAM_USAGE_PATHS
                        ]
                    )
                ),
            ),
            max_event_size=_MAX_EVENT_BYTES,
        )
    )
    plain = json_to_metadata.JsonToMetadata(
        # Unlike the filter for streams, this one notes no objects: it takes a rule per member.
        response_rules=json_to_metadata.JsonToMetadataMatchRules(
            rules=[_build_rule(path) for path in PLAIN_USAGE_PATHS],
            allow_content_types_regex=matcher.RegexMatcher(regex="application/json *;.*"),
        )
    )
    script = lua.Lua(default_source_code=core.DataSource(inline_string=_NOTE_FIRST_BODY))
    return [
        hcm.HttpFilter(name=f"envoy.filters.http.{name}", typed_config=Any.pack(message))
        for name, message in (
            ("sse_to_metadata", sse),
            ("json_to_metadata", plain),
            ("lua", script),
        )
    ]


def build_token_log() -> accesslog.AccessLog:
    """Builds the log that tells the router of each request that has ended."""
    return accesslog.AccessLog(
        name="envoy.access_loggers.http_grpc",
        typed_config=Any.pack(
            grpc_log.HttpGrpcAccessLogConfig(
                common_config=grpc_log.CommonGrpcAccessLogConfig(
                    log_name=LOG_NAME,
                    grpc_service=core.GrpcService(
                        envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=ROUTER_CLUSTER)
                    ),
                    transport_api_version=core.ApiVersion.V3,
                )
            )
        ),
    )


def _build_rule(path: tuple[str, ...]) -> json_to_metadata.JsonToMetadataRule:
    """Builds the rule that notes what is at this path; of an object, its JSON text."""
    return json_to_metadata.JsonToMetadataRule(
        selectors=[json_to_metadata.JsonToMetadataSelector(key=key) for key in path],
        on_present=json_to_metadata.JsonToMetadataKeyValuePair(
            metadata_namespace=USAGE_NAMESPACE, key=".".join(path)
        ),
    )
