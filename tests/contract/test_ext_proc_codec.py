"""Our codec against envoy-data-plane: what one writes, the other reads with the same content."""

from typing import Any, TypeAlias

import betterproto2
import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc_filter
from envoy_data_plane.envoy.service.ext_proc import v3 as service
from envoy_data_plane.google.protobuf import Struct
from exchanges import bare
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.extproc.codec import decode, encode
from pdrouter.extproc.messages import (
    EXT_PROC_FILTER,
    BodyMode,
    BodyMutation,
    HeaderMode,
    Headers,
    ImmediateReply,
    ModeOverride,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ReplaceBody,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    StreamedBody,
)

# envoy-data-plane warns of a field that Envoy's filter goes by all the same.
pytestmark = pytest.mark.filterwarnings(
    "ignore:HeaderValueOption.append is deprecated:DeprecationWarning"
)

OVERWRITE = core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD

EVENTS = {
    Phase.REQUEST_HEADERS: RequestHeaders,
    Phase.REQUEST_BODY: RequestBody,
    Phase.REQUEST_TRAILERS: RequestTrailers,
    Phase.RESPONSE_HEADERS: ResponseHeaders,
    Phase.RESPONSE_BODY: ResponseBody,
    Phase.RESPONSE_TRAILERS: ResponseTrailers,
}
Part: TypeAlias = service.HttpHeaders | service.HttpBody | service.HttpTrailers
HEADERS_PHASES = [Phase.REQUEST_HEADERS, Phase.RESPONSE_HEADERS]
BODY_PHASES = [Phase.REQUEST_BODY, Phase.RESPONSE_BODY]
TRAILERS_PHASES = [Phase.REQUEST_TRAILERS, Phase.RESPONSE_TRAILERS]
EMPTY_PARTS: dict[Phase, Part] = {
    **dict.fromkeys(HEADERS_PHASES, service.HttpHeaders()),
    **dict.fromkeys(BODY_PHASES, service.HttpBody()),
    **dict.fromkeys(TRAILERS_PHASES, service.HttpTrailers()),
}

names = st.from_regex(r":?[A-Za-z0-9_-]{1,12}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3)
    ),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=3)
namespaces = st.dictionaries(st.text(max_size=8), json_objects, max_size=2)
body_modes = st.sampled_from(BodyMode)
header_modes = st.sampled_from(HeaderMode)
header_values = st.builds(
    core.HeaderValue, key=names, raw_value=st.binary(min_size=1, max_size=20)
) | st.builds(core.HeaderValue, key=names, value=st.text(max_size=20))
header_maps = st.builds(
    core.HeaderMap,
    headers=st.lists(header_values, max_size=6, unique_by=lambda header: header.key.lower()),
)


def structs(content: dict[str, dict[str, Any]]) -> dict[str, Struct]:
    return {namespace: Struct.from_dict(values) for namespace, values in content.items()}


def contents(header_map: core.HeaderMap) -> dict[str, str]:
    return {
        header.key.lower(): header.raw_value.decode("utf-8", "replace") or header.value
        for header in header_map.headers
    }


def put(phase: Phase, part: Part, message: service.ProcessingRequest) -> service.ProcessingRequest:
    setattr(message, phase, part)
    return message


# ---- What Envoy sends ----


@pytest.mark.parametrize("phase", HEADERS_PHASES)
@given(headers=header_maps, end_of_stream=st.booleans())
def test_headers_are_read(phase: Phase, headers: core.HeaderMap, end_of_stream: bool) -> None:
    part = service.HttpHeaders(headers=headers, end_of_stream=end_of_stream)

    event = decode(bytes(put(phase, part, service.ProcessingRequest())))

    assert bare(event) == EVENTS[phase](contents(headers), end_of_stream)


@pytest.mark.parametrize("phase", BODY_PHASES)
@given(body=st.binary(), end_of_stream=st.booleans())
def test_a_body_is_read(phase: Phase, body: bytes, end_of_stream: bool) -> None:
    part = service.HttpBody(body=body, end_of_stream=end_of_stream)

    event = decode(bytes(put(phase, part, service.ProcessingRequest())))

    assert bare(event) == EVENTS[phase](body, end_of_stream)


@pytest.mark.parametrize("phase", TRAILERS_PHASES)
@given(trailers=header_maps)
def test_trailers_are_read(phase: Phase, trailers: core.HeaderMap) -> None:
    part = service.HttpTrailers(trailers=trailers)

    event = decode(bytes(put(phase, part, service.ProcessingRequest())))

    assert bare(event) == EVENTS[phase](contents(trailers))


@pytest.mark.parametrize("phase", Phase)
@given(
    attributes=st.dictionaries(
        st.just(EXT_PROC_FILTER) | st.text(max_size=8), json_objects, max_size=2
    ),
    metadata=namespaces,
    observability_mode=st.booleans(),
    config=st.none() | st.builds(ProtocolConfig, body_modes, body_modes, st.booleans()),
)
def test_what_comes_along_with_a_message_is_read(
    phase: Phase,
    attributes: dict[str, dict[str, Any]],
    metadata: dict[str, dict[str, Any]],
    observability_mode: bool,
    config: ProtocolConfig | None,
) -> None:
    message = service.ProcessingRequest(
        attributes=structs(attributes),
        metadata_context=core.Metadata(filter_metadata=structs(metadata)),
        observability_mode=observability_mode,
    )
    if config is not None:
        message.protocol_config = service.ProtocolConfiguration(
            request_body_mode=ext_proc_filter.ProcessingModeBodySendMode(config.request_body_mode),
            response_body_mode=ext_proc_filter.ProcessingModeBodySendMode(
                config.response_body_mode
            ),
            send_body_without_waiting_for_header_response=(
                config.send_body_without_waiting_for_header_response
            ),
        )

    event = decode(bytes(put(phase, EMPTY_PARTS[phase], message)))

    assert event.phase is phase
    if isinstance(event, RequestHeaders | ResponseHeaders):
        assert event.attributes == attributes.get(EXT_PROC_FILTER, {})
        assert event.metadata() == metadata
    assert event.observability_mode is observability_mode
    assert event.protocol_config == config


# ---- What Envoy is answered ----

headers = st.lists(st.tuples(names, st.text(max_size=20)), max_size=5).map(tuple)
texts = st.dictionaries(st.text(max_size=8), st.text(max_size=300), max_size=3)
bodies = st.builds(ReplaceBody, st.binary()) | st.builds(StreamedBody, st.binary(), st.booleans())
mode_overrides = st.builds(
    ModeOverride,
    request_body=body_modes,
    request_trailers=header_modes,
    response_headers=header_modes,
    response_body=body_modes,
    response_trailers=header_modes,
)


def phase_replies(phase: Phase) -> st.SearchStrategy[PhaseReply]:
    """Replies with any of the content that the phase allows."""
    common = {
        "phase": st.just(phase),
        "mode_override": st.none() | mode_overrides,
        "dynamic_metadata": st.none()
        | st.dictionaries(st.text(max_size=8), texts, min_size=1, max_size=2),
    }
    if phase in TRAILERS_PHASES:
        return st.builds(PhaseReply, **common)
    return st.builds(
        PhaseReply,
        **common,
        set_headers=headers,
        remove_headers=st.lists(names, max_size=3).map(tuple),
        body=st.none() | bodies,
        clear_route_cache=st.booleans(),
    )


def read_headers(options: list[core.HeaderValueOption]) -> Headers:
    """The headers that are set.

    Envoy's filter goes by `append`, other proxies by `append_action`: the two must agree.
    """
    read: list[tuple[str, str]] = []
    for option in options:
        assert not option.append
        assert option.append_action is OVERWRITE
        assert option.header is not None
        assert option.header.value == ""
        read.append((option.header.key, option.header.raw_value.decode()))
    return tuple(read)


def read_body(mutation: service.BodyMutation) -> BodyMutation:
    match betterproto2.which_one_of(mutation, "mutation"):
        case "body", bytes(body):
            return ReplaceBody(body)
        case "streamed_response", service.StreamedBodyResponse() as piece:
            return StreamedBody(piece.body, piece.end_of_stream)
        case other:
            pytest.fail(f"unexpected body mutation {other}")


def read_mode_override(mode: ext_proc_filter.ProcessingMode) -> ModeOverride:
    assert mode.request_header_mode == ext_proc_filter.ProcessingModeHeaderSendMode.DEFAULT
    return ModeOverride(
        request_body=BodyMode(mode.request_body_mode),
        request_trailers=HeaderMode(mode.request_trailer_mode),
        response_headers=HeaderMode(mode.response_header_mode),
        response_body=BodyMode(mode.response_body_mode),
        response_trailers=HeaderMode(mode.response_trailer_mode),
    )


def read_phase_reply(message: service.ProcessingResponse) -> PhaseReply:
    """The reply that Envoy would see in the message."""
    kind, part = betterproto2.which_one_of(message, "response")
    response = service.CommonResponse()
    if isinstance(part, service.TrailersResponse):
        assert part == service.TrailersResponse()
    else:
        assert isinstance(part, service.HeadersResponse | service.BodyResponse)
        response = part.response or response
    mutation = response.header_mutation or service.HeaderMutation()
    return PhaseReply(
        Phase(kind),
        set_headers=read_headers(mutation.set_headers),
        remove_headers=tuple(mutation.remove_headers),
        body=read_body(response.body_mutation) if response.body_mutation is not None else None,
        clear_route_cache=response.clear_route_cache,
        mode_override=read_mode_override(message.mode_override)
        if message.mode_override is not None
        else None,
        dynamic_metadata=message.dynamic_metadata.to_dict()
        if message.dynamic_metadata is not None
        else None,
    )


@pytest.mark.parametrize("phase", Phase)
@given(data=st.data())
def test_a_reply_is_written(phase: Phase, data: st.DataObject) -> None:
    reply = data.draw(phase_replies(phase))

    message = service.ProcessingResponse.parse(encode(reply))

    assert read_phase_reply(message) == reply


@pytest.mark.parametrize("phase", Phase)
def test_a_plain_reply_says_no_more_than_its_phase(phase: Phase) -> None:
    message = service.ProcessingResponse.parse(encode(PhaseReply(phase)))

    assert message.to_dict(casing=betterproto2.Casing.SNAKE) == {phase: {}}


@given(
    status=st.integers(200, 599),
    headers=headers,
    body=st.binary(),
    details=st.text(max_size=20),
    grpc_status=st.none() | st.integers(0, 16),
)
def test_an_immediate_reply_is_written(
    status: int, headers: Headers, body: bytes, details: str, grpc_status: int | None
) -> None:
    reply = ImmediateReply(status, headers, body, details, grpc_status)

    message = service.ProcessingResponse.parse(encode(reply))

    kind, part = betterproto2.which_one_of(message, "response")
    assert kind == "immediate_response"
    assert isinstance(part, service.ImmediateResponse)
    assert part.status is not None
    assert int(part.status.code) == status
    assert part.body == body
    assert part.details == details
    assert (part.grpc_status.status if part.grpc_status is not None else None) == grpc_status
    options = part.headers.set_headers if part.headers is not None else []
    assert [
        (option.header.key, option.header.raw_value.decode())
        for option in options
        if option.header is not None
    ] == list(headers)
    names_before = [
        {name.lower() for name, _ in headers[:position]} for position in range(len(headers))
    ]
    assert [bool(option.append) for option in options] == [
        name.lower() in before for (name, _), before in zip(headers, names_before, strict=True)
    ]
