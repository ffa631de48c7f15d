"""Envoy's own accounting of tokens: filters that read `usage`, for its access log."""

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.content_parsers.json import v3 as json_parser
from envoy_data_plane.envoy.extensions.filters.http.json_to_metadata import v3 as json_to_metadata
from envoy_data_plane.envoy.extensions.filters.http.sse_to_metadata import v3 as sse_to_metadata
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from pdrouter.extproc.access_log.entries import (
    PLAIN_USAGE_PATHS,
    STREAM_USAGE_PATHS,
    USAGE_NAMESPACE,
)

# The last event of a stream of /v1/responses has the whole answer in it.
_MAX_EVENT_BYTES = 4 * 1024 * 1024


def build_token_filters() -> list[hcm.HttpFilter]:
    """Builds the filters that note an answer's usage."""
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
    return [
        hcm.HttpFilter(name=f"envoy.filters.http.{name}", typed_config=Any.pack(message))
        for name, message in (
            ("sse_to_metadata", sse),
            ("json_to_metadata", plain),
        )
    ]


def _build_rule(path: tuple[str, ...]) -> json_to_metadata.JsonToMetadataRule:
    """Builds the rule that notes what is at this path; of an object, its JSON text."""
    return json_to_metadata.JsonToMetadataRule(
        selectors=[json_to_metadata.JsonToMetadataSelector(key=key) for key in path],
        on_present=json_to_metadata.JsonToMetadataKeyValuePair(
            metadata_namespace=USAGE_NAMESPACE, key=".".join(path)
        ),
    )
