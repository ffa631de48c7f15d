"""The router counts the tokens of answers only where it is told to, and never in their way."""

import json

import pytest
from exchanges import CHAT, DECODE, Bench, request_body, request_headers

from pdrouter.extproc.messages import (
    BodyMode,
    ModeOverride,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ResponseBody,
    ResponseHeaders,
)
from pdrouter.openai.usage import Usage
from pdrouter.openai.usage_scan import StreamScan
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import TokenObservation

SSE = {":status": "200", "content-type": "text/event-stream"}
STREAM = {**CHAT, "stream": True}
WATCHED = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.STREAMED)
SILENCED = ModeOverride(request_body=BodyMode.BUFFERED, response_body=BodyMode.NONE)
ANSWERED = PhaseReply(Phase.RESPONSE_BODY)
SEEN = {"pdrouter": {"first_token": "seen"}}
BEGUN = PhaseReply(Phase.RESPONSE_BODY, dynamic_metadata=SEEN)
"""With what keeps Envoy's log from telling once more when the answer began."""


def make_bench(observation: str) -> Bench:
    return Bench(observe_tokens=TokenObservation.parse(observation))


async def test_an_answer_is_counted_as_it_passes() -> None:
    bench = make_bench("all")
    *_, reply = await bench.tell(request_headers(), request_body(STREAM), ResponseHeaders(SSE))
    assert isinstance(reply, PhaseReply)
    assert reply.mode_override == WATCHED
    replies = await bench.tell(
        ResponseBody(b'data: {"choices": []}\n\nda'),
        ResponseBody(b'ta: {"usage": {"prompt_tokens": 9, "completion_tokens": 3}}\n\n'),
        ResponseBody(b"", end_of_stream=True),
    )
    assert replies == [BEGUN, ANSWERED, ANSWERED]
    bench.close()
    ((report, pod),) = bench.notes.answers
    assert report.usage == Usage(9, None, 3)
    assert (report.status, report.misrouted, pod) == (200, False, DECODE)
    assert report.first_token_s is not None
    assert report.stream_s is not None
    assert report.inter_token_s == report.stream_s / 2
    assert bench.exchanges.lengths.expect("m") < 100


async def test_a_filter_that_sends_bodies_anyway_is_left_to_do_so() -> None:
    bench = make_bench("all")
    config = ProtocolConfig(BodyMode.BUFFERED, BodyMode.STREAMED, False)
    *_, reply = await bench.tell(
        request_headers(config=config), request_body(STREAM), ResponseHeaders(SSE)
    )
    assert isinstance(reply, PhaseReply)
    assert reply.mode_override is None
    bench.close()


async def test_the_cached_tokens_are_those_of_the_prefill_leg() -> None:
    bench = make_bench("all")
    body = b'{"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 8}}}'
    headers = {":status": "200", "content-type": "application/json"}
    await bench.tell(
        request_headers(), request_body(), ResponseHeaders(headers), ResponseBody(body)
    )
    bench.close()
    ((report, _),) = bench.notes.answers
    assert report.usage == Usage(9, None, None)
    assert (report.first_token_s, report.inter_token_s) == (None, None)


@pytest.mark.parametrize(
    ("path", "observation", "headers", "timed"),
    [
        ("/v1/chat/completions", "off", SSE, True),
        ("/v1/chat/completions", "sampled:1e-300", SSE, True),
        ("/v1/chat/completions", "all", {**SSE, "content-encoding": "gzip"}, True),
        ("/v1/chat/completions", "all", {**SSE, "content-type": "audio/mpeg"}, True),
        ("/v1/chat/completions", "all", {**SSE, ":status": "500"}, False),
        ("/tokenize", "all", SSE, False),
    ],
)
@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.STREAMED])
async def test_an_answer_that_is_not_counted_passes_by(
    path: str, observation: str, headers: dict[str, str], timed: bool, mode: BodyMode
) -> None:
    bench = make_bench(observation)
    config = ProtocolConfig(BodyMode.BUFFERED, mode, False)
    body = request_body({"model": "m", "prompt": "hi"} if path == "/tokenize" else STREAM)
    *_, reply = await bench.tell(
        request_headers(path, config=config), body, ResponseHeaders(headers)
    )
    assert isinstance(reply, PhaseReply)
    assert reply.mode_override == (None if mode is BodyMode.NONE else SILENCED)
    told = BEGUN if timed and observation != "off" else ANSWERED
    assert await bench.tell(ResponseBody(b"data: x")) == [told]
    record = bench.close()
    # Where bodies pass all the same, it is seen when the first of them came.
    assert [report.counted for report, _ in bench.notes.answers] == [False] * timed
    assert (record.first_token_s is not None) is timed


@pytest.mark.parametrize("observation", ["first-token", "access-log"])
async def test_envoys_log_is_not_to_tell_again_what_was_seen(observation: str) -> None:
    bench = make_bench(observation)
    replies = await bench.tell(
        request_headers(),
        request_body(STREAM),
        ResponseHeaders(SSE),
        ResponseBody(b""),
        ResponseBody(b"data: x"),
        ResponseBody(b"data: y"),
    )
    told = [reply.dynamic_metadata for reply in replies[3:] if isinstance(reply, PhaseReply)]
    assert told == [None, SEEN, None]
    bench.close()
    ((report, _),) = bench.notes.answers
    assert (report.counted, report.first_token_s) == (False, bench.exchange.record.first_token_s)


async def test_a_plain_answer_has_no_first_token_to_be_told() -> None:
    bench = make_bench("first-token")
    *_, reply = await bench.tell(
        request_headers(), request_body(), ResponseHeaders(SSE), ResponseBody(b"{}")
    )
    assert reply == ANSWERED
    assert bench.close().first_token_s is None
    assert bench.notes.answers == []


async def test_a_mistake_in_counting_does_not_cut_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: StreamScan, piece: bytes) -> None:
        raise RuntimeError("a mistake in counting")

    monkeypatch.setattr(StreamScan, "feed", fail)
    bench = make_bench("all")
    *_, reply = await bench.tell(
        request_headers(), request_body(STREAM), ResponseHeaders(SSE), ResponseBody(b"data: x")
    )
    assert reply == BEGUN
    assert bench.close().outcome is Outcome.OK
    assert [report.counted for report, _ in bench.notes.answers] == [False]


@pytest.mark.parametrize("observation", ["first-token", "access-log", "all", "sampled:0.5"])
async def test_envoy_is_told_for_its_log_what_the_request_is(observation: str) -> None:
    bench = make_bench(observation)
    _, reply = await bench.tell(request_headers(), request_body(STREAM))
    assert isinstance(reply, PhaseReply)
    assert reply.dynamic_metadata is not None
    assert json.loads(reply.dynamic_metadata["pdrouter"]["request"]) == {
        "request_id": bench.exchange.record.request_id,
        "model": "m",
        "endpoint": DECODE.address,
        "stream": True,
        "generates": True,
        "split": True,
    }
    bench.close()


async def test_without_a_log_envoy_is_told_nothing() -> None:
    bench = make_bench("off")
    _, reply = await bench.tell(request_headers(), request_body(STREAM))
    assert isinstance(reply, PhaseReply)
    assert reply.dynamic_metadata is None
    bench.close()


@pytest.mark.parametrize(
    "text",
    ["off", "first-token", "access-log", "all", "sampled:0.01", "sampled:0.5"],
)
def test_an_observation_is_written_as_it_is_read(text: str) -> None:
    assert str(TokenObservation.parse(text)) == text
