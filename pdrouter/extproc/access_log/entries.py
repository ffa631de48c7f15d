"""Reads the entries of Envoy's gRPC access log. They are taken for what anyone may have sent."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from pdrouter.extproc.access_log import access_log_pb2 as pb
from pdrouter.openai.usage import (
    Usage,
    UsageMembers,
    convert_usage_members,
    read_usage_members,
)
from pdrouter.serving.answers import ROUTER_NAMESPACE, AnswerReport, RoutedRequest

USAGE_NAMESPACE = "pdrouter.usage"
"""Namespace of the dynamic metadata in which Envoy's filters note what an answer says."""
FIRST_BODY_KEY = "first_body_us"
"""When the first of the body came: microseconds since the epoch, as text."""
STREAM_USAGE_PATHS = (("message", "usage"), ("usage",), ("response", "usage"))
"""Where events have their usage; what comes later here wins. Each is noted as JSON text."""
PLAIN_USAGE_PATHS = tuple(
    ("usage", *path.split("."))
    for path in (
        *("prompt_tokens", "completion_tokens", "prompt_tokens_details.cached_tokens"),
        *("input_tokens", "output_tokens", "input_tokens_details.cached_tokens"),
        *("cache_read_input_tokens", "cache_creation_input_tokens"),
    )
)
"""Where plain answers have the parts of their usage. Each is noted as a number."""

_LONGEST_S = 7 * 86400.0
_LONGEST_NAME = 1024
_LONGEST_USAGE = 4096
# Envoy can be told to log the start of a request and its progress as well.
_ENDS = (pb.NotSet, pb.DownstreamEnd)
_FLAGS = tuple(field.name for field in pb.ResponseFlags.DESCRIPTOR.fields)


class EntryInvalid(Exception):
    """An entry, or a message of entries, that makes no sense."""


def read_message(data: bytes) -> Iterator[pb.HTTPAccessLogEntry]:
    """Return the entries of one message of the log.

    Raises:
        EntryInvalid: the bytes are no such message.
    """
    try:
        return iter(pb.StreamAccessLogsMessage.FromString(data).http_logs.log_entry)
    except DecodeError as error:
        raise EntryInvalid(f"not a StreamAccessLogsMessage: {error}") from error


def read_entry(entry: pb.HTTPAccessLogEntry) -> AnswerReport | None:
    """Return what an entry says of an answer; None if no router has routed its request.

    Raises:
        EntryInvalid: it has the router's mark, but not what goes with it.
    """
    common = entry.common_properties
    namespaces = common.metadata.filter_metadata
    if common.access_log_type not in _ENDS or ROUTER_NAMESPACE not in namespaces:
        return None
    request = _read_request(_read_values(namespaces[ROUTER_NAMESPACE]))
    noted = _read_values(namespaces[USAGE_NAMESPACE]) if USAGE_NAMESPACE in namespaces else {}
    usage = request.correct(_read_usage(noted))
    first, last = _read_times(common, noted) if request.stream else (None, None)
    served_by = _read_address(common.upstream_remote_address.socket_address)
    return AnswerReport(
        request,
        served_by,
        entry.response.response_code.value,
        usage,
        first,
        None if first is None or last is None or last < first else last - first,
        tuple(name for name in _FLAGS if getattr(common.response_flags, name)),
        misrouted=bool(request.endpoint and served_by)
        and served_by not in (request.endpoint, request.second),
    )


def _read_values(struct: Struct) -> dict[str, Any]:
    """Return the texts, truths and numbers of a struct; whole numbers become integers."""
    values: dict[str, Any] = {}
    for name, value in struct.fields.items():
        match value.WhichOneof("kind"):
            case "string_value":
                values[name] = value.string_value
            case "bool_value":
                values[name] = value.bool_value
            case "number_value" if math.isfinite(value.number_value):
                number = value.number_value
                values[name] = int(number) if number.is_integer() else number
    return values


def _read_request(values: Mapping[str, Any]) -> RoutedRequest:
    names = ("request_id", "model", "endpoint", "client_request_id", "second")
    texts = [values.get(name, "") for name in names]
    truths = [values.get(name, False) for name in ("stream", "generates", "split")]
    cached = values.get("cached_tokens")
    if not all(isinstance(text, str) and len(text) <= _LONGEST_NAME for text in texts):
        raise EntryInvalid("ids, model and endpoint must be short texts")
    if not all(isinstance(truth, bool) for truth in truths):
        raise EntryInvalid("stream, generates and split must be true or false")
    if cached is not None and (type(cached) is not int or cached < 0):
        raise EntryInvalid("cached_tokens must be a number of tokens")
    request_id, model, endpoint, client_id, second = texts
    stream, generates, split = truths
    return RoutedRequest(
        request_id, model, endpoint, stream, generates, split, cached, client_id, second
    )


def _read_usage(noted: Mapping[str, Any]) -> Usage | None:
    members = UsageMembers()
    for path in STREAM_USAGE_PATHS:
        text = noted.get(".".join(path))
        if isinstance(text, str) and len(text) <= _LONGEST_USAGE:
            part = read_usage_members(text)
            if part is not None:
                members.update(part)
    plain = convert_usage_members(_nest(noted))
    if plain is not None:
        members.update(plain)
    return members.count()


def _nest(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a plain answer's usage as the object that they were."""
    usage: dict[str, Any] = {}
    for path in PLAIN_USAGE_PATHS:
        value = noted.get(".".join(path))
        if value is None:
            continue
        holder = usage
        for name in path[1:-1]:
            holder = holder.setdefault(name, {})
        holder[path[-1]] = value
    return usage


def _read_times(
    common: pb.AccessLogCommon, noted: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Return when the first and the last of the body came, in seconds after the request."""
    last = _read_duration(common, "time_to_last_upstream_rx_byte")
    text = noted.get(FIRST_BODY_KEY)
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 18:
        start = common.start_time.seconds * 1_000_000 + common.start_time.nanos // 1000
        return _check_time((int(text) - start) / 1_000_000), last
    return _read_duration(common, "time_to_first_upstream_rx_byte"), last


def _read_duration(common: pb.AccessLogCommon, name: str) -> float | None:
    if not common.HasField(name):
        return None
    duration: Duration = getattr(common, name)
    return _check_time(duration.seconds + duration.nanos / 1e9)


def _check_time(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= _LONGEST_S else None


def _read_address(address: pb.SocketAddress) -> str:
    host = address.address
    if not host or len(host) > _LONGEST_NAME:
        return ""
    return f"[{host}]:{address.port_value}" if ":" in host else f"{host}:{address.port_value}"
