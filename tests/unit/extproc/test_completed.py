"""Requests of which the side leg has left nothing to do: the router answers, and counts them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from exchanges import CHAT, DECODE, PREFILL, Bench, request_body, request_headers

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.extproc.messages import ImmediateReply
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import TokenObservation

PODS = tuple(replace(pod, engine="trtllm") for pod in (PREFILL, DECODE))
ANSWER = {
    "object": "chat.completion",
    "choices": [
        {
            "message": {"content": "ok"},
            "finish_reason": "stop",
            "disaggregated_params": {"encoded_opaque_state": "hidden"},
        }
    ],
    "prompt_token_ids": [1, 2, 3],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_client_gets_the_side_legs_answer(stream: bool) -> None:
    bench = Bench(PODS, observe_tokens=TokenObservation(share=1.0))
    bench.prefill.answer = lambda: EngineAnswer(200, {}, json.dumps(ANSWER).encode())
    body: dict[str, Any] = {**CHAT, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    _, reply = await bench.tell(request_headers(), request_body(body))

    assert isinstance(reply, ImmediateReply)
    headers = dict(reply.headers)
    assert (reply.status, headers["x-pd-decision"]) == (200, "disaggregated")
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert headers["content-type"] == kind
    assert headers["prefill-target-pod"] == PREFILL.name
    assert "target-pod" not in headers
    assert b"hidden" not in reply.body
    assert b"prompt_token_ids" not in reply.body
    assert bench.exchange.ended

    record = bench.close()
    assert (record.outcome, record.status) == (Outcome.OK, 200)
    assert record.standing_decision is record.decision is not None
    ((report, _),) = bench.notes.answers
    assert report.usage is not None
    assert (report.usage.prompt_tokens, report.usage.output_tokens) == (3, 1)


async def test_a_decode_pod_that_has_gone_is_not_missed() -> None:
    bench = Bench(PODS)

    def leave() -> EngineAnswer:
        bench.cache.replace(PODS[:1])
        return EngineAnswer(200, {}, json.dumps(ANSWER).encode())

    bench.prefill.answer = leave
    _, reply = await bench.tell(request_headers(), request_body())
    assert isinstance(reply, ImmediateReply)
    assert (reply.status, json.loads(reply.body)["choices"][0]["finish_reason"]) == (200, "stop")
    bench.close()


async def test_the_machine_number_and_the_sticky_headers_reach_the_engine() -> None:
    bench = Bench(PODS, trtllm_machine_id=77)
    sticky = dict.fromkeys(
        ("x-session-id", "x-correlation-id", "x-session-affinity", "x-multi-turn-session-id"), "s"
    )
    await bench.tell(request_headers(extra=sticky), request_body())
    (post,) = bench.prefill.posts
    assert {name: post.headers[name] for name in sticky} == sticky
    assert json.loads(bytes(post.body))["disaggregated_params"]["disagg_request_id"] >> 53 == 77
    bench.close()
