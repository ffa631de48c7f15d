"""Envoy's own error answers, in the shape of the OpenAI and Anthropic APIs."""

import json
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel import v3 as cel
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.google.protobuf import Any, Struct

from pdrouter.openai.errors import ANTHROPIC_PATH, encode_anthropic_error, encode_error

# Envoy counts the router's immediate responses as local replies too. At this point they have the
# content type that the router gave them; Envoy's own get theirs later.
_FROM_ENVOY = "!('content-type' in response.headers)"
_REFUSED = "The gateway refused the request (%RESPONSE_CODE_DETAILS%)."
_ANTHROPIC = (
    f"(request.url_path == '{ANTHROPIC_PATH}' || request.url_path.startsWith('{ANTHROPIC_PATH}/'))"
)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one kind of Envoy's own errors reads.

    Attributes:
        condition: tells the kind, as a CEL expression.
        status: gives the error its type; the reply keeps its own status.
        code: `error.code`.
        message: `error.message`, with Envoy's commands.
    """

    condition: str
    status: int
    code: str
    message: str


def build_local_replies(body_limit_bytes: int) -> hcm.LocalReplyConfig:
    """Builds the rules that give Envoy's own errors a body as the path's clients know it.

    The first that fits counts. Answers of the router and of the engines stay as they are.
    """
    rules = _list_rules(body_limit_bytes)
    return hcm.LocalReplyConfig(
        mappers=[
            *(
                _build_mapper(
                    f"{_ANTHROPIC} && {rule.condition}",
                    encode_anthropic_error(rule.status, rule.message, "%REQ(X-REQUEST-ID)%"),
                )
                for rule in rules
            ),
            *(
                _build_mapper(rule.condition, encode_error(rule.status, rule.code, rule.message))
                for rule in rules
            ),
        ]
    )


def _list_rules(body_limit_bytes: int) -> tuple[_Rule, ...]:
    return (
        _Rule(
            "response.code_details == 'request_payload_too_large'",
            413,
            "request_too_large",
            f"The request body is larger than the limit of {body_limit_bytes} bytes.",
        ),
        _Rule(
            "response.code == 504",
            504,
            "gateway_timeout",
            "The gateway waited too long for an answer (%RESPONSE_CODE_DETAILS%).",
        ),
        _Rule(
            "response.code_details.startsWith('ext_proc_error')",
            503,
            "router_unavailable",
            "The gateway's router is away or has too many requests.",
        ),
        _Rule("response.code == 503", 503, "upstream_unavailable", "%LOCAL_REPLY_BODY%"),
        _Rule(
            "response.code >= 500",
            500,
            "gateway_error",
            "The gateway failed (%RESPONSE_CODE_DETAILS%).",
        ),
        _Rule(
            "response.code_details == 'upgrade_failed'",
            400,
            "upgrade_not_supported",
            "WebSockets, as for /v1/realtime, and other upgrades of a connection are not served.",
        ),
        *(
            _Rule(f"response.code == {status}", status, "request_refused", _REFUSED)
            for status in (401, 403, 404, 429)
        ),
        _Rule("response.code >= 400", 400, "request_refused", _REFUSED),
    )


def _build_mapper(condition: str, body: bytes) -> hcm.ResponseMapper:
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
            json_format=Struct.from_dict(json.loads(body))
        ),
    )
