"""The life of one request, driven by events, without a transport."""

import asyncio
import json
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from functools import partial
from typing import Any

import pytest
from exchanges import (
    BUFFERED,
    CHAT,
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
    response_headers,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.names import LINGER_S
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.codec import encode
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.messages import (
    BodyMode,
    Event,
    ImmediateReply,
    Phase,
    PhaseReply,
    ProtocolConfig,
    ReplaceBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from pdrouter.extproc.phases import Phases
from pdrouter.openai.errors import RequestRejected
from pdrouter.serving.call import Call
from pdrouter.serving.dispatched import Dispatched, RequestHead
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import Aggregation, FailurePolicy


async def test_a_disaggregated_request_goes_its_whole_way() -> None:
    bench = Bench()
    headers, body, response = await bench.tell(
        request_headers(authorization="Bearer k", cookie="c", x_extra="1"),
        request_body(),
        response_headers(),
    )
    assert isinstance(headers, PhaseReply)
    assert {"target-pod", "x-gateway-destination-endpoint", "routing-strategy", "model"} <= set(
        headers.remove_headers
    )
    assert isinstance(body, PhaseReply)
    assert isinstance(body.body, ReplaceBody)
    sent = bytes(body.body.body)
    assert PARAMS in sent
    assert json.loads(sent) == CHAT | {"kv_transfer_params": json.loads(PARAMS)}
    request_id = bench.exchange.record.request_id
    assert dict(body.set_headers) == {
        "x-request-id": request_id,
        "target-pod": "10.0.0.2:8000",
        "x-gateway-destination-endpoint": "10.0.0.2:8000",
        "routing-strategy": "pd",
        "x-envoy-max-retries": "0",
        "content-length": str(len(sent)),
    }
    assert body.clear_route_cache
    assert isinstance(response, PhaseReply)
    assert response.mode_override is None
    assert dict(response.set_headers) == {
        "x-request-id": request_id,
        "x-pd-decision": "disaggregated",
        "request-id": request_id,
        "routing-strategy": "pd",
        "target-pod": "decode-0",
        "target-pod-ip": "10.0.0.2:8000",
        "prefill-target-pod": "prefill-0",
        "prefill-target-pod-ip": "10.0.0.1",
    }
    assert bench.ledger.load(Leg.DECODE, "d").requests == 1
    record = bench.close()
    assert record.outcome is Outcome.OK
    assert record.status == 200
    (post,) = bench.prefill.posts
    assert json.loads(bytes(post.body))["max_tokens"] == 1
    request_id = record.request_id
    assert post.headers == {
        "authorization": "Bearer k",
        "x-extra": "1",
        "x-request-id": request_id,
    }


async def test_pods_are_not_told_when_the_operator_says_so() -> None:
    bench = Bench(expose_pods=False)
    *_, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(response, PhaseReply)
    assert {name for name, _ in response.set_headers} == {"x-request-id", "x-pd-decision"}
    bench.close()


@pytest.mark.parametrize("answer", [FailureKind.CONNECT, EngineAnswer(400, {}, b"{}")])
async def test_what_was_not_prefilled_is_not_remembered(answer: Any) -> None:
    bench = Bench()
    bench.prefill.answer = lambda: answer
    messages = [{"role": "user", "content": "A long prompt. " * 100}]
    await bench.tell(request_headers(), request_body(CHAT | {"messages": messages}))
    bench.exchange.close()
    bench.exchange = bench.open()
    bench.notes.open = 1
    await bench.tell(request_headers(), request_body(CHAT | {"messages": messages}))
    first, second = bench.prefill.posts
    assert second.tokens == first.tokens
    bench.close()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("asked", [True, False])
async def test_a_decision_is_explained_to_who_asks_if_the_operator_agrees(
    enabled: bool, asked: bool
) -> None:
    bench = Bench(explain_decisions=enabled)
    extra = {"x-pd-decision-detail": "1"} if asked else {}
    *_, response = await bench.tell(
        request_headers(extra=extra), request_body(), response_headers()
    )
    assert isinstance(response, PhaseReply)
    detail = dict(response.set_headers).get("x-pd-decision-detail")
    if enabled and asked:
        assert detail is not None
        explained = json.loads(detail)
        assert explained["decision"] == "disaggregated"
        assert explained["prefill"]["policy"] == "ttft"
        assert set(explained["prefill"]["scores"]) == {"prefill-0"}
        assert explained["decode"]["pod"] == "decode-0"
    else:
        assert detail is None
    bench.close()


@pytest.mark.parametrize(
    ("path", "method", "end", "status", "code"),
    [
        ("/", "GET", True, 404, "unknown_path"),
        ("/v1/chat/completions/", "POST", False, 404, "unknown_path"),
        ("/v1/chat/completions", "GET", True, 405, "method_not_allowed"),
        ("/v1/chat/completions?x=1", "POST", True, 400, "invalid_body"),
        ("/v1/models", "POST", False, 405, "method_not_allowed"),
        ("/v1/models/none", "GET", True, 404, "model_not_found"),
    ],
)
async def test_requests_without_a_way_are_refused_at_their_headers(
    path: str, method: str, end: bool, status: int, code: str
) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(path, method, end_of_stream=end))
    assert error_of(reply) == (status, code)
    assert bench.exchange.ended
    record = bench.close()
    assert (record.outcome, record.status, record.code) == (Outcome.REJECTED, status, code)


async def test_a_refused_method_names_the_allowed_one() -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(method="PUT"))
    assert isinstance(reply, ImmediateReply)
    assert ("allow", "POST") in reply.headers
    bench.close()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?limit=1"])
async def test_the_models_are_listed(path: str) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(path, "GET", end_of_stream=True))
    assert isinstance(reply, ImmediateReply)
    assert [model["id"] for model in json.loads(reply.body)["data"]] == ["m"]
    assert bench.close().outcome is Outcome.ANSWERED


async def test_a_model_with_a_slash_in_its_name_is_found() -> None:
    pod = Pod.create(uid="x", name="x", ip="10.0.0.3", port=1, model="Qwen/Q", role=Role.BOTH)
    bench = Bench([pod])
    (reply,) = await bench.tell(request_headers("/v1/models/Qwen%2FQ", "GET", end_of_stream=True))
    assert isinstance(reply, ImmediateReply)
    assert json.loads(reply.body)["id"] == "Qwen/Q"
    bench.close()


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ({}, False),
        ({"authorization": "Bearer wrong"}, False),
        ({"authorization": "Basic key"}, False),
        ({"authorization": "bearer  key "}, True),
        ({"x-api-key": "key"}, True),
    ],
)
async def test_the_bearer_token_is_asked_for(headers: dict[str, str], admitted: bool) -> None:
    bench = Bench(bearer_token="key")
    (reply,) = await bench.tell(request_headers(extra=headers))
    if admitted:
        assert isinstance(reply, PhaseReply)
    else:
        assert error_of(reply) == (401, "invalid_api_key")
    bench.close()


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (None, False),
        (BUFFERED, False),
        (ProtocolConfig(BodyMode.BUFFERED, BodyMode.STREAMED, False), False),
        (ProtocolConfig(BodyMode.STREAMED, BodyMode.NONE, False), True),
        (ProtocolConfig(BodyMode.NONE, BodyMode.NONE, False), True),
        (ProtocolConfig(BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED, False), True),
    ],
)
async def test_body_modes_that_cannot_work_are_refused_by_name(
    config: ProtocolConfig | None, refused: bool
) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(config=config))
    if refused:
        assert error_of(reply) == (500, "ext_proc_misconfigured")
    else:
        assert isinstance(reply, PhaseReply)
    bench.close()


async def test_compressed_bodies_are_refused() -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(content_encoding="gzip"))
    assert error_of(reply) == (415, "unsupported_encoding")
    bench.close()


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_body"),
        (CHAT | {"model": "other"}, 404, "model_not_found"),
        (CHAT | {"messages": []}, 400, "invalid_value"),
        (CHAT | {"pad": "x" * 1_000_000}, 413, "request_too_large"),
    ],
)
async def test_bad_bodies_are_refused_before_any_pod_is_chosen(
    content: Any, status: int, code: str
) -> None:
    bench = Bench()
    _, reply = await bench.tell(request_headers(), request_body(content))
    assert error_of(reply) == (status, code)
    assert bench.prefill.posts == []
    assert bench.close().decision is None


@pytest.mark.parametrize("header", ["routing-strategy", "x-client-routing-strategy"])
async def test_the_client_may_choose_the_strategy(header: str) -> None:
    bench = Bench()
    headers, body, response = await bench.tell(
        request_headers(extra={header: "random"}), request_body(), response_headers()
    )
    assert isinstance(headers, PhaseReply)
    assert header in headers.remove_headers
    assert isinstance(body, PhaseReply)
    assert dict(body.set_headers)["routing-strategy"] == "random"
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=strategy-random"
    assert bench.prefill.posts == []
    bench.close()


async def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    bench = Bench()
    _, reply = await bench.tell(request_headers(routing_strategy="magic"), request_body())
    assert error_of(reply) == (400, "invalid_routing_strategy")
    assert isinstance(reply, ImmediateReply)
    message = json.loads(reply.body)["error"]["message"]
    assert all(name in message for name in ("pd", "random", "least-request", "magic"))
    bench.close()


async def test_without_a_strategy_a_name_that_others_have_too_goes_nowhere() -> None:
    bench = Bench(routing_algorithm=None)
    catalog = Catalog(merge_namespaces=False)
    for namespace in ("one", "two"):
        pod = replace(DECODE, namespace=namespace, uid=namespace)
        catalog.put_pod(pod)
    bench.cache.publish(catalog.build(0.0), synced=True)
    # Envoy's own route for `m` leads to one of the two, and nobody knows to which.
    _, reply = await bench.tell(request_headers(), request_body(CHAT | {"model": "one/m"}))
    assert error_of(reply) == (400, "model_ambiguous")
    catalog.drop_pod("two")
    catalog.build(1.0)
    bench.cache.publish(catalog.build(1.0 + LINGER_S), synced=True)
    bench.close()
    bench.exchange = bench.open()
    _, reply = await bench.tell(request_headers(), request_body(CHAT | {"model": "one/m"}))
    assert isinstance(reply, PhaseReply)
    bench.close()


async def test_without_a_strategy_a_request_passes_with_its_model() -> None:
    bench = Bench(routing_algorithm=None)
    _, body, response = await bench.tell(
        request_headers(), request_body(CHAT | {"kv_transfer_params": {}}), response_headers()
    )
    assert isinstance(body, PhaseReply)
    assert isinstance(body.body, ReplaceBody)
    assert json.loads(bytes(body.body.body)) == CHAT
    headers = dict(body.set_headers)
    assert headers["model"] == "m"
    assert not {"target-pod", "x-gateway-destination-endpoint", "routing-strategy"} & set(headers)
    assert isinstance(response, PhaseReply)
    assert {name for name, _ in response.set_headers} == {"x-request-id"}
    bench.close()


async def test_a_body_that_needs_no_edit_is_not_sent_back() -> None:
    bench = Bench()
    _, body = await bench.tell(request_headers(), request_body(CHAT | {"n": 2}))
    assert isinstance(body, PhaseReply)
    assert body.body is None
    assert "content-length" not in dict(body.set_headers)
    bench.close()


async def test_a_request_that_does_not_fit_two_legs_says_why() -> None:
    bench = Bench()
    *_, response = await bench.tell(
        request_headers(), request_body(CHAT | {"n": 2}), response_headers()
    )
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=n"
    assert "prefill-target-pod" not in dict(response.set_headers)
    bench.close()


@pytest.mark.parametrize("pods", [(DECODE,), (PREFILL,)])
async def test_a_missing_half_of_the_pair_is_unavailable(pods: tuple[Pod, ...]) -> None:
    bench = Bench(pods)
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "no_ready_pod")
    assert isinstance(reply, ImmediateReply)
    assert "retry-after" in dict(reply.headers)
    assert bench.close().outcome is Outcome.FAILED


async def test_without_a_prefill_pod_decode_may_serve_the_request_whole() -> None:
    bench = Bench((DECODE,), aggregation=Aggregation.FALLBACK)
    *_, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=no-ready-pair"
    bench.close()


@pytest.mark.parametrize(
    ("queue", "busy", "decision"),
    [
        # The hand-over costs more than so short a prompt.
        (0, 0, "aggregated;reason=faster"),
        (80_000, 0, "aggregated;reason=faster"),
        # Nothing tells how much what it decodes would be slowed down.
        (80_000, 1, "disaggregated"),
    ],
)
async def test_a_request_is_served_whole_where_that_is_faster(
    queue: int, busy: int, decision: str
) -> None:
    able = replace(DECODE, computes_prompts=True)
    bench = Bench((PREFILL, able), aggregation=Aggregation.WHEN_FASTER, handover_s=0.05)
    with ExitStack() as work:
        if queue:
            work.enter_context(bench.ledger.start(Leg.PREFILL, "p", queue))
        for _ in range(busy):
            work.enter_context(bench.ledger.start(Leg.DECODE, "d"))
        *_, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == decision
    bench.close()


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (FailureKind.CONNECT, 502, "prefill_failed"),
        (FailureKind.TRANSPORT, 502, "prefill_failed"),
        (FailureKind.TIMEOUT, 504, "prefill_timeout"),
    ],
)
@pytest.mark.parametrize("expose_pods", [True, False])
async def test_a_failed_prefill_is_an_error_that_names_the_pod_to_whom_may_know(
    failure: FailureKind, status: int, code: str, expose_pods: bool
) -> None:
    bench = Bench(expose_pods=expose_pods)
    bench.prefill.answer = lambda: failure
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (status, code)
    assert isinstance(reply, ImmediateReply)
    assert (b"pod prefill-0 (10.0.0.1:8000)" in reply.body) == expose_pods
    assert b"broke" not in reply.body.replace(b"broke the connection off", b"")
    assert (b"10.0.0.1" in reply.body or b"prefill-0" in reply.body) == expose_pods
    assert bench.close().attempts[0].message == "10.0.0.1 broke"


async def test_a_failed_prefill_may_be_served_whole() -> None:
    bench = Bench(on_prefill_failure=FailurePolicy.AGGREGATE)
    bench.prefill.answer = lambda: FailureKind.CONNECT
    _, body, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(body, PhaseReply)
    assert body.body is None
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=prefill-failed"
    bench.close()


async def test_an_engines_refusal_reaches_the_client_unchanged() -> None:
    bench = Bench()
    answer = EngineAnswer(
        422, {"content-type": "application/problem+json", "server": "x"}, b'{"error": "no"}'
    )
    bench.prefill.answer = lambda: answer
    _, reply = await bench.tell(request_headers(), request_body())
    assert isinstance(reply, ImmediateReply)
    assert (reply.status, reply.body) == (422, b'{"error": "no"}')
    headers = dict(reply.headers)
    assert headers["content-type"] == "application/problem+json"
    assert headers["prefill-target-pod"] == "prefill-0"
    assert "server" not in headers
    assert bench.close().outcome is Outcome.ENGINE_ERROR


async def test_a_useless_handle_never_reaches_decode() -> None:
    bench = Bench()
    bench.prefill.answer = lambda: EngineAnswer(200, {}, b'{"kv_transfer_params": null}')
    _, body, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(body, PhaseReply)
    assert body.body is None
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=handoff-null-params"
    assert bench.close().handoff == "null-params"


async def test_a_request_that_would_wait_too_long_is_refused_before_prefill() -> None:
    bench = Bench(max_wait_s=1.0)
    with bench.ledger.start(Leg.PREFILL, "p", 80_000):
        _, reply = await bench.tell(request_headers(), request_body())
    # At 8,000 tokens per second, 10 seconds of work are ahead.
    assert error_of(reply) == (429, "overloaded")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["retry-after"] == "9"
    assert bench.prefill.posts == []
    assert bench.close().decision is None


async def test_what_was_prefilled_is_remembered() -> None:
    bench = Bench()
    prompt = "A long system prompt. " * 40
    messages = [{"role": "user", "content": prompt}]
    answer = b'{"usage": {"prompt_tokens": 90}, "kv_transfer_params": ' + PARAMS + b"}"
    bench.prefill.answer = lambda: EngineAnswer(200, {}, answer)
    await bench.tell(request_headers(), request_body(CHAT | {"messages": messages}))
    bench.exchange.close()
    bench.exchange = bench.open()
    bench.notes.open = 1
    longer = [*messages, {"role": "assistant", "content": "x"}]
    await bench.tell(request_headers(), request_body(CHAT | {"messages": longer}))
    first, second = bench.prefill.posts
    # The beginning is known to be cached, and the size of a token has been learnt.
    assert second.tokens < first.tokens / 2
    bench.close()


async def test_a_handle_that_makes_the_body_too_large_is_useless() -> None:
    bench = Bench(max_message_bytes=200 + MESSAGE_OVERHEAD_BYTES)
    *_, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-pd-decision"] == "aggregated;reason=handoff-too-large"
    bench.close()


async def test_a_useless_handle_may_be_an_error() -> None:
    bench = Bench(on_handoff_failure=FailurePolicy.FAIL)
    bench.prefill.answer = lambda: EngineAnswer(200, {}, b"[]")
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (502, "handoff_invalid")
    bench.close()


@pytest.mark.parametrize(
    ("attributes", "served_by"),
    [
        ({}, ""),
        ({"upstream.address": "10.0.0.2:8000"}, ""),
        ({"upstream.address": "10.0.0.9:8000"}, "10.0.0.9:8000"),
        ({"other": 1}, ""),
    ],
)
async def test_a_pod_that_was_not_chosen_is_noted(
    attributes: dict[str, Any], served_by: str
) -> None:
    bench = Bench()
    answer = ResponseHeaders({":status": "200"}, attributes=attributes)
    await bench.tell(request_headers(), request_body(), answer)
    assert bench.close().served_by == served_by


async def test_a_streamed_response_body_is_turned_off_and_tolerated() -> None:
    bench = Bench()
    streamed = ProtocolConfig(BodyMode.BUFFERED, BodyMode.STREAMED, False)
    *_, response, chunk, end = await bench.tell(
        request_headers(config=streamed),
        request_body(),
        response_headers(),
        ResponseBody(b"data", False),
        ResponseBody(b"", True),
    )
    assert isinstance(response, PhaseReply)
    assert response.mode_override is not None
    assert response.mode_override.response_body is BodyMode.NONE
    assert chunk == end == PhaseReply(Phase.RESPONSE_BODY)
    bench.close()


@pytest.mark.parametrize("status", ["500", "404", "odd", ""])
async def test_an_engines_error_status_is_an_engine_error(status: str) -> None:
    bench = Bench()
    headers = {":status": status, "x-envoy-upstream-service-time": "3"}
    await bench.tell(request_headers(), request_body(), ResponseHeaders(headers))
    assert bench.close().outcome is Outcome.ENGINE_ERROR


@pytest.mark.parametrize(
    ("status", "details", "outcome"),
    [
        ("200", "via_upstream", Outcome.OK),
        ("503", "via_upstream", Outcome.ENGINE_ERROR),
        ("503", "no_healthy_upstream", Outcome.LOCAL_REPLY),
        (
            "503",
            "upstream_reset_before_response_started{remote_connection_failure}",
            Outcome.LOCAL_REPLY,
        ),
        ("504", "upstream_response_timeout", Outcome.LOCAL_REPLY),
        ("403", "rbac_access_denied_matched_policy[none]", Outcome.LOCAL_REPLY),
        ("200", "direct_response", Outcome.LOCAL_REPLY),
        ("503", None, Outcome.LOCAL_REPLY),
        ("200", None, Outcome.OK),
    ],
)
@pytest.mark.parametrize("strategy", ["pd", None])
async def test_an_answer_of_envoy_is_none_of_an_engine(
    strategy: str | None, status: str, details: str | None, outcome: Outcome
) -> None:
    bench = Bench(routing_algorithm=strategy)
    attributes = {} if details is None else {"response.code_details": details}
    answer = ResponseHeaders({":status": status}, attributes=attributes)
    await bench.tell(request_headers(), request_body(), answer)
    record = bench.close()
    assert (record.outcome, record.status) == (outcome, int(status))
    assert record.local_reply == ((details or "") if outcome is Outcome.LOCAL_REPLY else "")


async def test_an_observing_filter_gets_no_answer() -> None:
    bench = Bench()
    event = RequestHeaders({":path": "/v1/models"}, True, observability_mode=True)
    assert await bench.exchange.handle(event) is None
    assert bench.exchange.ended
    bench.close()


async def test_garbage_is_answered_with_an_error() -> None:
    bench = Bench()
    await bench.exchange.receive(b"\xff\xff\xff")
    (reply,) = bench.sent
    assert b"protocol_error" in reply
    assert bench.exchange.ended
    assert bench.close().outcome is Outcome.PROTOCOL_ERROR


async def test_a_fault_of_our_own_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def fail() -> EngineAnswer:
        raise ZeroDivisionError

    bench.prefill.answer = fail
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (500, "internal_error")
    assert "ZeroDivisionError" in caplog.text
    bench.close()


async def test_cancelling_in_prefill_releases_everything() -> None:
    bench = Bench()
    waiting = asyncio.Event()

    async def hang() -> EngineAnswer:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench.prefill.answer = hang
    await bench.tell(request_headers())
    task = asyncio.create_task(bench.exchange.handle(request_body()))
    await asyncio.wait_for(waiting.wait(), 10)
    assert bench.ledger.load(Leg.PREFILL, "p").requests == 1
    assert bench.ledger.load(Leg.DECODE, "d").requests == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.close().outcome is Outcome.CLIENT_LEFT


async def test_every_request_has_an_id_of_its_own_whatever_the_client_says() -> None:
    bench = Bench()
    ids = set()
    for _ in range(3):
        bench.exchange = bench.open()
        await bench.tell(
            request_headers(
                x_request_id="same",
                traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            request_body(),
        )
        record = bench.exchange.record
        assert record.client_request_id == "same"
        ids.add(record.request_id)
        bench.exchange.close()
    assert len(ids) == 3
    assert "same" not in ids
    bench.close()


@pytest.mark.parametrize(
    "events",
    [
        [request_headers("/nothing", x_request_id="of-the-client")],
        [request_headers("/v1/models", "GET", x_request_id="of-the-client")],
        [request_headers(x_request_id="of-the-client"), response_headers("413")],
        [request_headers(x_request_id="of-the-client"), request_body(b"{")],
        [request_headers(x_request_id="of-the-client"), request_body(), response_headers()],
    ],
)
async def test_every_answer_names_both_ids(events: list[Event]) -> None:
    bench = Bench()
    *_, reply = await bench.tell(*events)
    assert reply is not None
    headers = dict(reply.headers if isinstance(reply, ImmediateReply) else reply.set_headers)
    assert headers["x-request-id"] == bench.exchange.record.request_id
    assert headers["x-client-request-id"] == "of-the-client"
    bench.close()


async def test_an_engines_refusal_names_both_ids() -> None:
    bench = Bench()
    bench.prefill.answer = lambda: EngineAnswer(422, {}, b"{}")
    _, reply = await bench.tell(request_headers(x_request_id="of-the-client"), request_body())
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["x-client-request-id"] == "of-the-client"
    bench.close()


async def test_without_an_id_of_the_client_there_is_one() -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers("/nothing"))
    assert isinstance(reply, ImmediateReply)
    assert "x-client-request-id" not in dict(reply.headers)
    bench.close()


EVENTS = st.one_of(
    st.builds(
        request_headers,
        st.sampled_from(["/v1/chat/completions", "/v1/models", "/v1/embeddings", "/x", "", "?"]),
        st.sampled_from(["POST", "GET", ""]),
        end_of_stream=st.booleans(),
        config=st.sampled_from(
            [None, BUFFERED, ProtocolConfig(BodyMode.BUFFERED, BodyMode.STREAMED, False)]
        ),
    ),
    st.builds(
        request_body,
        st.one_of(
            st.just(CHAT),
            st.just(CHAT | {"n": 2}),
            st.binary(max_size=8),
            st.just({"model": "m", "input": "x"}),
        ),
        end_of_stream=st.booleans(),
    ),
    st.builds(RequestTrailers, st.just({})),
    st.builds(response_headers, st.sampled_from(["200", "500", "x", ""])),
    st.builds(ResponseBody, st.binary(max_size=4), st.booleans()),
    st.builds(ResponseTrailers, st.just({})),
)


@given(
    st.lists(st.one_of(EVENTS, st.binary(max_size=6)), max_size=8),
    st.sampled_from(
        [
            EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}"),
            EngineAnswer(200, {}, b"nonsense"),
            EngineAnswer(429, {}, b"{}"),
            FailureKind.TIMEOUT,
        ]
    ),
    st.sampled_from(FailurePolicy),
)
@settings(max_examples=300, deadline=None)
def test_any_sequence_of_messages_leaves_nothing_behind(
    messages: list[Event | bytes], answer: Any, policy: FailurePolicy
) -> None:
    async def drive() -> None:
        bench = Bench(on_prefill_failure=policy, on_handoff_failure=policy)
        bench.prefill.answer = lambda: answer
        for message in messages:
            if isinstance(message, bytes):
                await bench.exchange.receive(message)
            else:
                reply = await bench.exchange.handle(message)
                assert reply is None or encode(reply)
            if bench.exchange.ended:
                break
        record = bench.close()
        assert record.outcome is not None

    asyncio.run(drive())


class WithTask:
    """A dispatcher that lets a task of the call fail when it is told to."""

    def __init__(self, bench: Bench) -> None:
        self.dispatcher = bench.exchanges.dispatcher
        self.chooser = self.dispatcher.chooser
        self.legs = self.dispatcher.legs
        self.chooser = self.dispatcher.chooser
        self.drains = self.dispatcher.drains
        self.policy = self.dispatcher.policy
        self.find_second = self.dispatcher.find_second
        self.learn_from = self.dispatcher.learn_from
        self.fail = asyncio.Event()
        self.ended = asyncio.Event()

    async def dispatch(self, head: RequestHead, data: bytes, call: Call) -> Dispatched:
        dispatched = await self.dispatcher.dispatch(head, data, call)
        assert isinstance(dispatched, Dispatched)
        call.start(self.work())
        return dispatched

    async def work(self) -> None:
        try:
            await self.fail.wait()
            raise RequestRejected(502, "prefill_failed", "the leg broke")
        finally:
            self.ended.set()


async def forward_with_leg() -> tuple[Bench, WithTask]:
    """Return an exchange whose request went to a pod, with a task that works for it."""
    bench = Bench()
    leg = WithTask(bench)
    bench.exchanges.shared = replace(
        bench.exchanges.shared,
        dispatcher=leg,  # type: ignore[arg-type]
    )
    bench.exchange = bench.open()
    bench.notes.open = 1
    _, body = await bench.tell(request_headers(), request_body())
    assert isinstance(body, PhaseReply)
    await asyncio.sleep(0)
    return bench, leg


async def test_a_task_that_fails_before_the_answer_ends_the_request_unasked() -> None:
    bench, leg = await forward_with_leg()
    leg.fail.set()
    await bench.exchange.call.wait_closed()
    (reply,) = bench.sent
    assert b"the leg broke" in reply
    assert bench.exchange.ended
    assert not bench.interrupted
    assert await bench.tell(response_headers()) == [None]
    record = bench.close()
    assert (record.status, record.code, record.outcome) == (502, "prefill_failed", Outcome.FAILED)


async def test_a_task_that_fails_after_the_headers_cuts_the_answer() -> None:
    bench, leg = await forward_with_leg()
    await bench.tell(response_headers())
    leg.fail.set()
    await bench.exchange.call.wait_closed()
    assert bench.sent == []
    assert (bench.exchange.cut, bench.interrupted) == (True, True)
    record = bench.close()
    assert (record.status, record.outcome) == (200, Outcome.FAILED)
    assert record.message == "the leg broke"


async def test_a_request_has_ended_whatever_fails_with_what_was_seen_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(phases: Phases) -> None:
        raise ValueError(phases)

    bench = Bench()
    await bench.tell(request_headers(), request_body())
    monkeypatch.setattr(Phases, "close", fail)
    with pytest.raises(ValueError, match="Phases"):
        bench.exchange.close()
    assert bench.notes.finished == [bench.exchange.record]


async def test_tasks_end_with_the_stream() -> None:
    bench, leg = await forward_with_leg()
    bench.close()
    await bench.exchange.call.wait_closed()
    assert leg.ended.is_set()
    assert bench.sent == []


async def test_a_handle_that_would_come_too_late_is_not_sent() -> None:
    bench = Bench(kv_lease_s=1e-9)
    bench.exchanges.leases.note_lag(1.0)
    _, reply = await bench.tell(request_headers(), request_body())
    assert isinstance(reply, PhaseReply)
    assert reply.body is None  # The client's own, for the decode pod to serve whole.
    record = bench.close()
    assert (record.aggregated, record.handoff) == ("handoff-late", "late")
    # It was the router that let it wait.
    assert bench.state.failures.describe(PREFILL.uid) == []


async def test_a_late_handle_can_be_an_error_that_says_to_come_again() -> None:
    bench = Bench(kv_lease_s=1e-9, on_handoff_failure=FailurePolicy.FAIL)
    bench.exchanges.leases.note_lag(1.0)
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "handoff_late")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["retry-after"]
    bench.close()


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_locator_reaches_engines_from_a_trusted_router_alone(trusted: bool) -> None:
    bench = Bench(trust_ec_locator=trusted)
    hidden = {"kv_transfer_params": {"ec_locator": {"id": 1}, "remote_host": "evil"}}
    body = {"model": "m", "token_ids": [1, 2], "sampling_params": {"extra_args": hidden}}
    path = "/inference/v1/generate"
    _, reply = await bench.tell(request_headers(path), request_body(body))
    assert isinstance(reply, PhaseReply)
    assert isinstance(reply.body, ReplaceBody)
    sent = json.loads(bytes(reply.body.body))["sampling_params"]["extra_args"]
    located = {"kv_transfer_params": {"ec_locator": {"id": 1}}}
    assert sent == (located if trusted else {})
    assert bench.close().aggregated == ("ec-locator" if trusted else "")


FREED = b'{"kv_transfer_params": ' + PARAMS[:-1] + b', "remote_blocks_expiry_time": 1789999990}}'
"""An answer whose blocks are freed already, if it was written at `WRITTEN`."""
WRITTEN = formatdate(1_790_000_000, usegmt=True)


async def test_a_handle_that_was_late_is_asked_for_again_under_a_new_id() -> None:
    bench = Bench(prefill_retries=1)
    answers = iter([EngineAnswer(200, {"date": WRITTEN}, FREED), bench.prefill.answer()])
    bench.prefill.answer = lambda: next(answers)
    _, reply = await bench.tell(request_headers(), request_body())
    assert isinstance(reply, PhaseReply)
    assert isinstance(reply.body, ReplaceBody)
    assert PARAMS in bytes(reply.body.body)
    first, second = [post.headers["x-request-id"] for post in bench.prefill.posts]
    assert (dict(reply.set_headers)["x-request-id"], second) == (second, f"{first}-2")
    record = bench.close()
    assert (record.aggregated, record.handoff) == ("", "")


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_handle_is_asked_for_again_as_often_as_a_leg_is_tried(retries: int) -> None:
    bench = Bench(prefill_retries=retries)
    bench.prefill.answer = lambda: EngineAnswer(200, {"date": WRITTEN}, FREED)
    await bench.tell(request_headers(), request_body())
    assert len(bench.prefill.posts) == 1 + retries
    assert bench.close().aggregated == "handoff-late"


async def test_a_missing_handle_is_a_failure_whatever_the_client_calls_the_model() -> None:
    """What engines know by one name, requests may ask for by several."""
    bench = Bench(eject_after=1)
    other = replace(PREFILL, uid="p2", name="prefill-1", ip="10.0.0.5", address="10.0.0.5:8000")
    usage = b', "usage": {"prompt_tokens": 9}}'
    for pod, name, params in ((other, "ns/m", PARAMS), (PREFILL, "m", b"null")):
        (group,) = ClusterView.build([pod, DECODE]).models.values()
        view = ClusterView.of({"m": group, "ns/m": group}, group.pods, ["m"])
        bench.cache.publish(view, synced=True)
        said = b'{"kv_transfer_params": ' + params + usage
        bench.prefill.answer = partial(EngineAnswer, 200, {}, said)
        await bench.tell(request_headers(), request_body({**CHAT, "model": name}))
        bench.close()
        bench.exchange = bench.open()
    assert bench.state.failures.describe(PREFILL.uid) != []
