"""Which message may come when: every message of Envoy's in every state of a request."""

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
from exchanges import (
    Bench,
    error_of,
    request_body,
    request_headers,
    response_headers,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.extproc.exchange import STEPS, State
from pdrouter.extproc.messages import (
    BodyMode,
    Event,
    HeaderMode,
    ImmediateReply,
    ModeOverride,
    PhaseReply,
    ProtocolConfig,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    StreamedBody,
)
from pdrouter.openai.stored_responses import create_response_id
from pdrouter.serving.record import Outcome

HEADERS, BODY, TRAILERS = request_headers(), request_body(), RequestTrailers({})
REQUEST: tuple[Event, ...] = (HEADERS, BODY, TRAILERS)
ANSWER: tuple[Event, ...] = (response_headers(), ResponseBody(b"x", False), ResponseTrailers({}))

START: tuple[Event, ...] = ()
HEAD = (HEADERS,)
SENT = (request_headers(f"/v1/responses/{create_response_id('d', '')}", "GET", end_of_stream=True),)
FORWARDED = (HEADERS, BODY)
RESPONDING = (HEADERS, BODY, response_headers())
REFUSED = (HEADERS, response_headers("413"))
EARLIER = (response_headers("403"),)

GOES_ON = (0, "")
SILENT = (0, "silence")
PROTOCOL_ERROR = (500, "protocol_error")
NO_BODY = (400, "invalid_body")
MISCONFIGURED = (500, "ext_proc_misconfigured")

# Request headers, body and trailers, then response headers, body and trailers.
TABLE: list[tuple[Sequence[Event], Sequence[tuple[int, str]]]] = [
    (START, (GOES_ON, MISCONFIGURED, MISCONFIGURED, GOES_ON, GOES_ON, GOES_ON)),
    (HEAD, (PROTOCOL_ERROR, GOES_ON, NO_BODY, GOES_ON, GOES_ON, GOES_ON)),
    (SENT, (PROTOCOL_ERROR, GOES_ON, GOES_ON, GOES_ON, GOES_ON, GOES_ON)),
    (FORWARDED, (PROTOCOL_ERROR, PROTOCOL_ERROR, GOES_ON, GOES_ON, GOES_ON, GOES_ON)),
    (RESPONDING, (SILENT, GOES_ON, GOES_ON, SILENT, GOES_ON, GOES_ON)),
    (REFUSED, (SILENT, GOES_ON, GOES_ON, SILENT, GOES_ON, GOES_ON)),
    (EARLIER, (SILENT, GOES_ON, GOES_ON, SILENT, GOES_ON, GOES_ON)),
]


def describe(events: Sequence[Event]) -> str:
    return "-".join(event.phase for event in events) or "start"


@pytest.mark.parametrize(
    ("before", "event", "expected"),
    [
        pytest.param(before, event, expected, id=f"{describe(before)}+{event.phase}")
        for before, row in TABLE
        for event, expected in zip((*REQUEST, *ANSWER), row, strict=True)
    ],
)
async def test_every_message_in_every_state(
    before: Sequence[Event], event: Event, expected: tuple[int, str]
) -> None:
    bench = Bench()
    await bench.tell(*before)
    (reply,) = await bench.tell(event)
    if expected == GOES_ON:
        assert isinstance(reply, PhaseReply)
        assert reply.phase == event.phase
        assert not bench.exchange.ended
    elif expected == SILENT:
        assert reply is None
        assert bench.exchange.ended
    else:
        assert error_of(reply) == expected
        assert bench.exchange.ended
        assert await bench.exchange.handle(HEADERS) is None
    record = bench.close()
    out_of_order = expected in (SILENT, PROTOCOL_ERROR)
    assert (record.outcome is Outcome.PROTOCOL_ERROR) is out_of_order


def test_every_state_is_in_the_table_or_final() -> None:
    assert set(STEPS) == set(State)
    following = {step.next for steps in STEPS.values() for step in steps.values()}
    # Which requests need no body, their headers tell.
    assert following == set(State) - {State.SENT}


REQUESTS = st.tuples(*(st.sampled_from([(), (event,)]) for event in REQUEST))
ANSWERS = st.tuples(
    st.sampled_from([(), (response_headers("200"),), (response_headers("503"),)]),
    st.lists(st.builds(ResponseBody, st.binary(max_size=4), st.booleans()), max_size=3),
    st.sampled_from([(), (ResponseTrailers({}),)]),
)


@given(REQUESTS, ANSWERS, st.integers(0, 3))
@settings(deadline=None)
def test_whatever_the_filter_skips_and_whoever_answers_makes_sense(
    request: Sequence[Sequence[Event]], answer: Sequence[Sequence[Event]], answered_after: int
) -> None:
    async def drive() -> Outcome | None:
        bench = Bench()
        for event in chain(*request[:answered_after], *answer):
            await bench.exchange.handle(event)
            if bench.exchange.ended:
                break
        return bench.close().outcome

    assert asyncio.run(drive()) is not Outcome.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "answer",
    [
        [ResponseHeaders({":status": "204"}, True)],
        [response_headers("403"), ResponseBody(b"x", True)],
        [response_headers("403"), ResponseBody(b"x", False), ResponseTrailers({})],
    ],
    ids=describe,
)
async def test_the_answer_of_an_earlier_filter_passes_untouched(
    answer: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(bearer_token="key")
    replies = await bench.tell(*answer)
    assert replies == [PhaseReply(event.phase) for event in answer]
    record = bench.close()
    assert record.outcome is Outcome.LOCAL_REPLY
    assert str(record.status) in ("204", "403")
    assert not caplog.records


@pytest.mark.parametrize("answer", [ANSWER[1:], ANSWER[2:]], ids=describe)
async def test_an_earlier_answer_without_its_headers_counts_too(answer: Sequence[Event]) -> None:
    bench = Bench()
    await bench.tell(*answer)
    assert bench.close().outcome is Outcome.LOCAL_REPLY


@pytest.mark.parametrize("mode", [BodyMode.STREAMED, BodyMode.BUFFERED])
async def test_the_body_of_an_earlier_answer_is_not_asked_for(mode: BodyMode) -> None:
    bench = Bench()
    config = ProtocolConfig(BodyMode.BUFFERED, mode, False)
    headers, body = await bench.tell(
        ResponseHeaders({":status": "403"}, protocol_config=config), ResponseBody(b"x", True)
    )
    assert isinstance(headers, PhaseReply)
    assert headers.mode_override is not None
    assert headers.mode_override.response_body is BodyMode.NONE
    # The filter may not be allowed to obey.
    assert isinstance(body, PhaseReply)
    assert body.body is None
    bench.close()


@pytest.mark.parametrize("mode", [BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC])
async def test_an_earlier_answer_is_sent_back_where_the_filter_waits_for_it(mode: BodyMode) -> None:
    bench = Bench()
    config = ProtocolConfig(mode, mode, False)
    _, body, end = await bench.tell(
        ResponseHeaders({":status": "403"}, protocol_config=config),
        ResponseBody(b"no", False),
        ResponseBody(b"", True),
    )
    assert isinstance(body, PhaseReply)
    assert body.body == StreamedBody(b"no", False)
    assert isinstance(end, PhaseReply)
    assert end.body == StreamedBody(b"", True)
    bench.close()


def answered_by_a_pod(status: str = "200") -> ResponseHeaders:
    return ResponseHeaders({":status": status}, attributes={"upstream.address": "10.0.0.2:8000"})


@pytest.mark.parametrize(("before", "code"), [(START, MISCONFIGURED), (HEAD, NO_BODY)])
async def test_a_pods_answer_to_a_request_that_was_not_decided_reaches_nobody(
    before: Sequence[Event], code: tuple[int, str]
) -> None:
    bench = Bench()
    *_, reply = await bench.tell(*before, answered_by_a_pod())
    assert error_of(reply) == code
    bench.close()


@pytest.mark.parametrize("response_body", [None, BodyMode.NONE, BodyMode.STREAMED])
async def test_what_the_filter_may_skip_is_asked_for(response_body: BodyMode | None) -> None:
    bench = Bench()
    config = None
    if response_body is not None:
        config = ProtocolConfig(BodyMode.BUFFERED, response_body, False)
    (reply,) = await bench.tell(request_headers(config=config))
    assert isinstance(reply, PhaseReply)
    assert reply.mode_override == ModeOverride(
        request_body=BodyMode.BUFFERED,
        request_trailers=HeaderMode.SEND,
        response_headers=HeaderMode.SEND,
        response_body=response_body or BodyMode.NONE,
    )
    assert "target-pod" in reply.remove_headers
    bench.close()


@pytest.mark.parametrize("length", ["12, 12", "many", "9" * 30, "٣", "-1", ""])
async def test_an_odd_length_is_no_reason_to_refuse(length: str) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(content_length=length))
    assert isinstance(reply, PhaseReply)
    bench.close()


@pytest.mark.parametrize(
    "events",
    [
        [RequestHeaders(HEADERS.headers, True)],
        [request_headers(content_length="0")],
        [request_headers(content_length="00"), TRAILERS],
        [HEADERS, TRAILERS],
        [HEADERS, RequestBody(b"", True)],
        [HEADERS, RequestBody(b"", False)],
    ],
    ids=describe,
)
async def test_a_request_without_a_body_is_told_so(events: list[Event]) -> None:
    bench = Bench()
    replies = [reply for reply in await bench.tell(*events) if reply is not None]
    assert error_of(replies[-1]) == NO_BODY
    assert isinstance(replies[-1], ImmediateReply)
    assert b"the request has no body" in replies[-1].body
    bench.close()


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"connection": "Upgrade", "upgrade": "websocket"}, True),
        ({"connection": "keep-alive, UPGRADE", "upgrade": "WebSocket"}, True),
        ({"connection": "upgrade", "upgrade": ""}, True),
        ({"upgrade": "websocket"}, False),
        ({"connection": "upgrade"}, False),
        ({"connection": "upgraded", "upgrade": "websocket"}, False),
        ({"connection": "close"}, False),
    ],
)
async def test_an_upgrade_is_refused_at_the_headers(headers: dict[str, str], refused: bool) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(extra=headers))
    if refused:
        assert error_of(reply) == (400, "upgrade_not_supported")
    else:
        assert isinstance(reply, PhaseReply)
    bench.close()


@pytest.mark.parametrize("extra", [{}, {":protocol": "websocket"}])
@pytest.mark.parametrize("path", ["", "/v1/chat/completions"])
async def test_a_tunnel_is_refused_at_the_headers(extra: dict[str, Any], path: str) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(path, "CONNECT", extra=extra))
    assert error_of(reply) == (405, "method_not_allowed")
    bench.close()
