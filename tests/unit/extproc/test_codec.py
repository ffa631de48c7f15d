"""The ext_proc codec: how headers are read, what is refused, what is cached."""

from collections.abc import Callable

import pytest
from exchanges import bare
from google.protobuf.struct_pb2 import Struct
from hypothesis import example, given
from hypothesis import strategies as st

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.codec import MessageInvalid, decode, encode, keep
from pdrouter.extproc.messages import (
    EXT_PROC_FILTER,
    BodyMode,
    BodyMutation,
    ImmediateReply,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ReplaceBody,
    RequestBody,
    RequestHeaders,
    ResponseHeaders,
    StreamedBody,
)


def request_headers(*headers: pb.HeaderValue) -> bytes:
    return request_headers_of(*(each.SerializeToString() for each in headers))


def request_headers_of(*fields: bytes) -> bytes:
    message = pb.ProcessingRequest()
    message.request_headers.headers.headers.extend(fields)
    return message.SerializeToString()


def full_message() -> pb.ProcessingRequest:
    """A message with something in every field that the schema has."""
    message = pb.ProcessingRequest(observability_mode=True)
    message.request_headers.headers.headers.append(
        pb.HeaderValue(key=":path", raw_value=b"/v1/completions").SerializeToString()
    )
    message.request_headers.headers.headers.append(
        pb.HeaderValue(key="a", value="b").SerializeToString()
    )
    message.request_headers.end_of_stream = True
    attributes = Struct()
    attributes.update({"a": [1, True, None, {"b": "c"}]})
    message.attributes["envoy.filters.http.ext_proc"] = attributes.SerializeToString()
    message.attributes["another.filter"] = b"\xff"
    message.metadata_context.filter_metadata["d"].update({"e": "f"})
    config = pb.ProtocolConfiguration(
        request_body_mode=pb.ProcessingMode.BUFFERED,
        send_body_without_waiting_for_header_response=True,
    )
    message.protocol_config = config.SerializeToString()
    return message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([pb.HeaderValue(key="a", raw_value=b"1")], {"a": "1"}),
        ([pb.HeaderValue(key="a", value="1")], {"a": "1"}),
        ([pb.HeaderValue(key="a")], {"a": ""}),
        ([pb.HeaderValue(key="a", raw_value=b"raw", value="plain")], {"a": "raw"}),
        ([pb.HeaderValue(key="X-Mixed", raw_value=b"Case")], {"x-mixed": "Case"}),
        ([pb.HeaderValue(key="a", raw_value="é".encode())], {"a": "é"}),
        ([pb.HeaderValue(key="a", raw_value=b"\xe9!")], {"a": "\ufffd!"}),
        (
            [
                pb.HeaderValue(key="accept", raw_value=b"text/html"),
                pb.HeaderValue(key="b", raw_value=b"1"),
                pb.HeaderValue(key="Accept", value="*/*"),
            ],
            {"accept": "text/html, */*", "b": "1"},
        ),
        (
            [
                pb.HeaderValue(key="cookie", raw_value=b"a=1"),
                pb.HeaderValue(key="cookie", raw_value=b"b=2"),
            ],
            {"cookie": "a=1; b=2"},
        ),
        (
            [pb.HeaderValue(key="a"), pb.HeaderValue(key="a", raw_value=b"1")],
            {"a": ", 1"},
        ),
    ],
    ids=[
        "raw value",
        "value",
        "no value",
        "raw value before value",
        "name in lower case",
        "UTF-8",
        "not UTF-8",
        "repeated",
        "cookies",
        "repeated after an empty one",
    ],
)
def test_headers_are_read_as_http_means_them(
    headers: list[pb.HeaderValue], expected: dict[str, str]
) -> None:
    event = decode(request_headers(*headers))
    assert isinstance(event, RequestHeaders)
    assert bare(event) == RequestHeaders(expected)
    assert event.count == len(headers)
    assert event.size >= sum(len(each.key) + len(each.raw_value) for each in headers)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", "not a ProcessingRequest"),
        (b"", "no known kind"),
        (pb.ProcessingRequest(observability_mode=True).SerializeToString(), "no known kind"),
        # Field 99 with an empty message: a kind that a later Envoy may have.
        (b"\x9a\x06\x00", "no known kind"),
        (request_headers() + b"\x5a\x02\x08\x63", "99 is not a valid BodyMode"),
        (request_headers_of(b"\x0a\x01\xff"), "not a ProcessingRequest"),
        (request_headers_of(b"\x0a\x02a"), "not a ProcessingRequest"),
    ],
    ids=[
        "garbage",
        "empty",
        "no kind",
        "unknown kind",
        "unknown body mode",
        "a header's name is not UTF-8",
        "half a header",
    ],
)
def test_what_cannot_be_understood_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(MessageInvalid, match=reason) as refusal:
        decode(data)

    assert reason in refusal.value.reason


def test_a_message_nested_too_deep_is_refused() -> None:
    value = b""
    for _ in range(2000):
        # A google.protobuf.Value that holds a list of one value.
        value = _field(6, _field(1, value))
    attributes = _field(1, EXT_PROC_FILTER.encode()) + _field(
        2, _field(1, _field(1, b"b") + _field(2, value))
    )

    with pytest.raises(MessageInvalid):
        decode(request_headers() + _field(9, attributes))


def _field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_everything_that_comes_with_a_message_is_there() -> None:
    event = decode(full_message().SerializeToString())

    assert bare(event) == RequestHeaders(
        {":path": "/v1/completions", "a": "b"},
        end_of_stream=True,
        observability_mode=True,
        protocol_config=ProtocolConfig(BodyMode.BUFFERED, BodyMode.NONE, True),
    )
    assert isinstance(event, RequestHeaders)
    assert event.attributes == {"a": [1, True, None, {"b": "c"}]}
    assert event.metadata() == {"d": {"e": "f"}}


def test_an_event_made_by_hand_has_nothing_beside_its_content() -> None:
    event = RequestHeaders({})

    assert event.attributes == {}
    assert event.metadata() == {}
    assert event.protocol_config is None
    assert event.observability_mode is False


def test_a_body_is_not_shown_where_its_event_is() -> None:
    """Whatever shows an event, a log line or a trace of an error: prompts are the client's."""
    assert "secret" not in repr(RequestBody(b"a secret"))


@pytest.mark.parametrize("phase", Phase)
def test_a_reply_that_is_kept_is_encoded_once(phase: Phase) -> None:
    reply = keep(PhaseReply(phase))

    assert encode(reply) is encode(reply)
    assert encode(reply) == encode(PhaseReply(phase))


@pytest.mark.parametrize("phase", [Phase.REQUEST_TRAILERS, Phase.RESPONSE_TRAILERS])
@pytest.mark.parametrize(
    "make_reply",
    [
        lambda phase: PhaseReply(phase, body=ReplaceBody(b"")),
        lambda phase: PhaseReply(phase, clear_route_cache=True),
        lambda phase: PhaseReply(phase, set_headers=(("a", "b"),)),
        lambda phase: PhaseReply(phase, remove_headers=("a",)),
    ],
    ids=["body", "route", "header", "no header"],
)
def test_a_reply_to_trailers_cannot_change_what_is_sent_already(
    phase: Phase, make_reply: Callable[[Phase], PhaseReply]
) -> None:
    with pytest.raises(ValueError, match=phase):
        encode(make_reply(phase))


@pytest.mark.parametrize("body", [ReplaceBody(b""), StreamedBody(b"")])
def test_an_empty_body_is_still_a_mutation(body: BodyMutation) -> None:
    written = encode(PhaseReply(Phase.REQUEST_BODY, body=body))

    message = pb.ProcessingResponse.FromString(written)
    assert message.request_body.response.HasField("body_mutation")


def test_a_header_value_that_utf8_cannot_hold_is_replaced() -> None:
    written = encode(ImmediateReply(400, (("a", "x\ud800y"),)))

    message = pb.ProcessingResponse.FromString(written)
    assert message.immediate_response.headers.set_headers[0].header.raw_value == b"x?y"


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    data = bytearray(full_message().SerializeToString())
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.integers(0, len(data)))
        end = draw(st.integers(position, min(len(data), position + 4)))
        data[position:end] = draw(st.binary(max_size=4))
    return bytes(data)


@given(data=st.binary(max_size=200) | damaged_messages())
@example(data=full_message().SerializeToString())
def test_any_bytes_are_an_event_or_are_refused(data: bytes) -> None:
    try:
        event = decode(data)
    except MessageInvalid:
        return
    assert event.phase in Phase
    if isinstance(event, RequestHeaders | ResponseHeaders):
        assert isinstance(event.attributes, dict)
        assert isinstance(event.metadata(), dict)
