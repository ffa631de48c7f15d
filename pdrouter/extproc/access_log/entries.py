"""Reads the entries of Envoy's access log. They are taken for what anyone may have sent.

An entry is one line of text, its columns parted by tabs. The same line can be had of any Envoy that
can send its access log over OpenTelemetry: no filter is needed for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from pdrouter.extproc.access_log import access_log_pb2 as pb
from pdrouter.openai.usage import (
    Usage,
    UsageMembers,
    convert_usage_members,
    read_usage_members,
)
from pdrouter.serving.answers import REQUEST_KEY, ROUTER_NAMESPACE, AnswerReport, RoutedRequest

USAGE_NAMESPACE = "pdrouter.usage"
"""Namespace of the dynamic metadata in which Envoy's filters note what an answer says."""
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
LONGEST_MESSAGE = 2**20
"""Bytes of a message. Envoy sends what it has once a second, or as soon as that is 16 KiB."""
MOST_PARTS = 256
"""Resources and scopes of a message: Envoy has one of each."""

_MARK = "pdrouter/1"
# Engines send the head of a stream before its first token: what counts is where the body begins.
_COLUMNS = (
    _MARK,
    "%ACCESS_LOG_TYPE%",
    "%RESPONSE_CODE%",
    "%RESPONSE_FLAGS%",
    "%UPSTREAM_REMOTE_ADDRESS%",
    "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    "%COMMON_DURATION(DS_RX_BEG:US_RX_END:us)%",
    f"%DYNAMIC_METADATA({ROUTER_NAMESPACE}:pod)%",
    f"%DYNAMIC_METADATA({ROUTER_NAMESPACE}:first_token)%",
    f"%DYNAMIC_METADATA({ROUTER_NAMESPACE}:{REQUEST_KEY})%",
)
FORMAT = "\t".join(_COLUMNS)
"""What Envoy is to write of each request, in its own language."""
FORMAT_WITH_USAGE = f"{FORMAT}\t%DYNAMIC_METADATA({USAGE_NAMESPACE})%"
"""The same where its filters note what an answer says of its tokens."""

_STREAM_USAGE = tuple(map(".".join, STREAM_USAGE_PATHS))
_PLAIN_USAGE = {".".join(path): path[1:] for path in PLAIN_USAGE_PATHS}
"""Paths within the usage, by the names under which their values are noted."""
_NOTHING = "-"
_LONGEST_S = 7 * 86400.0
_LONGEST_USAGE = 4096
_LONGEST_ENTRY = 64 * 1024
# Envoy can be told to log the start of a request and its progress as well.
_ENDS = ("DownstreamEnd", "NotSet", _NOTHING)
_FLAGS = {
    "LH": "failed_local_healthcheck",
    "UH": "no_healthy_upstream",
    "UT": "upstream_request_timeout",
    "LR": "local_reset",
    "UR": "upstream_remote_reset",
    "UF": "upstream_connection_failure",
    "UC": "upstream_connection_termination",
    "UO": "upstream_overflow",
    "NR": "no_route_found",
    "DC": "downstream_connection_termination",
    "URX": "upstream_retry_limit_exceeded",
    "SI": "stream_idle_timeout",
    "DPE": "downstream_protocol_error",
    "UMSDR": "upstream_max_stream_duration_reached",
    "DT": "duration_timeout",
    "UPE": "upstream_protocol_error",
    "NC": "no_cluster_found",
    "OM": "overload_manager",
    "DR": "downstream_remote_reset",
}
"""What went wrong in Envoy's eyes, by its short names; others say nothing of pods or clients."""


class EntryInvalid(Exception):
    """An entry, or a message of entries, that makes no sense."""


def read_message(data: bytes) -> Iterator[str]:
    """Return the entries of one message of the log.

    Raises:
        EntryInvalid: the bytes are no such message, or it would take too long to read.
    """
    if len(data) > LONGEST_MESSAGE:
        raise EntryInvalid(f"a message of {len(data)} bytes")
    try:
        message = pb.ExportLogsServiceRequest.FromString(data)
    except DecodeError as error:
        raise EntryInvalid(f"not an ExportLogsServiceRequest: {error}") from error
    # One without entries is of two bytes; who looks for the next entry passes over all of them.
    resources = message.resource_logs
    parts = len(resources)
    if parts <= MOST_PARTS:
        parts += sum(len(resource.scope_logs) for resource in resources)
    if parts > MOST_PARTS:
        raise EntryInvalid(f"a message of {parts} resources and scopes")
    return (
        record.body.string_value
        for resource in resources
        for scope in resource.scope_logs
        for record in scope.log_records
    )


def read_entry(text: str, *, counts: bool = True) -> AnswerReport | None:
    """Return what an entry says of an answer; None if no router has routed its request.

    Args:
        text: the entry.
        counts: whether the tokens count that it tells.

    Raises:
        EntryInvalid: it has the router's mark, but not what goes with it.
    """
    if not text.startswith(_MARK):
        return None
    columns = text.split("\t")
    with_usage = len(columns) > len(_COLUMNS)
    if len(columns) != len(_COLUMNS) + with_usage or len(text) > _LONGEST_ENTRY:
        raise EntryInvalid(f"an entry of {len(columns)} columns")
    usage = columns.pop() if with_usage else None
    _, kind, code, flags, served_by, first_us, last_us, pod, first_token, routed = columns
    if kind not in _ENDS or routed == _NOTHING:
        return None
    try:
        request = RoutedRequest.read(routed)
    except ValueError as error:  # msgspec's own errors are ValueErrors.
        raise EntryInvalid(f"not a request that a router has routed: {error}") from error
    status = int(code) if len(code) <= 3 and code.isdecimal() and code.isascii() else 0
    first = stream = None
    # An error has no tokens, however it was asked for.
    if request.stream and 200 <= status < 400:
        first, stream = _read_times(first_us, last_us)
    if not counts:
        usage = None
    served_by = "" if served_by == _NOTHING else served_by[:_LONGEST_USAGE]
    return AnswerReport(
        request,
        served_by,
        status,
        request.correct(_read_usage(usage)),
        # It is not told again where the router has seen it itself.
        first if first_token == _NOTHING else None,
        stream,
        counted=usage is not None,
        flags=() if flags == _NOTHING else _read_flags(flags),
        misrouted=bool(request.endpoint and served_by)
        and pod == _NOTHING
        and served_by not in (request.endpoint, request.second),
    )


def _read_flags(text: str) -> tuple[str, ...]:
    return tuple(_FLAGS[flag] for flag in text.split(",") if flag in _FLAGS)


def _read_usage(text: str | None) -> Usage | None:
    if text is None or text == _NOTHING:
        return None
    try:
        noted = msgspec.json.decode(text)
    except ValueError:
        return None
    if not isinstance(noted, dict):
        return None
    members = UsageMembers()
    for name in _STREAM_USAGE:
        value = noted.pop(name, None)
        if isinstance(value, str) and len(value) <= _LONGEST_USAGE:
            part = read_usage_members(value)
            if part is not None:
                members.update(part)
    if noted:
        plain = convert_usage_members(_nest(noted))
        if plain is not None:
            members.update(plain)
    return members.count()


def _nest(noted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a plain answer's usage as the object that they were."""
    usage: dict[str, Any] = {}
    for name, path in _PLAIN_USAGE.items():
        value = noted.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        holder = usage
        for part in path[:-1]:
            holder = holder.setdefault(part, {})
        holder[path[-1]] = value
    return usage


def _read_times(first_us: str, last_us: str) -> tuple[float | None, float | None]:
    """Return the time to the first of the body, and from there to its last."""
    first, last = _read_time(first_us), _read_time(last_us)
    stream = None if first is None or last is None or last < first else last - first
    return first, stream


def _read_time(microseconds: str) -> float | None:
    # Further digits are none of a time that is believed.
    if len(microseconds) > 18 or not (microseconds.isdecimal() and microseconds.isascii()):
        return None
    seconds = float(microseconds) / 1_000_000
    return seconds if seconds <= _LONGEST_S else None
