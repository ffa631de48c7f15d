"""What engines are told of when requests are due, and what becomes of those that refuse it."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from exchanges import (
    CHAT,
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    Post,
    error_of,
    request_body,
    request_headers,
    response_headers,
)
from factories import make_record, make_request
from waiting import wait_until

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.messages import PhaseReply, ReplaceBody, Reply, ResponseHeaders
from pdrouter.openai.pieces import Pieces
from pdrouter.serving import priorities
from pdrouter.settings.choices import Aggregation, Priority

GOOD = EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")
REFUSAL = EngineAnswer(
    400, {}, b'{"error":{"message":"Got priority 7 but Priority scheduling is not enabled."}}'
)


def read(body: bytes | Pieces) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(body))
    return found


def members(post: Post) -> dict[str, Any]:
    return read(post.body)


def sent_on(reply: Reply | None, body: Any = CHAT) -> dict[str, Any]:
    """Return what Envoy sends to the decode pod."""
    assert isinstance(reply, PhaseReply)
    if reply.body is None:
        return dict(body)
    assert isinstance(reply.body, ReplaceBody)
    return read(reply.body.body)


def list_questions(bench: Bench) -> list[Post]:
    return [
        post
        for post in bench.prefill.posts
        if post.headers["x-request-id"].startswith("pdrouter-question-")
    ]


def list_legs(bench: Bench) -> list[Post]:
    questions = list_questions(bench)
    return [post for post in bench.prefill.posts if post not in questions]


def script(bench: Bench, legs: Sequence[Any], question: EngineAnswer | FailureKind = GOOD) -> None:
    """Let the engines answer these to prefill legs, and that to questions."""
    left = list(legs)

    def answer() -> Any:
        asked = bench.prefill.posts[-1].headers["x-request-id"].startswith("pdrouter-question-")
        return question if asked else left.pop(0)

    bench.prefill.answer = answer


async def serve(bench: Bench, body: Any = CHAT, **headers: str) -> Reply | None:
    """Return the reply by which a request is sent on, once what it has begun has ended."""
    if bench.exchange.ended:
        bench.exchange = bench.open()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    _, reply, _ = await bench.tell(
        request_headers(extra=named), request_body(body), response_headers()
    )
    for _ in range(3):
        await asyncio.sleep(0)
    return reply


async def test_nothing_is_told_unless_it_is_set() -> None:
    bench = Bench()
    script(bench, [GOOD])
    reply = await serve(bench, {**CHAT, "priority": 7}, x_slo_ttft_ms="500", x_vllm_priority="3")
    (post,) = bench.prefill.posts
    assert members(post)["priority"] == 7
    assert post.headers["x-vllm-priority"] == "3"
    assert sent_on(reply)["priority"] == 7
    assert bench.close().priority is None


async def test_both_engines_are_told_once_they_are_known_to_take_it() -> None:
    bench = Bench(priority=Priority.AUTO)
    script(bench, [GOOD, GOOD])
    reply = await serve(bench, x_slo_ttft_ms="500")
    first = bench.close()
    assert isinstance(members(list_legs(bench)[0])["priority"], int)
    # Envoy's request cannot be sent again: the decode engine was asked, and is told from now on.
    assert "priority" not in sent_on(reply)
    assert first.ranked_legs == (Leg.PREFILL,)
    (question,) = list_questions(bench)
    assert members(question) == {
        "model": "m",
        "prompt": "ping",
        "max_tokens": 1,
        "priority": 1,
    }
    reply = await serve(bench, x_slo_ttft_ms="500")
    record = bench.close()
    assert record.priority == members(list_legs(bench)[1])["priority"] == sent_on(reply)["priority"]
    assert record.ranked_legs == (Leg.PREFILL, Leg.DECODE)
    assert len(list_questions(bench)) == 1


async def test_what_is_due_sooner_has_the_lower_number() -> None:
    bench = Bench(priority=Priority.ON, classes=(("fast", 0.2), ("slow", 600.0)))
    script(bench, [GOOD] * 3)
    for headers in ({"x_priority": "slow"}, {}, {"x_priority": "fast"}):
        await serve(bench, **headers)
        bench.close()
    slow, usual, fast = (members(post)["priority"] for post in list_legs(bench))
    assert fast < usual < slow


async def test_a_prefill_leg_that_is_refused_for_its_priority_is_sent_again_without() -> None:
    bench = Bench(priority=Priority.AUTO)
    script(bench, [REFUSAL, GOOD, GOOD], REFUSAL)
    reply = await serve(bench)
    record = bench.close()
    first, second = list_legs(bench)
    assert "priority" in members(first)
    assert "priority" not in members(second)
    assert second.headers["x-request-id"] == f"{record.request_id}-2"
    assert sent_on(reply)["kv_transfer_params"] == json.loads(PARAMS)
    assert record.status == 200
    assert not record.ranked_legs
    # It was no failure of the pod's, nor a try on another one.
    assert [attempt.status for attempt in record.attempts] == [200]
    await serve(bench)
    bench.close()
    assert "priority" not in members(list_legs(bench)[2])
    assert bench.notes.refused_priorities == ["m", "m"]
    assert len(list_questions(bench)) == 1


async def test_an_engine_that_says_the_same_without_a_priority_has_meant_something_else() -> None:
    bench = Bench(priority=Priority.AUTO)
    refusal = EngineAnswer(400, {}, b'{"error":{"message":"the word priority is bad"}}')
    script(bench, [refusal, refusal, GOOD])
    _, reply = await bench.tell(request_headers(), request_body())
    assert getattr(reply, "body", None) == refusal.body
    bench.close()
    assert not bench.notes.refused_priorities
    await serve(bench)
    assert "priority" in members(list_legs(bench)[2])
    bench.close()


async def test_an_engine_that_has_not_answered_is_not_told_and_not_asked_with_every_request() -> (
    None
):
    bench = Bench(priority=Priority.AUTO)
    script(bench, [GOOD] * 3, FailureKind.CONNECT)
    for _ in range(3):
        assert "priority" not in sent_on(await serve(bench))
        bench.close()
    assert len(list_questions(bench)) == 1


async def test_an_engine_is_asked_with_the_key_of_the_client() -> None:
    bench = Bench(priority=Priority.AUTO)
    script(bench, [GOOD])
    await serve(bench, authorization="Bearer k", cookie="c")
    (question,) = list_questions(bench)
    assert question.headers["authorization"] == "Bearer k"
    assert "cookie" not in question.headers
    bench.close()


async def test_if_it_is_said_to_be_on_nobody_is_asked() -> None:
    bench = Bench(priority=Priority.ON)
    script(bench, [GOOD])
    reply = await serve(bench)
    assert bench.close().priority == sent_on(reply)["priority"]
    assert not list_questions(bench)


async def refuse(bench: Bench) -> None:
    """Let a decode engine refuse what Envoy has sent it with a priority."""
    if bench.exchange.ended:
        bench.exchange = bench.open()
    answer = ResponseHeaders({":status": "400", "server": "uvicorn"})
    await bench.tell(request_headers(authorization="Bearer k"), request_body(), answer)
    assert Leg.DECODE in bench.close().ranked_legs
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_decode_engine_that_refuses_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has started anew with other flags, and nobody has told."""
    monkeypatch.setattr(priorities, "_DOUBT_S", 0.0)
    bench = Bench(priority=Priority.AUTO)
    script(bench, [GOOD] * 4)
    await serve(bench)
    bench.close()
    script(bench, [GOOD] * 4, REFUSAL)
    await refuse(bench)
    question = list_questions(bench)[-1]
    assert (members(question)["model"], question.headers["authorization"]) == ("m", "Bearer k")
    assert bench.state.priorities.find(DECODE) is False
    assert "priority" not in sent_on(await serve(bench))
    bench.close()


@pytest.mark.parametrize("answer", [GOOD, FailureKind.CONNECT, EngineAnswer(401, {}, b"")])
async def test_bad_requests_of_a_client_do_not_make_forgotten_what_an_engine_takes(
    answer: EngineAnswer | FailureKind,
) -> None:
    bench = Bench(priority=Priority.AUTO)
    script(bench, [GOOD] * 8)
    await serve(bench)
    bench.close()
    script(bench, [GOOD] * 8, answer)
    for _ in range(3):
        await refuse(bench)
        assert bench.state.priorities.find(DECODE) is True
    assert "priority" in sent_on(await serve(bench))
    bench.close()
    # Nor do they have it asked at each of them.
    assert len(list_questions(bench)) == 1


async def test_what_envoy_may_send_to_either_of_two_is_told_where_both_take_it() -> None:
    bench = Bench(priority=Priority.AUTO)
    second = replace(DECODE, uid="second")
    asker, request = bench.exchanges.priorities, make_request("/v1/completions")
    for takes, told in ((None, None), (False, None), (True, 7)):
        bench.state.priorities.note(DECODE, takes=True)
        if takes is not None:
            bench.state.priorities.note(second, takes=takes)
        pods = (DECODE, second)
        ranked = asker.rank(
            request.rank(None), Leg.DECODE, pods, make_record(priority=7), {}, once=True
        )
        assert ranked.priority == told


async def test_what_has_no_priority_is_not_refused_for_it() -> None:
    bench = Bench()
    script(bench, [REFUSAL, GOOD])
    _, reply = await bench.tell(request_headers(), request_body())
    assert getattr(reply, "body", None) == REFUSAL.body
    assert len(bench.prefill.posts) == 1
    bench.close()


async def test_a_request_that_one_pod_serves_is_told_to_it() -> None:
    bench = Bench((DECODE,), priority=Priority.AUTO, aggregation=Aggregation.FALLBACK)
    script(bench, [])
    assert "priority" not in sent_on(await serve(bench))
    bench.close()
    reply = await serve(bench)
    assert bench.close().priority == sent_on(reply)["priority"]


@pytest.mark.parametrize(
    ("changes", "path", "body"),
    [
        ({"engine": "sglang"}, "/v1/chat/completions", CHAT),
        ({}, "/v1/messages", {**CHAT, "max_tokens": 3}),
    ],
)
async def test_what_has_no_such_member_gets_none(
    changes: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    pods = (replace(PREFILL, **changes), replace(DECODE, **changes))
    bench = Bench(pods, priority=Priority.ON)
    script(bench, [GOOD])
    if bench.exchange.ended:
        bench.exchange = bench.open()
    _, reply = await bench.tell(request_headers(path), request_body({**body, "priority": -5}))
    assert "priority" not in sent_on(reply)
    for post in bench.prefill.posts:
        assert "priority" not in members(post)
    bench.close()


@pytest.mark.parametrize("mode", [Priority.AUTO, Priority.ON])
async def test_a_client_cannot_go_before_others(mode: Priority) -> None:
    bench = Bench(priority=mode)
    script(bench, [GOOD])
    reply = await serve(bench, {**CHAT, "priority": -5}, x_vllm_priority="-5")
    (post,) = list_legs(bench)
    assert members(post)["priority"] > 0
    assert "x-vllm-priority" not in post.headers
    assert sent_on(reply).get("priority", 1) > 0
    bench.close()
    headers = await strip_headers(bench)
    assert "x-vllm-priority" in headers.remove_headers


async def strip_headers(bench: Bench) -> PhaseReply:
    if bench.exchange.ended:
        bench.exchange = bench.open()
    (reply,) = await bench.tell(request_headers(x_vllm_priority="-5"))
    bench.close()
    assert isinstance(reply, PhaseReply)
    return reply


async def test_a_client_that_is_trusted_can() -> None:
    bench = Bench(priority=Priority.ON, trust_priority=True)
    script(bench, [GOOD] * 3)
    reply = await serve(bench, {**CHAT, "priority": -5})
    assert members(list_legs(bench)[0])["priority"] == sent_on(reply)["priority"] == -5
    bench.close()
    await serve(bench, x_vllm_priority="-5")
    assert list_legs(bench)[1].headers["x-vllm-priority"] == "-5"
    assert "priority" not in members(list_legs(bench)[1])
    bench.close()
    await serve(bench)
    assert members(list_legs(bench)[2])["priority"] > 0
    bench.close()
    headers = await strip_headers(bench)
    assert "x-vllm-priority" not in headers.remove_headers


async def test_questions_end_with_the_router() -> None:
    bench = Bench(priority=Priority.AUTO)
    ended = asyncio.Event()

    async def hang() -> EngineAnswer:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return GOOD

    script(bench, [GOOD])
    usual = bench.prefill.answer

    def answer() -> Any:
        asked = bench.prefill.posts[-1].headers["x-request-id"].startswith("pdrouter-question-")
        return hang() if asked else usual()

    bench.prefill.answer = answer
    async with bench.exchanges.priorities.questions:
        await serve(bench)
        bench.close()
        assert not ended.is_set()
    assert ended.is_set()


async def test_an_error_of_the_client_is_still_the_clients() -> None:
    bench = Bench(priority=Priority.AUTO)
    _, reply = await bench.tell(request_headers(), request_body({"model": "m"}))
    assert error_of(reply) == (400, "invalid_value")
    bench.close()


async def test_a_leg_that_runs_beside_the_last_one_ends_in_an_error_of_the_routers() -> None:
    """An engine has started anew with other flags, and its twin is on its way: nothing can be
    sent again, and the client could do nothing with what the engine says."""
    pods = [replace(pod, kv_connector="nixl-push") for pod in (PREFILL, DECODE)]
    bench = Bench(pods, priority=Priority.ON)
    push = json.loads(PARAMS) | {"transfer_mode": "push", "tp_size": 1}
    good = EngineAnswer(200, {}, json.dumps({"kv_transfer_params": push}).encode())

    async def refuse() -> EngineAnswer:
        assert bench.prefill.progress is not None
        bench.prefill.progress.sent.set()
        await asyncio.sleep(0)
        bench.prefill.progress.note_head(REFUSAL.status)
        return REFUSAL

    script(bench, [good, refuse()])
    assert "priority" in sent_on(await serve(bench))
    bench.close()
    bench.exchange = bench.open()
    _, body = await bench.tell(request_headers(), request_body())
    assert "priority" in sent_on(body)
    await wait_until(lambda: bench.exchange.ended)
    record = bench.close()
    assert (record.status, record.code) == (503, "prefill_failed")
    assert bench.state.priorities.find(PREFILL) is False
    assert bench.notes.refused_priorities == ["m"]
