"""Two legs that run at once: whatever either does, and whenever, the other ends as it must."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from exchanges import (
    CHAT,
    DECODE,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
    response_headers,
    sglang,
)
from waiting import wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.ext_proc_pb2 import HttpBody, ProcessingRequest
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.messages import (
    Event,
    ImmediateReply,
    PhaseReply,
    ReplaceBody,
    ResponseHeaders,
)
from pdrouter.serving.leg_outcome import Attempt
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.record import Outcome, RequestRecord, Retry
from pdrouter.serving.statuses import Speaks

P, D = sglang(PREFILL), sglang(DECODE)
OTHER_P = sglang(PREFILL, uid="p2", name="prefill-1", ip="10.0.0.5", address="10.0.0.5:8000")
GOOD = EngineAnswer(200, {}, b'{"usage": {"prompt_tokens": 7}}')


class Pair:
    """An exchange whose request went to both engines; the prefill engine does as it is told."""

    def __init__(self, *pods: Pod, **settings: Any) -> None:
        self.bench = Bench(pods or (P, D), **settings)
        self.told: asyncio.Future[EngineAnswer | FailureKind] = asyncio.Future()
        self.cancelled = False
        self.bench.prefill.answer = self.serve
        self.attempts: list[Attempt] = []
        notes = self.bench.notes
        notes.leg_attempted = self.note_attempt  # type: ignore[method-assign]

    def note_attempt(self, record: RequestRecord, attempt: Attempt) -> None:
        assert attempt in record.attempts
        self.attempts.append(attempt)

    async def serve(self) -> EngineAnswer | FailureKind:
        progress = self.bench.prefill.progress
        assert progress is not None
        progress.sent.set()
        try:
            return await self.told
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def forward(self) -> "Pair":
        _, reply = await self.bench.tell(request_headers(), request_body())
        assert isinstance(reply, PhaseReply)
        assert isinstance(reply.body, ReplaceBody)
        assert json.loads(bytes(reply.body.body)) == json.loads(bytes(self.post.body))
        return self

    @property
    def post(self) -> Any:
        return self.bench.prefill.posts[-1]

    def answer_head(self, status: int = 200) -> None:
        progress = self.bench.prefill.progress
        assert progress is not None
        progress.note_head(status)

    def answer(self, answer: EngineAnswer | FailureKind = GOOD) -> None:
        if isinstance(answer, EngineAnswer):
            self.answer_head(answer.status)
        self.told.set_result(answer)

    async def hear(self, event: Event) -> asyncio.Task[Any]:
        """Let the decode leg say something; return what answers it in the end."""
        task = asyncio.create_task(self.bench.exchange.handle(event))
        for _ in range(3):
            await asyncio.sleep(0)
        return task

    async def end(self) -> RequestRecord:
        """End the stream, and what may outlast it; all must have been told and counted once."""
        drains, bench = self.bench.exchanges.drains, self.bench
        bench.exchange.close()
        await bench.exchange.call.wait_closed()
        await wait_until(lambda: not drains.outstanding)
        assert bench.notes.open == 0
        assert bench.ledger.snapshot() == {}
        assert bench.bodies.bytes == 0
        (record,) = bench.notes.finished
        assert len(self.attempts) == len(record.attempts)
        return record


def encode_body() -> bytes:
    body = HttpBody(body=json.dumps(CHAT).encode(), end_of_stream=True)
    return ProcessingRequest(request_body=body).SerializeToString()


def gateway_reply() -> ResponseHeaders:
    """What Envoy answers itself where it cannot connect to the decode pod."""
    details = "upstream_reset_before_response_started{remote_connection_failure}"
    return ResponseHeaders({":status": "503"}, attributes={"response.code_details": details})


async def test_the_answer_waits_for_the_head_of_the_prefill_leg() -> None:
    pair = await Pair().forward()
    heard = await pair.hear(response_headers())
    assert not heard.done()
    pair.answer_head()
    reply = await heard
    assert isinstance(reply, PhaseReply)
    pair.answer()
    record = await pair.end()
    assert (record.outcome, record.prompt_tokens) == (Outcome.OK, 7)
    (attempt,) = pair.attempts
    assert attempt.speaks is Speaks.DONE
    # The time that it has taken, not only until it was sent.
    assert record.prefill_s >= attempt.seconds


async def test_a_prefill_leg_that_is_done_first_holds_nothing_up() -> None:
    pair = await Pair().forward()
    pair.answer()
    reply = await (await pair.hear(response_headers()))
    assert isinstance(reply, PhaseReply)
    assert (await pair.end()).outcome is Outcome.OK


FAILURES = [
    pytest.param(EngineAnswer(500, {}, b"{}"), (503, "prefill_failed"), id="500"),
    pytest.param(EngineAnswer(503, {}, b"{}"), (503, "prefill_failed"), id="503"),
    pytest.param(FailureKind.TRANSPORT, (503, "prefill_failed"), id="breaks"),
    pytest.param(FailureKind.TIMEOUT, (503, "prefill_failed"), id="times-out"),
]


@pytest.mark.parametrize(("failure", "told"), FAILURES)
@pytest.mark.parametrize("waiting", [False, True], ids=["before-the-head", "head-is-held"])
async def test_a_prefill_leg_that_fails_before_the_answer_is_a_clean_error(
    failure: EngineAnswer | FailureKind, told: tuple[int, str], *, waiting: bool
) -> None:
    pair = await Pair().forward()
    heard = await pair.hear(response_headers()) if waiting else None
    pair.answer(failure)
    await pair.bench.exchange.call.wait_closed()
    if heard is not None:
        assert await heard is None
    (sent,) = pair.bench.sent
    assert told[1].encode() in sent
    assert b"retry-after" in sent
    assert not pair.bench.interrupted
    record = await pair.end()
    assert (record.status, record.code, record.outcome) == (*told, Outcome.FAILED)
    assert len(pair.attempts) == 1


@pytest.mark.parametrize("status", [400, 404, 422, 429])
@pytest.mark.parametrize("waiting", [False, True], ids=["before-the-head", "head-is-held"])
async def test_what_the_prefill_engine_refuses_is_said_in_its_words(
    status: int, *, waiting: bool
) -> None:
    pair = await Pair().forward()
    heard = await pair.hear(response_headers()) if waiting else None
    pair.answer(EngineAnswer(status, {}, b'{"message": "no such thing"}'))
    await pair.bench.exchange.call.wait_closed()
    if heard is not None:
        assert await heard is None
    (sent,) = pair.bench.sent
    assert b"no such thing" in sent
    record = await pair.end()
    assert (record.status, record.outcome) == (status, Outcome.ENGINE_ERROR)


@pytest.mark.parametrize("failure", [FailureKind.TRANSPORT, FailureKind.TIMEOUT])
async def test_a_prefill_leg_that_fails_after_its_head_cuts_the_answer(
    failure: FailureKind,
) -> None:
    pair = await Pair().forward()
    pair.answer_head()
    await (await pair.hear(response_headers()))
    pair.answer(failure)
    await pair.bench.exchange.call.wait_closed()
    assert pair.bench.sent == []
    assert (pair.bench.exchange.cut, pair.bench.interrupted) == (True, True)
    assert (await pair.end()).outcome is Outcome.FAILED
    assert len(pair.attempts) == 1


@pytest.mark.parametrize("status", ["400", "429", "500", "503"])
@pytest.mark.parametrize("head", [False, True], ids=["silent", "begun"])
async def test_an_error_of_the_decode_leg_ends_the_prefill_leg(status: str, *, head: bool) -> None:
    pair = await Pair().forward()
    if head:
        pair.answer_head()
    reply = await (await pair.hear(response_headers(status)))
    assert isinstance(reply, PhaseReply)
    await wait_until(lambda: pair.cancelled)
    record = await pair.end()
    assert record.status == int(status)
    assert pair.attempts == []
    # It is the decode engine that has failed.
    assert pair.bench.state.failures.describe(P.uid) == []


async def test_an_answer_of_the_gateway_ends_the_prefill_leg() -> None:
    pair = await Pair().forward()
    reply = await (await pair.hear(gateway_reply()))
    assert isinstance(reply, PhaseReply)
    await wait_until(lambda: pair.cancelled)
    record = await pair.end()
    assert (record.status, record.outcome) == (503, Outcome.LOCAL_REPLY)
    assert pair.bench.state.failures.describe(P.uid) == []


@pytest.mark.parametrize("begun", [False, True], ids=["nothing", "decode-head"])
async def test_a_client_that_leaves_before_the_answer_ends_the_prefill_leg(*, begun: bool) -> None:
    pair = await Pair().forward()
    heard = await pair.hear(response_headers()) if begun else None
    if heard is not None:
        heard.cancel()
    record = await pair.end()
    assert pair.cancelled
    assert record.outcome is Outcome.CLIENT_LEFT
    assert pair.attempts == []


async def test_an_answer_that_outlasts_its_request_is_read_to_its_end() -> None:
    pair = await Pair().forward()
    pair.answer_head()
    await (await pair.hear(response_headers()))
    drains = pair.bench.exchanges.drains
    pair.bench.exchange.close()
    await pair.bench.exchange.call.wait_closed()
    assert drains.outstanding == 1
    assert not pair.cancelled
    # The engine still works on it.
    assert pair.bench.ledger.loads[Leg.PREFILL][P.uid].requests == 1
    pair.answer()
    await wait_until(lambda: not drains.outstanding)
    assert [attempt.speaks for attempt in pair.attempts] == [Speaks.DONE]
    assert pair.bench.ledger.snapshot() == {}
    assert pair.bench.bodies.bytes == 0


async def test_an_answer_that_outlasts_its_request_for_long_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = await Pair().forward()
    monkeypatch.setattr(pair.bench.exchanges.drains, "_patience_s", 0.01)
    pair.answer_head()
    await (await pair.hear(response_headers()))
    assert (await pair.end()).outcome is Outcome.OK
    assert pair.cancelled
    # It had begun to answer: nobody has waited for it in vain.
    assert pair.bench.state.failures.describe(P.uid) == []


async def test_an_engine_that_refuses_the_connection_costs_another_try() -> None:
    pair = Pair(P, OTHER_P, D, prefill_retries=1)
    posts = pair.bench.prefill.posts

    async def serve() -> EngineAnswer | FailureKind:
        return FailureKind.CONNECT if len(posts) == 1 else await pair.serve()

    pair.bench.prefill.answer = serve
    await pair.forward()
    first, second = (json.loads(bytes(post.body)) for post in posts)
    assert {first["bootstrap_host"], second["bootstrap_host"]} == {P.ip, OTHER_P.ip}
    assert first["bootstrap_room"] != second["bootstrap_room"]
    assert pair.bench.sent == []
    pair.answer()
    await (await pair.hear(response_headers()))
    record = await pair.end()
    assert record.retries == (Retry.SAME_ROLESET,)
    assert [attempt.speaks for attempt in pair.attempts] == [Speaks.FAILURE, Speaks.DONE]


async def test_engines_that_all_refuse_the_connection_are_an_error_without_a_decode_leg() -> None:
    pair = Pair(P, OTHER_P, D, prefill_retries=1)
    pair.bench.prefill.answer = lambda: FailureKind.CONNECT
    _, reply = await pair.bench.tell(request_headers(), request_body())
    assert error_of(reply) == (502, "prefill_failed")
    record = await pair.end()
    assert not record.forwarded
    assert len(pair.attempts) == 2


async def test_an_error_that_comes_while_the_body_is_answered_is_said_after_it() -> None:
    """Envoy goes on without a router whose stream ends without a word."""
    pair = Pair()
    bench = pair.bench
    await bench.tell(request_headers())
    sent: list[str] = []
    unblocked = asyncio.Event()

    async def send(data: bytes) -> None:
        if not sent:
            sent.append("body")
            await unblocked.wait()
        else:
            sent.append("error" if b"prefill_failed" in data else "?")

    bench.exchange._send = send
    receiving = asyncio.create_task(bench.exchange.receive(encode_body()))
    await wait_until(lambda: sent == ["body"])
    pair.answer(FailureKind.TRANSPORT)
    await wait_until(lambda: bench.exchange.ended)
    unblocked.set()
    await receiving
    # What carries the stream closes it now.
    await pair.end()
    assert sent == ["body", "error"]


async def test_a_body_counts_for_as_long_as_the_leg_may_send_it_again() -> None:
    pair = Pair()
    await pair.bench.tell(request_headers())
    await pair.bench.exchange.receive(encode_body())
    assert pair.bench.bodies.bytes > 0
    pair.answer()
    await wait_until(lambda: pair.bench.bodies.bytes == 0)
    await (await pair.hear(response_headers()))
    await pair.end()


async def test_a_request_for_too_many_rooms_ends_with_the_error_alone() -> None:
    pair = Pair()
    data = request_body({**CHAT, "n": 10_000})
    _, reply = await pair.bench.tell(request_headers(), data)
    replies = [reply] if reply else pair.bench.sent
    assert len(replies) == 1
    if isinstance(reply, ImmediateReply):
        assert error_of(reply) == (400, "invalid_value")
    record = await pair.end()
    assert (record.status, record.code) == (400, "invalid_value")
    assert pair.bench.prefill.posts == []


async def test_a_body_that_fails_once_its_leg_has_is_answered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What carries the leg breaks, and then the last leg's body is too large as well."""
    pair = Pair(max_message_bytes=MESSAGE_OVERHEAD_BYTES)
    bench = pair.bench

    async def break_down(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(SideLegs, "_try", break_down)
    await bench.tell(request_headers())
    await bench.exchange.receive(encode_body())
    assert [b"internal_error" in data for data in bench.sent] == [True]
    record = await pair.end()
    assert (record.status, record.code) == (500, "internal_error")


@pytest.mark.parametrize("by", ["deadline", "client"])
async def test_two_engines_that_are_silent_are_both_suspects(by: str) -> None:
    pair = Pair(eject_after=1)
    now = [0.0]
    pair.bench.state.failures.clock = lambda: now[0]
    await pair.forward()
    now[0] = 30.0
    if by == "deadline":
        pair.answer(FailureKind.TIMEOUT)
        await pair.bench.exchange.call.wait_closed()
    await pair.end()
    for pod in (P, D):
        assert pair.bench.state.failures.describe(pod.uid) != []


@pytest.mark.parametrize(
    "members", [{"n": 2}, {"max_tokens": 0}, {"stream_options": {"include_usage": True}}]
)
async def test_what_fits_this_wire_is_split(members: dict[str, Any]) -> None:
    pair = Pair()
    _, reply = await pair.bench.tell(request_headers(), request_body({**CHAT, **members}))
    assert isinstance(reply, PhaseReply)
    assert len(pair.bench.prefill.posts) == 1
    await pair.end()


async def test_several_choices_are_refused_where_engines_cannot_split_them() -> None:
    pair = Pair(sglang_split_n=False)
    _, reply = await pair.bench.tell(request_headers(), request_body({**CHAT, "n": 2}))
    assert error_of(reply) == (400, "cannot_be_split")
    await pair.end()
    whole = replace(D, uid="b", name="whole-0", role=Role.BOTH)
    other = Pair(P, D, whole, sglang_split_n=False)
    _, reply = await other.bench.tell(request_headers(), request_body({**CHAT, "n": 2}))
    assert isinstance(reply, PhaseReply)
    assert (await other.end()).aggregated == "n"


async def test_what_fits_this_wire_waits_for_prefill_pods_where_there_are_none() -> None:
    bench = Bench([D])
    _, reply = await bench.tell(request_headers(), request_body({**CHAT, "n": 2}))
    assert error_of(reply) == (503, "no_ready_pod")
    bench.close()


@pytest.mark.parametrize("members", [{"n": 2, "best_of": 3}, {"use_beam_search": True, "n": 2}])
async def test_a_second_reason_counts_where_the_first_is_none(members: dict[str, Any]) -> None:
    pair = Pair()
    _, reply = await pair.bench.tell(request_headers(), request_body({**CHAT, **members}))
    assert error_of(reply) == (400, "cannot_be_split")
    await pair.end()


async def test_who_asks_for_what_keeps_state_is_told_how_to_do_without() -> None:
    pair = Pair()
    path, content = "/v1/responses", {"model": "m", "input": "hi"}
    _, reply = await pair.bench.tell(request_headers(path), request_body(content))
    assert error_of(reply) == (400, "cannot_be_split")
    assert isinstance(reply, ImmediateReply)
    message = json.loads(reply.body)["error"]["message"]
    assert 'stateful-responses ("store": false lets it be split' in message
    await pair.end()
    other = Pair()
    told = request_body({**content, "store": False})
    _, reply = await other.bench.tell(request_headers(path), told)
    assert isinstance(reply, PhaseReply)
    await other.end()


@pytest.mark.parametrize("members", [{}, {"n": 2}])
async def test_without_a_prefill_pod_that_is_ready_the_client_may_come_again(
    members: dict[str, Any],
) -> None:
    pair = Pair(replace(P, ready=False), D)
    _, reply = await pair.bench.tell(request_headers(), request_body({**CHAT, **members}))
    assert error_of(reply) == (503, "no_ready_pod")
    await pair.end()


async def test_what_only_one_of_two_wires_can_split_is_not_split_on_the_other() -> None:
    pair = Pair(P, D, PREFILL, replace(DECODE, uid="d3", ip="10.0.0.6", address="10.0.0.6:8000"))
    _, reply = await pair.bench.tell(request_headers(), request_body({**CHAT, "n": 2}))
    assert isinstance(reply, PhaseReply)
    assert dict(reply.set_headers)["target-pod"] == "10.0.0.6:8000"
    assert pair.bench.prefill.posts == []
    assert (await pair.end()).aggregated == "n"


async def test_a_kind_that_prefill_engines_fail_is_not_refused_for_that() -> None:
    body = request_body({**CHAT, "tool_choice": "required"})
    pair = Pair()
    await pair.bench.tell(request_headers(), body)
    pair.answer(EngineAnswer(500, {}, b"{}"))
    await pair.bench.exchange.call.wait_closed()
    assert (await pair.end()).code == "prefill_failed"
    assert pair.bench.exchanges.dispatcher.chooser.kinds.evidence
    pair.bench.exchange = pair.bench.open()
    _, reply = await pair.bench.tell(request_headers(), body)
    # It has gone to the engine again.
    assert error_of(reply) == (502, "prefill_failed")
    assert len(pair.bench.prefill.posts) == 2
    pair.bench.exchange.close()
    await pair.bench.exchange.call.wait_closed()


async def test_who_waits_to_know_an_engine_is_counted_there() -> None:
    pods = [replace(pod, kv_connector="mooncake", bootstrap_port=8998) for pod in (PREFILL, DECODE)]
    bench = Bench(pods)
    asked = asyncio.Event()

    async def hang(*of: object, **named: object) -> EngineAnswer:
        asked.set()
        return await asyncio.Future()

    bench.prefill.get = hang  # type: ignore[attr-defined]
    failures = bench.state.failures
    for _ in range(failures.rules.after):
        failures.note_failure(PREFILL.uid, Leg.PREFILL, "timeout", failures.clock())
    task = asyncio.create_task(bench.tell(request_headers(), request_body()))
    await asyncio.wait_for(asked.wait(), 5)
    assert bench.ledger.loads[Leg.PREFILL][PREFILL.uid].requests == 1
    (remembered,) = failures.describe(PREFILL.uid)
    assert remembered["on_trial"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.close()
    (remembered,) = failures.describe(PREFILL.uid)
    assert not remembered["on_trial"]
