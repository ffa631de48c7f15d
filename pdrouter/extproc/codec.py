"""Turns bytes from the ext_proc stream into events, and replies into bytes for it.

This runs for every message of every request. Headers are read and written one by one on protobuf's
own objects: building them from keywords or dictionaries costs 1.2 to 3 times as much.
"""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.wrappers_pb2 import BoolValue

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.header_map import read_headers
from pdrouter.extproc.known_parts import LARGEST, KnownParts
from pdrouter.extproc.messages import (
    EXT_PROC_FILTER,
    BodyMode,
    BodyMutation,
    Event,
    ImmediateReply,
    ModeOverride,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ReplaceBody,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    read_struct,
)
from pdrouter.openai.headers import REPEATED_HEADERS
from pdrouter.openai.pieces import Pieces

_FEW_BYTES = 4096
"""Size of messages whose headers are within Envoy's limits in any case."""


class MessageInvalid(Exception):
    """A message from Envoy's side of the stream that cannot be understood.

    Attributes:
        reason: What is wrong with it, for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes) -> Event:
    """Reads one message of Envoy's.

    Raises:
        MessageInvalid: The bytes are no such message, or it has a kind or a body mode that is not
            known here.
    """
    try:
        message = pb.ProcessingRequest.FromString(data)
        kind, observed = message.WhichOneof("request"), message.observability_mode
        config = None
        if message.HasField("protocol_config"):  # It is empty if all in it has the number zero.
            config = _PROTOCOL_CONFIGS[message.protocol_config]
        if kind in _HEADERS_EVENTS:
            headers: pb.HttpHeaders = getattr(message, kind)
            header_map = headers.headers
            fields = header_map.headers[:]
            return _HEADERS_EVENTS[kind](
                read_headers(fields),
                headers.end_of_stream,
                len(fields),
                # To measure them, protobuf writes them anew.
                len(data) if len(data) <= _FEW_BYTES else header_map.ByteSize(),
                _ATTRIBUTES[message.attributes.get(EXT_PROC_FILTER, b"")],
                protocol_config=config,
                observability_mode=observed,
                context=message,
            )
        if kind in _BODY_EVENTS:
            body: pb.HttpBody = getattr(message, kind)
            return _BODY_EVENTS[kind](
                body.body,
                body.end_of_stream,
                protocol_config=config,
                observability_mode=observed,
            )
        if kind in _TRAILERS_EVENTS:
            trailers: pb.HttpTrailers = getattr(message, kind)
            return _TRAILERS_EVENTS[kind](
                read_headers(trailers.trailers.headers[:]),
                protocol_config=config,
                observability_mode=observed,
            )
    except DecodeError as error:
        raise MessageInvalid(f"not a ProcessingRequest: {error}") from error
    raise MessageInvalid("a ProcessingRequest of no known kind")


def encode(reply: Reply) -> bytes:
    """Writes one reply for Envoy.

    A header value becomes UTF-8; what that cannot hold (a lone surrogate) becomes "?".

    Raises:
        ValueError: The reply to trailers asks for changes.
    """
    kept = _KEPT.get(id(reply))
    if kept is not None:
        return kept[1]
    if isinstance(reply, ImmediateReply):
        return _build_immediate_response(reply).SerializeToString()
    return _write_reply(reply)


_KEPT: dict[int, tuple[PhaseReply, bytes]] = {}


def keep(reply: PhaseReply) -> PhaseReply:
    """Returns a reply that is given to many requests, and from now on is written no more."""
    _KEPT[id(reply)] = reply, encode(reply)
    return reply


_ATTRIBUTES = KnownParts(lambda part: read_struct(Struct.FromString(part)))
_HEADERS_EVENTS: dict[str, type[RequestHeaders] | type[ResponseHeaders]] = {
    "request_headers": RequestHeaders,
    "response_headers": ResponseHeaders,
}
_BODY_EVENTS: dict[str, type[RequestBody] | type[ResponseBody]] = {
    "request_body": RequestBody,
    "response_body": ResponseBody,
}
_TRAILERS_EVENTS: dict[str, type[RequestTrailers] | type[ResponseTrailers]] = {
    "request_trailers": RequestTrailers,
    "response_trailers": ResponseTrailers,
}


def _read_protocol_config(part: bytes) -> ProtocolConfig:
    config = pb.ProtocolConfiguration.FromString(part)
    try:
        return ProtocolConfig(
            BodyMode(config.request_body_mode),
            BodyMode(config.response_body_mode),
            config.send_body_without_waiting_for_header_response,
        )
    except ValueError as error:
        raise MessageInvalid(f"protocol_config: {error}") from error


_PROTOCOL_CONFIGS = KnownParts(_read_protocol_config)


def _write_reply(reply: PhaseReply) -> bytes:
    """Writes a `ProcessingResponse`.

    protobuf would copy a new body into its message, and twice more to write it; here it is copied
    once, when all is joined. And to fill in headers field by field takes three times as long as to
    write them.
    """
    common = _write_mutation(reply) if reply.set_headers or reply.remove_headers else b""
    if reply.clear_route_cache:
        common += _CLEAR_ROUTE_CACHE
    body: tuple[bytes | memoryview, ...] = ()
    size = 0
    if reply.body is not None:
        tag, body = _write_body(reply.body)
        size = sum(map(len, body))
        tag += _write_varint(size)
        common += _BODY_MUTATION + _write_varint(len(tag) + size) + tag
    if common:
        if reply.phase in _TRAILERS:
            raise ValueError(f"{reply.phase} are not changed here")
        common = _RESPONSE + _write_varint(len(common) + size) + common
    head = _PHASES[reply.phase] + _write_varint(len(common) + size)
    if reply.mode_override is not None:
        head = _write_mode_override(reply.mode_override) + head
    if reply.dynamic_metadata:
        metadata = _write_metadata(reply.dynamic_metadata)
        head = _DYNAMIC_METADATA + _write_varint(len(metadata)) + metadata + head
    return b"".join((head, common, *body))


def _write_mutation(reply: PhaseReply) -> bytes:
    """Writes how a reply changes headers, as a field of a `CommonResponse`."""
    changes = [*map(_WRITTEN.__getitem__, reply.set_headers)]
    if reply.remove_headers:
        changes += map(_write_removal, reply.remove_headers)
    mutation = b"".join(changes)
    return _HEADER_MUTATION + _write_varint(len(mutation)) + mutation


class _WrittenHeaders(dict[tuple[str, str], bytes]):
    """Headers to set, as fields of a `HeaderMutation`. To ask for one that is not there writes it.

    Only those that come again and again are kept.
    """

    def __missing__(self, header: tuple[str, str]) -> bytes:
        name, value = header
        raw = value.encode("utf-8", "replace")
        written = _begin_option(name, len(raw)) + raw
        if name in REPEATED_HEADERS and len(written) <= LARGEST:
            if len(self) >= MOST_WRITTEN:
                self.clear()
            self[header] = written
        return written


_WRITTEN = _WrittenHeaders()
MOST_WRITTEN = 4096
"""Headers that are kept as they are written: 5 MB of memory at the most."""


def _write_removal(name: str) -> bytes:
    removed = name.encode()
    return _REMOVE_HEADERS + _write_varint(len(removed)) + removed


# The same headers are set again and again, with values of few lengths.
@lru_cache(maxsize=1024)
def _begin_option(name: str, size: int, action: bytes | None = None) -> bytes:
    """Writes a header to set, as a field of a `HeaderMutation`, up to its value of so many bytes.

    Without an action, it replaces others of its name.

    What is fixed comes first, whatever the numbers of the fields: their order does not matter.
    """
    key = name.encode()
    header = _KEY + _write_varint(len(key)) + key + _RAW_VALUE + _write_varint(size)
    option = (action or _OVERWRITE) + _HEADER + _write_varint(len(header) + size) + header
    return _SET_HEADERS + _write_varint(len(option) + size) + option


def _write_body(mutation: BodyMutation) -> tuple[bytes, tuple[bytes | memoryview, ...]]:
    """Returns the tag of a field of a `BodyMutation`, and the field's content."""
    body = mutation.body
    if isinstance(mutation, ReplaceBody):
        return _BODY, body.parts if isinstance(body, Pieces) else (body,)
    streamed = pb.StreamedBodyResponse(body=mutation.body, end_of_stream=mutation.end_of_stream)
    return _STREAMED_BODY, (streamed.SerializeToString(),)


def _write_metadata(metadata: Mapping[str, Mapping[str, str]]) -> bytes:
    """Writes texts by namespace and name, as the content of a `Struct`.

    To have protobuf fill in these takes three times as long.
    """
    content = b""
    for namespace, texts in metadata.items():
        fields = b""
        for name, text in texts.items():
            raw = text.encode()
            fields += _begin_field(name, _STRING_VALUE, len(raw)) + raw
        content += _begin_field(namespace, _STRUCT_VALUE, len(fields)) + fields
    return content


@lru_cache(maxsize=1024)
def _begin_field(name: str, kind: bytes, size: int) -> bytes:
    """Writes a field of a `Struct` up to its value, which is of a kind and has so many bytes."""
    key, value = name.encode(), kind + _write_varint(size)
    begin = _FIELD_NAME + _write_varint(len(key)) + key
    begin += _FIELD_VALUE + _write_varint(len(value) + size) + value
    return _FIELDS + _write_varint(len(begin) + size) + begin


def _write_varint(value: int) -> bytes:
    if value < 0x80:
        return _VARINTS[value]
    if value < 0x4000:
        return _TWO_BYTES.pack(value & 0x7F | 0x80, value >> 7)
    return bytes((value & 0x7F | 0x80,)) + _write_varint(value >> 7)


_TWO_BYTES = struct.Struct("BB")
_VARINTS = tuple(bytes([value]) for value in range(0x80))


def _find_tag(message: type[Message], field: str, wire_type: int = 2) -> bytes:
    return _write_varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type)


_BODY = _find_tag(pb.BodyMutation, "body")
_BODY_MUTATION = _find_tag(pb.CommonResponse, "body_mutation")
_CLEAR_ROUTE_CACHE = pb.CommonResponse(clear_route_cache=True).SerializeToString()
_DYNAMIC_METADATA = _find_tag(pb.ProcessingResponse, "dynamic_metadata")
_FIELDS = _find_tag(Struct, "fields")
_FIELD_NAME = _find_tag(Struct.FieldsEntry, "key")
_FIELD_VALUE = _find_tag(Struct.FieldsEntry, "value")
_HEADER = _find_tag(pb.HeaderValueOption, "header")
_HEADER_MUTATION = _find_tag(pb.CommonResponse, "header_mutation")
_KEY = _find_tag(pb.HeaderValue, "key")
_PHASES = {phase: _find_tag(pb.ProcessingResponse, phase) for phase in Phase}
_RAW_VALUE = _find_tag(pb.HeaderValue, "raw_value")
_REMOVE_HEADERS = _find_tag(pb.HeaderMutation, "remove_headers")
_RESPONSE = _find_tag(pb.BodyResponse, "response")
_SET_HEADERS = _find_tag(pb.HeaderMutation, "set_headers")
_STRING_VALUE = _find_tag(Value, "string_value")
_STREAMED_BODY = _find_tag(pb.BodyMutation, "streamed_response")
_STRUCT_VALUE = _find_tag(Value, "struct_value")
_TRAILERS = (Phase.REQUEST_TRAILERS, Phase.RESPONSE_TRAILERS)

# Envoy's ext_proc filter goes by `append` alone, and its default is to overwrite; other proxies go
# by `append_action`, whose default is to append. What is said here is the same for both.
_APPEND = pb.HeaderValueOption(append=BoolValue(value=True)).SerializeToString()
_OVERWRITE = pb.HeaderValueOption(
    append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
).SerializeToString()


# There are few of them.
@lru_cache(maxsize=64)
def _write_mode_override(override: ModeOverride) -> bytes:
    message = pb.ProcessingResponse()
    # For mypy its fields take protobuf's own enums alone, while any number will do.
    mode: Any = message.mode_override
    mode.SetInParent()
    mode.request_body_mode = override.request_body
    mode.request_trailer_mode = override.request_trailers
    mode.response_header_mode = override.response_headers
    mode.response_body_mode = override.response_body
    mode.response_trailer_mode = override.response_trailers
    return message.SerializeToString()


def _build_immediate_response(reply: ImmediateReply) -> pb.ProcessingResponse:
    message = pb.ProcessingResponse()
    part = message.immediate_response
    part.status.code = cast("pb.StatusCode", reply.status)
    seen: set[str] = set()
    for name, value in reply.headers:
        action = _APPEND if name.lower() in seen else _OVERWRITE
        raw = value.encode("utf-8", "replace")
        part.headers.MergeFromString(_begin_option(name, len(raw), action) + raw)
        seen.add(name.lower())
    part.body = reply.body
    part.details = reply.details
    if reply.grpc_status is not None:
        part.grpc_status.status = reply.grpc_status
    return message
