"""Envoy's own error answers, in the shape of the OpenAI API."""

import json

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel import v3 as cel
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.google.protobuf import Any, Struct

from pdrouter.openai.errors import encode_error

# Envoy counts the router's immediate responses as local replies too. At this point they have the
# content type that the router gave them; Envoy's own get theirs later.
_FROM_ENVOY = "!('content-type' in response.headers)"


def build_local_replies(body_limit_bytes: int) -> hcm.LocalReplyConfig:
    """Builds the rules that give Envoy's own errors an OpenAI body; the first that fits counts.

    Answers of the router and of the engines stay as they are.
    """
    return hcm.LocalReplyConfig(
        mappers=[
            _build_mapper(
                "response.code_details == 'request_payload_too_large'",
                413,
                "request_too_large",
                f"The request body is larger than the limit of {body_limit_bytes} bytes.",
            ),
            _build_mapper(
                "response.code == 504",
                504,
                "gateway_timeout",
                "The gateway waited too long for an answer (%RESPONSE_CODE_DETAILS%).",
            ),
            _build_mapper(
                "response.code_details.startsWith('ext_proc_error')",
                503,
                "router_unavailable",
                "The gateway's router is away or has too many requests.",
            ),
            _build_mapper(
                "response.code == 503", 503, "upstream_unavailable", "%LOCAL_REPLY_BODY%"
            ),
            _build_mapper(
                "response.code >= 500",
                500,
                "gateway_error",
                "The gateway failed (%RESPONSE_CODE_DETAILS%).",
            ),
            _build_mapper(
                "response.code >= 400",
                400,
                "request_refused",
                "The gateway refused the request (%RESPONSE_CODE_DETAILS%).",
            ),
        ]
    )


def _build_mapper(condition: str, status: int, code: str, message: str) -> hcm.ResponseMapper:
    """Builds one rule; `status` gives the error its type, the reply keeps its own."""
    return hcm.ResponseMapper(
        filter=accesslog.AccessLogFilter(
            extension_filter=accesslog.ExtensionFilter(
                name="envoy.access_loggers.extension_filters.cel",
                typed_config=Any.pack(
                    cel.ExpressionFilter(expression=f"{_FROM_ENVOY} && {condition}")
                ),
            )
        ),
        body_format_override=core.SubstitutionFormatString(
            json_format=Struct.from_dict(json.loads(encode_error(status, code, message)))
        ),
    )
