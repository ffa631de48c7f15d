"""Turns bytes from the ext_proc stream into events, and replies into bytes for it.

This runs for every message of every request. Headers are read and written one by one on protobuf's
own objects: building them from keywords or dictionaries costs 1.2 to 3 times as much.
"""

from datetime import timedelta
from typing import Any, cast

from google.protobuf.message import DecodeError

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.messages import (
    BodyMode,
    ClearBody,
    Event,
    Headers,
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
    StreamedBody,
)


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

    A header value that is not UTF-8 comes with replacement characters. A header that occurs more
    than once comes joined, as RFC 9110 section 5.3 and, for cookies, RFC 9113 section 8.2.3 say.

    Raises:
        MessageInvalid: The bytes are no such message, or it has a kind or a body mode that is not
            known here.
    """
    try:
        message = pb.ProcessingRequest.FromString(data)
    except DecodeError as error:
        raise MessageInvalid(f"not a ProcessingRequest: {error}") from error
    kind = message.WhichOneof("request")
    match kind:
        case "request_headers" | "response_headers":
            headers: pb.HttpHeaders = getattr(message, kind)
            return _HEADERS_EVENTS[kind](
                _read_header_map(headers.headers), headers.end_of_stream, **_read_common(message)
            )
        case "request_body" | "response_body":
            body: pb.HttpBody = getattr(message, kind)
            content, end_of_stream = body.body, body.end_of_stream
            return _BODY_EVENTS[kind](
                content, end_of_stream, **_read_common(_copy_without(kind, message))
            )
        case "request_trailers" | "response_trailers":
            trailers: pb.HttpTrailers = getattr(message, kind)
            return _TRAILERS_EVENTS[kind](
                _read_header_map(trailers.trailers), **_read_common(message)
            )
        case _:
            raise MessageInvalid("a ProcessingRequest of no known kind")


def encode(reply: Reply) -> bytes:
    """Writes one reply for Envoy.

    A header value becomes UTF-8; what that cannot hold (a lone surrogate) becomes "?".

    Raises:
        ValueError: The reply to trailers asks for what only headers and bodies can have.
    """
    if isinstance(reply, ImmediateReply):
        return _build_immediate_response(reply).SerializeToString()
    plain_reply, plain_bytes = _PLAIN[reply.phase]
    if reply == plain_reply:
        return plain_bytes
    message = _build_phase_response(reply)
    if isinstance(reply.body, ReplaceBody):
        return _serialize_with_body(message, reply.phase, reply.body.body)
    return message.SerializeToString()


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


def _read_header_map(header_map: pb.HeaderMap) -> dict[str, str]:
    headers: dict[str, str] = {}
    for header in header_map.headers:
        name = header.key.lower()
        raw = header.raw_value
        value = raw.decode("utf-8", "replace") if raw else header.value
        if name in headers:
            separator = "; " if name == "cookie" else ", "
            value = f"{headers[name]}{separator}{value}"
        headers[name] = value
    return headers


def _read_common(message: pb.ProcessingRequest) -> dict[str, Any]:
    return {
        "protocol_config": _read_protocol_config(message),
        "observability_mode": message.observability_mode,
        "context": message,
    }


def _read_protocol_config(message: pb.ProcessingRequest) -> ProtocolConfig | None:
    if not message.HasField("protocol_config"):
        return None
    config = message.protocol_config
    try:
        return ProtocolConfig(
            BodyMode(config.request_body_mode),
            BodyMode(config.response_body_mode),
            config.send_body_without_waiting_for_header_response,
        )
    except ValueError as error:
        raise MessageInvalid(f"protocol_config: {error}") from error


def _copy_without(kind: str, message: pb.ProcessingRequest) -> pb.ProcessingRequest:
    # A parsed message owns a second copy of its body. A copy of the rest in memory of its own keeps
    # that from staying for as long as the event does.
    message.ClearField(kind)
    rest = pb.ProcessingRequest()
    rest.CopyFrom(message)
    return rest


def _build_phase_response(reply: PhaseReply) -> pb.ProcessingResponse:
    message = pb.ProcessingResponse()
    part: pb.HeadersResponse | pb.BodyResponse | pb.TrailersResponse = getattr(message, reply.phase)
    part.SetInParent()
    if isinstance(part, pb.TrailersResponse):
        if reply.body is not None or reply.clear_route_cache or reply.replace:
            raise ValueError(f"{reply.phase} have neither a body nor a route to change")
        _fill_header_mutation(part.header_mutation, reply)
    else:
        _fill_common_response(part.response, reply)
    if reply.mode_override is not None:
        _fill_processing_mode(message.mode_override, reply.mode_override)
    if reply.dynamic_metadata:
        message.dynamic_metadata.update(
            {namespace: dict(values) for namespace, values in reply.dynamic_metadata.items()}
        )
    if reply.override_message_timeout_s is not None:
        timeout = timedelta(seconds=reply.override_message_timeout_s)
        message.override_message_timeout.FromTimedelta(timeout)
    return message


def _serialize_with_body(message: pb.ProcessingResponse, phase: Phase, body: bytes) -> bytes:
    """Writes a reply around a body that is not part of it yet.

    protobuf would copy the body into the message, and twice more to write it; here it is copied
    once. The tags are those of `response.body_mutation.body` in the phase's part of the reply.
    """
    part: pb.HeadersResponse | pb.BodyResponse = getattr(message, phase)
    common = part.response.SerializeToString()
    message.ClearField(phase)
    mutation = _wrap(_BODY_FIELD, [body])
    response = _wrap(_RESPONSE_FIELD, [common, *_wrap(_BODY_MUTATION_FIELD, mutation)])
    pieces = _wrap(pb.ProcessingResponse.DESCRIPTOR.fields_by_name[phase].number, response)
    return b"".join([message.SerializeToString(), *pieces])


def _wrap(number: int, content: list[bytes]) -> list[bytes]:
    """Returns the content as a field of wire type 2: its tag and its length before it."""
    varints = bytearray()
    for value in (number << 3 | 2, sum(map(len, content))):
        left = value
        while left > 0x7F:
            varints.append(left & 0x7F | 0x80)
            left >>= 7
        varints.append(left)
    return [bytes(varints), *content]


_BODY_FIELD = pb.BodyMutation.DESCRIPTOR.fields_by_name["body"].number
_BODY_MUTATION_FIELD = pb.CommonResponse.DESCRIPTOR.fields_by_name["body_mutation"].number
_RESPONSE_FIELD = pb.BodyResponse.DESCRIPTOR.fields_by_name["response"].number


def _fill_common_response(response: pb.CommonResponse, reply: PhaseReply) -> None:
    _fill_header_mutation(response.header_mutation, reply)
    match reply.body:
        case ClearBody():
            response.body_mutation.clear_body = True
        case StreamedBody(body, end_of_stream):
            streamed = response.body_mutation.streamed_response
            streamed.SetInParent()
            streamed.body = body
            streamed.end_of_stream = end_of_stream
    if reply.clear_route_cache:
        response.clear_route_cache = True
    if reply.replace:
        response.status = pb.CommonResponse.CONTINUE_AND_REPLACE


def _fill_header_mutation(mutation: pb.HeaderMutation, reply: PhaseReply) -> None:
    _add_headers(mutation, reply.set_headers, append=False)
    _add_headers(mutation, reply.append_headers, append=True)
    if reply.remove_headers:
        mutation.remove_headers.extend(reply.remove_headers)


def _add_headers(mutation: pb.HeaderMutation, headers: Headers, *, append: bool) -> None:
    for name, value in headers:
        option = mutation.set_headers.add()
        # Envoy's ext_proc filter goes by `append` alone, and its default is to overwrite; other
        # proxies go by `append_action`, whose default is to append. What is said here is the same
        # for both.
        if append:
            option.append.value = True
        else:
            option.append_action = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        header = option.header
        header.key = name
        header.raw_value = value.encode("utf-8", "replace")


def _fill_processing_mode(mode: Any, override: ModeOverride) -> None:  # noqa: ANN401
    # `mode` is a pb.ProcessingMode: for mypy its fields take protobuf's own enums alone, while any
    # number will do.
    mode.SetInParent()
    mode.request_body_mode = override.request_body
    mode.request_trailer_mode = override.request_trailers
    mode.response_header_mode = override.response_headers
    mode.response_body_mode = override.response_body
    mode.response_trailer_mode = override.response_trailers


def _build_immediate_response(reply: ImmediateReply) -> pb.ProcessingResponse:
    message = pb.ProcessingResponse()
    part = message.immediate_response
    part.status.code = cast("pb.StatusCode", reply.status)
    seen: set[str] = set()
    for name, value in reply.headers:
        _add_headers(part.headers, ((name, value),), append=name.lower() in seen)
        seen.add(name.lower())
    part.body = reply.body
    part.details = reply.details
    if reply.grpc_status is not None:
        part.grpc_status.status = reply.grpc_status
    return message


_PLAIN = {
    phase: (reply, _build_phase_response(reply).SerializeToString())
    for phase, reply in ((phase, PhaseReply(phase)) for phase in Phase)
}
