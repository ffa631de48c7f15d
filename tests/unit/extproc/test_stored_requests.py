"""Answers that engines keep: what is asked about them, and what goes on with them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from exchanges import (
    BUFFERED,
    DECODE,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
    response_headers,
)
from msgspec import structs
from rosters import keys_of

from pdrouter.cluster.pods import TERMINATING, Pod, Rank, Role
from pdrouter.engines.split import Leg
from pdrouter.extproc.exchange import Exchange
from pdrouter.extproc.messages import (
    BodyMode,
    HeaderMode,
    ImmediateReply,
    PhaseReply,
    ReplaceBody,
    Reply,
    RequestBody,
)
from pdrouter.openai.stored_responses import create_response_id, read_tag, tag_holder
from pdrouter.serving.answers import RoutedRequest
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import Routing, TokenObservation, UserSource
from pdrouter.users.user import Limits, User

RESPONSES = "/v1/responses"
OTHER = Pod.create(uid="e", name="decode-1", ip="10.0.0.3", port=8000, model="m", role=Role.DECODE)
FOREIGN = Pod.create(uid="x", name="other-0", ip="10.0.0.9", port=8000, model="o", role=Role.BOTH)
PODS = (PREFILL, DECODE, OTHER, FOREIGN)
KEPT = create_response_id("e", "")


def stored(path: str = KEPT, method: str = "GET", **headers: Any) -> Any:
    return request_headers(f"{RESPONSES}/{path}", method, end_of_stream=True, **headers)


def body(**members: Any) -> RequestBody:
    return request_body({"model": "m", "input": "hi", **members})


async def post(bench: Bench, **members: Any) -> tuple[Reply | None, dict[str, Any]]:
    """Return the reply to a request for a response, and the body that the engine gets."""
    _, reply = await bench.tell(request_headers(RESPONSES), body(**members))
    if not isinstance(reply, PhaseReply) or reply.body is None:
        return reply, {}
    assert isinstance(reply.body, ReplaceBody)
    return reply, json.loads(bytes(reply.body.body))


def headers_of(reply: Reply | None) -> dict[str, str]:
    assert isinstance(reply, PhaseReply)
    return dict(reply.set_headers)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (KEPT, "GET"),
        (f"{KEPT}?stream=true&starting_after=3", "GET"),
        (KEPT, "DELETE"),
        (f"{KEPT}/cancel", "POST"),
        (f"{KEPT}/input_items", "GET"),
    ],
    ids=["get", "stream", "delete", "cancel", "input"],
)
@pytest.mark.parametrize("routing", Routing)
async def test_what_is_asked_about_an_answer_goes_to_the_pod_that_keeps_it_at_once(
    path: str, method: str, routing: Routing
) -> None:
    bench = Bench(PODS, pod_routing=routing)
    sent, answered = await bench.tell(
        stored(path, method, extra={"target-pod": "10.9.9.9:1", "x-request-id": "mine"}),
        response_headers(),
    )
    assert isinstance(sent, PhaseReply)
    named = headers_of(sent)
    both = f"{OTHER.address},{OTHER.address}"
    assert named["target-pod"] == OTHER.address
    by_list = routing is Routing.OVERRIDE_HOST
    assert named["x-gateway-destination-endpoint"] == (both if by_list else OTHER.address)
    assert named["routing-strategy"] == "pd"
    assert named["x-request-id"] not in ("", "mine")
    assert sent.clear_route_cache
    assert {"target-pod", "x-gateway-destination-endpoint"} <= set(sent.remove_headers)
    assert sent.mode_override is not None
    assert sent.mode_override.response_headers is HeaderMode.SEND
    told = headers_of(answered)
    assert told["x-pd-decision"] == "aggregated;reason=stored-response"
    assert told["target-pod"] == OTHER.name
    record = bench.close()
    assert (record.outcome, record.model, record.client_request_id) == (Outcome.OK, "m", "mine")
    assert bench.prefill.posts == []


async def test_a_rank_behind_one_address_is_named() -> None:
    ranks = [replace(OTHER, uid=f"e#{n}", name=f"e#{n}", rank=Rank(n, 2)) for n in range(2)]
    bench = Bench((PREFILL, *ranks))
    (sent,) = await bench.tell(stored(create_response_id("e#1", "")))
    assert headers_of(sent)["x-data-parallel-rank"] == "1"


async def test_a_body_that_is_not_needed_is_no_matter() -> None:
    bench = Bench(PODS)
    head = request_headers(f"{RESPONSES}/{KEPT}/cancel", "POST")
    replies = await bench.tell(head, request_body({}), response_headers())
    assert all(isinstance(reply, PhaseReply) for reply in replies)
    assert bench.close().outcome is Outcome.OK


async def test_the_access_log_takes_it_for_no_stranger() -> None:
    bench = Bench(PODS, observe_tokens=TokenObservation(access_log=True))
    (sent,) = await bench.tell(stored())
    assert isinstance(sent, PhaseReply)
    assert sent.dynamic_metadata is not None
    (text,) = sent.dynamic_metadata["pdrouter"].values()
    noted = RoutedRequest.read(text)
    assert (noted.endpoint, noted.generates) == (OTHER.address, False)


@pytest.mark.parametrize(
    "response_id",
    [create_response_id("gone", ""), create_response_id("e", "alice"), "resp_1", "foo"],
    ids=["of a pod that is gone", "of another user", "of nobody", "no id"],
)
async def test_what_nobody_keeps_is_not_found(response_id: str) -> None:
    bench = Bench(PODS)
    (reply,) = await bench.tell(stored(response_id))
    assert error_of(reply) == (404, "response_not_found")
    assert isinstance(reply, ImmediateReply)
    error = json.loads(reply.body)["error"]
    assert error["message"] == f"Response with id '{response_id}' not found."
    assert (error["type"], error["param"]) == ("invalid_request_error", "response_id")
    assert bench.close().outcome is Outcome.REJECTED


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ready": False, "obstacle": "not ready"}, (503, "no_ready_pod")),
        ({"ready": False, "obstacle": TERMINATING}, (404, "response_not_found")),
        ({"ready": False, "refused": True}, (404, "response_not_found")),
    ],
)
async def test_a_pod_that_is_not_ready_is_not_asked(
    changes: dict[str, Any], expected: tuple[int, str]
) -> None:
    bench = Bench((PREFILL, DECODE, replace(OTHER, **changes)))
    (reply,) = await bench.tell(stored())
    assert error_of(reply) == expected
    if expected[0] == 503:
        assert isinstance(reply, ImmediateReply)
        assert "retry-after" in dict(reply.headers)


@pytest.mark.parametrize(
    ("selector", "asked", "continued"),
    [
        ("zone=here", None, None),
        ("zone=there", (404, "response_not_found"), (400, "previous_response_not_found")),
        ("zone in (", (400, "invalid_external_filter"), (400, "invalid_external_filter")),
    ],
    ids=["of it", "of others", "broken"],
)
async def test_a_pod_that_the_client_has_excluded_is_not_asked(
    selector: str, asked: tuple[int, str] | None, continued: tuple[int, str] | None
) -> None:
    pods = (PREFILL, DECODE, replace(OTHER, labels={"zone": "here"}))
    chosen = {"external-filter": selector}
    (sent,) = await Bench(pods).tell(stored(extra=chosen))
    _, posted = await Bench(pods).tell(
        request_headers(RESPONSES, extra=chosen), body(previous_response_id=KEPT)
    )
    for reply, error in ((sent, asked), (posted, continued)):
        if error is None:
            assert headers_of(reply)["target-pod"] == OTHER.address
        else:
            assert error_of(reply) == error


async def test_what_is_asked_about_an_answer_counts_for_who_asks() -> None:
    ann = User("ann", limits=Limits(2, tokens_per_minute=1, concurrent_requests=1))
    bench = Bench(PODS, around={"keys": keys_of(ann)})
    asked = stored(create_response_id("e", "ann"), authorization="Bearer ann")

    async def ask(exchange: Exchange) -> Reply:
        reply = await exchange.handle(asked)
        assert reply is not None
        return reply

    first = bench.exchange
    assert headers_of(await ask(first))["target-pod"] == OTHER.address
    second = bench.open()
    assert error_of(await ask(second)) == (429, "rate_limit_exceeded")  # One at a time.
    second.close()
    await first.handle(response_headers("200"))
    first.close()
    third = bench.open()
    assert isinstance(await ask(third), PhaseReply)
    third.close()
    fourth = bench.open()
    assert error_of(await ask(fourth)) == (429, "rate_limit_exceeded")  # Two in a minute.
    fourth.close()


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        (KEPT, "POST", "GET, DELETE"),
        (KEPT, "PUT", "GET, DELETE"),
        (f"{KEPT}/cancel", "GET", "POST"),
        (f"{KEPT}/input_items", "DELETE", "GET"),
    ],
    ids=["post", "put", "get to cancel", "delete input"],
)
async def test_what_cannot_be_done_with_an_answer(path: str, method: str, allowed: str) -> None:
    (reply,) = await Bench(PODS).tell(stored(path, method))
    assert error_of(reply) == (405, "method_not_allowed")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["allow"] == allowed


async def test_the_rules_of_the_door_hold_here_too() -> None:
    (reply,) = await Bench(PODS, bearer_token="secret").tell(stored())
    assert error_of(reply) == (401, "invalid_api_key")
    streamed = structs.replace(BUFFERED, request_body_mode=BodyMode.STREAMED)
    (reply,) = await Bench(PODS).tell(stored(config=streamed))
    assert error_of(reply) == (500, "ext_proc_misconfigured")
    (reply,) = await Bench(PODS).tell(stored(extra={"upgrade": "x", "connection": "upgrade"}))
    assert error_of(reply) == (400, "upgrade_not_supported")
    (reply,) = await Bench(PODS).tell(stored("render", "POST"))
    assert error_of(reply) == (404, "unknown_path")


@pytest.mark.parametrize("members", [{}, {"store": True}, {"background": True, "store": False}])
async def test_an_answer_that_is_kept_gets_an_id_that_names_its_pod(members: Any) -> None:
    bench = Bench(PODS, pod_routing=Routing.OVERRIDE_HOST)
    reply, sent = await post(bench, request_id="resp_mine", **members)
    named = headers_of(reply)
    pod = next(pod for pod in PODS if pod.address == named["target-pod"])
    assert read_tag(sent["request_id"], "") == tag_holder(pod.uid)
    # No other pod may take it: it would keep what its id says is elsewhere.
    assert named["x-gateway-destination-endpoint"] == f"{pod.address},{pod.address}"
    bench.close()


async def test_an_answer_that_is_not_kept_has_the_engines_own_id() -> None:
    bench = Bench(PODS)
    # Not that of another's answer, either.
    _, sent = await post(bench, store=False, request_id="resp_others")
    assert "request_id" not in sent
    assert len(bench.prefill.posts) == 1
    assert b"resp_others" not in bytes(bench.prefill.posts[0].body)


async def test_an_id_is_good_for_who_has_asked() -> None:
    bench = Bench(PODS, users=UserSource.HEADER)
    _, reply = await bench.tell(request_headers(RESPONSES, user="alice"), body())
    assert isinstance(reply, PhaseReply)
    assert isinstance(reply.body, ReplaceBody)
    response_id = json.loads(bytes(reply.body.body))["request_id"]
    for user, expected in (("alice", PhaseReply), ("bob", ImmediateReply)):
        (answer,) = await Bench(PODS, users=UserSource.HEADER).tell(stored(response_id, user=user))
        assert isinstance(answer, expected)


@pytest.mark.parametrize("store", [True, False])
async def test_a_request_goes_on_where_the_answer_is_kept(*, store: bool) -> None:
    for pod in (DECODE, OTHER):
        for _ in range(3):
            bench = Bench(PODS)
            scopes = [bench.ledger.start(Leg.DECODE, pod.uid, 10) for _ in range(9)]
            previous = create_response_id(pod.uid, "")
            reply, sent = await post(bench, previous_response_id=previous, store=store)
            assert headers_of(reply)["target-pod"] == pod.address
            assert sent.get("previous_response_id", previous) == previous
            for scope in scopes:
                scope.release()
            record = bench.close()
            assert record.decision is not None
            assert record.decision.notes == (f"response: {pod.name} holds what it goes on with",)


@pytest.mark.parametrize(
    ("holder", "pods"),
    [
        ("gone", PODS),
        ("x", PODS),  # Of another model.
        ("e", (PREFILL, DECODE, replace(OTHER, ready=False, obstacle=TERMINATING))),
        ("p", PODS),  # It has never served a response whole.
    ],
)
async def test_what_nobody_keeps_cannot_be_gone_on_with(holder: str, pods: Any) -> None:
    previous = create_response_id(holder, "")
    reply, _ = await post(Bench(pods), previous_response_id=previous)
    assert error_of(reply) == (400, "previous_response_not_found")
    assert isinstance(reply, ImmediateReply)
    error = json.loads(reply.body)["error"]
    assert error["message"] == f"Previous response with id '{previous}' not found."
    assert (error["type"], error["param"]) == ("invalid_request_error", "previous_response_id")


async def test_a_holder_that_is_not_ready_may_be_so_again() -> None:
    pods = (PREFILL, DECODE, replace(OTHER, ready=False, obstacle="not ready"))
    reply, _ = await post(Bench(pods), previous_response_id=KEPT)
    assert error_of(reply) == (503, "no_ready_pod")


async def test_ids_of_engines_own_go_to_the_same_pod_each_time() -> None:
    addresses = {
        headers_of((await post(Bench(PODS), previous_response_id="resp_1"))[0])["target-pod"]
        for _ in range(8)
    }
    assert len(addresses) == 1


async def test_a_conversation_goes_to_the_same_pod_whatever_its_load() -> None:
    chosen = set()
    for uid in ("d", "e"):
        bench = Bench(PODS)
        scopes = [bench.ledger.start(Leg.DECODE, uid, 10) for _ in range(50)]
        reply, _ = await post(bench, conversation={"id": "conv_1"})
        chosen.add(headers_of(reply)["target-pod"])
        for scope in scopes:
            scope.release()
        bench.close()
    assert len(chosen) == 1
