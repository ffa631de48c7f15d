"""What Envoy and the router say to each other about one HTTP request: events and replies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, TypeAlias

import msgspec
from google.protobuf.struct_pb2 import Struct, Value

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.openai.pieces import Pieces

Headers: TypeAlias = tuple[tuple[str, str], ...]

EXT_PROC_FILTER = "envoy.filters.http.ext_proc"
"""Name under which the filter that asks us sends its attributes."""


class Phase(StrEnum):
    """A step of one HTTP request; each has a message from Envoy and a reply to it.

    The values are the names of the fields that hold the two on the wire.
    """

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"


class HeaderMode(IntEnum):
    """Whether Envoy sends headers or trailers; by default it sends headers and no trailers."""

    DEFAULT = 0
    SEND = 1
    SKIP = 2


class BodyMode(IntEnum):
    """How Envoy sends a body."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


class ProtocolConfig(msgspec.Struct, frozen=True):
    """How Envoy's filter is configured; only the first message of a stream tells."""

    request_body_mode: BodyMode
    response_body_mode: BodyMode
    send_body_without_waiting_for_header_response: bool


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    """What every message from Envoy may carry.

    Attributes:
        protocol_config: The filter's configuration, on the first message of a stream.
        observability_mode: True if Envoy ignores replies to this message.
    """

    protocol_config: ProtocolConfig | None = None
    observability_mode: bool = False


class _HeadersEvent(_Event, frozen=True):
    """The headers of one direction.

    Attributes:
        headers: By name in lower case, pseudo headers such as `:path` among them.
        end_of_stream: True if neither a body nor trailers follow.
        count: How many there are; a name that occurs twice is two.
        size: Bytes that they take, at least that of all names and values; for a small message,
            that of all of it.
        attributes: Envoy's attributes, such as `upstream.address`, as its filter sends them: once
            per direction, with the first message.
        context: The message that metadata are read from, when asked for.
    """

    headers: Mapping[str, str]
    end_of_stream: bool = False
    count: int = 0
    size: int = 0
    attributes: Mapping[str, Any] = {}
    context: pb.ProcessingRequest = msgspec.field(default_factory=pb.ProcessingRequest)

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Returns the request's dynamic metadata by namespace, as far as Envoy forwards it."""
        namespaces = self.context.metadata_context.filter_metadata
        return {name: read_struct(namespaces[name]) for name in namespaces}


class _BodyEvent(_Event, frozen=True):
    """The body of one direction or, in the streamed modes, a piece of it.

    Attributes:
        end_of_stream: True if neither more of the body nor trailers follow.
    """

    body: bytes
    end_of_stream: bool = False

    def __repr__(self) -> str:
        # Without what the client or the engine has said.
        return f"{type(self).__name__}({len(self.body)} bytes, {self.end_of_stream=})"


class _TrailersEvent(_Event, frozen=True):
    """The trailers of one direction, by name in lower case."""

    trailers: Mapping[str, str]


class RequestHeaders(_HeadersEvent, frozen=True):
    """The headers from the client."""

    phase: ClassVar[Phase] = Phase.REQUEST_HEADERS


class RequestBody(_BodyEvent, frozen=True):
    """The body from the client."""

    phase: ClassVar[Phase] = Phase.REQUEST_BODY


class RequestTrailers(_TrailersEvent, frozen=True):
    """The trailers from the client."""

    phase: ClassVar[Phase] = Phase.REQUEST_TRAILERS


class ResponseHeaders(_HeadersEvent, frozen=True):
    """The headers from the engine."""

    phase: ClassVar[Phase] = Phase.RESPONSE_HEADERS


class ResponseBody(_BodyEvent, frozen=True):
    """The body from the engine."""

    phase: ClassVar[Phase] = Phase.RESPONSE_BODY


class ResponseTrailers(_TrailersEvent, frozen=True):
    """The trailers from the engine."""

    phase: ClassVar[Phase] = Phase.RESPONSE_TRAILERS


Event: TypeAlias = (
    RequestHeaders
    | RequestBody
    | RequestTrailers
    | ResponseHeaders
    | ResponseBody
    | ResponseTrailers
)


class ReplaceBody(msgspec.Struct, frozen=True):
    """This body instead of the whole message that is answered."""

    body: bytes | Pieces

    def __repr__(self) -> str:
        # Without what the client has said.
        return f"{type(self).__name__}({len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class StreamedBody:
    """A piece of the body in the modes `FULL_DUPLEX_STREAMED` and `GRPC`, and only there."""

    body: bytes = field(repr=False)
    end_of_stream: bool = False


BodyMutation: TypeAlias = ReplaceBody | StreamedBody


class ModeOverride(msgspec.Struct, frozen=True):
    """What Envoy sends in the rest of this request: all of it, in place of what is configured.

    Envoy obeys in reply to headers only, and only if its filter has `allow_mode_override`.
    """

    request_body: BodyMode = BodyMode.NONE
    request_trailers: HeaderMode = HeaderMode.DEFAULT
    response_headers: HeaderMode = HeaderMode.DEFAULT
    response_body: BodyMode = BodyMode.NONE
    response_trailers: HeaderMode = HeaderMode.DEFAULT


class PhaseReply(msgspec.Struct, frozen=True):
    """The answer to the message of one phase: let it go on, changed as said here.

    Attributes:
        set_headers: Headers that replace all others of their name.
        remove_headers: Names of headers to remove; Envoy removes before it sets.
        clear_route_cache: Choose the route anew, by the changed headers.
        dynamic_metadata: Texts to set, by namespace and name.
    """

    phase: Phase
    set_headers: Headers = ()
    remove_headers: tuple[str, ...] = ()
    body: BodyMutation | None = None
    clear_route_cache: bool = False
    mode_override: ModeOverride | None = None
    dynamic_metadata: Mapping[str, Mapping[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class ImmediateReply:
    """The end of the request with an answer of our own.

    Attributes:
        status: An HTTP status from 200 up.
        headers: A name that occurs twice is sent twice.
        details: What Envoy's access log shows as `RESPONSE_CODE_DETAILS`.
        grpc_status: For gRPC clients, the status of the call.
    """

    status: int
    headers: Headers = ()
    body: bytes = field(default=b"", repr=False)
    details: str = ""
    grpc_status: int | None = None


Reply: TypeAlias = PhaseReply | ImmediateReply


def read_struct(struct: Struct) -> dict[str, Any]:
    """Returns a struct's values by their names."""
    fields, read = struct.fields, {}  # Their `items` are read three times as slowly.
    for name in fields:
        value = fields[name]
        # Nearly all are texts.
        text = value.HasField("string_value")
        read[name] = value.string_value if text else _read_value(value)
    return read


def _read_value(value: Value) -> Any:  # noqa: ANN401 (any JSON value)
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "struct_value":
            return read_struct(value.struct_value)
        case "list_value":
            return [_read_value(item) for item in value.list_value.values]
        case "number_value":
            return value.number_value
        case "bool_value":
            return value.bool_value
        case _:
            return None
