"""What requests take of limits, what they are told of it, and what is given back when."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any
from unittest.mock import patch

import pytest
from exchanges import (
    CHAT,
    DECODE,
    PREFILL,
    Bench,
    error_of,
    local_reply,
    request_body,
    request_headers,
    response_headers,
)
from factories import make_model_pods, make_pod
from hypothesis import given
from hypothesis import strategies as st
from rosters import keys_of

from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.pod_config import parse_config
from pdrouter.cluster.view import ClusterView
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.extproc.messages import (
    ImmediateReply,
    PhaseReply,
    Reply,
    ResponseBody,
    ResponseHeaders,
)
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.usage import Usage
from pdrouter.serving.answers import AnswerReport, RoutedRequest
from pdrouter.serving.gate import Admission, Gate
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.settings.choices import FIRST_TOKEN, OnFailure, TokenObservation
from pdrouter.users.counters import (
    CountersUnavailable,
    Demand,
    Measure,
    Taken,
    Verdict,
)
from pdrouter.users.local_counters import LocalCounters
from pdrouter.users.user import Limits, User

UNREACHED = "upstream_reset_before_response_started{remote_connection_failure}"


class Door:
    """Requests one after another, with the same limits and counters."""

    def __init__(self, *users: User, around: Any = None, **settings: Any) -> None:
        self.counters: Any = LocalCounters()
        members = around or {}
        keys = keys_of(*users, **members)
        self.bench = Bench(around={"keys": keys, "counters": self.counters}, **settings)
        self.bench.exchange.close()

    async def begin(self, user: str = "ann", path: str = "", **body: Any) -> Reply | None:
        """Send a request as far as Envoy would send it on."""
        self.bench.exchange = self.bench.open()
        headers = request_headers(path or "/v1/chat/completions", authorization=f"Bearer {user}")
        replies = await self.bench.tell(headers, request_body({**CHAT, **body}))
        return replies[-1]

    async def end(self) -> None:
        """End the stream, however far it is; then all is counted."""
        self.bench.exchange.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def answer(self, answer: bytes = b"{}", status: str = "200") -> None:
        await self.bench.tell(
            ResponseHeaders({":status": status, "content-type": "application/json"}),
            ResponseBody(answer, True),
        )
        await self.end()

    def left(self, measure: Measure, limits: Any = None) -> int:
        """What is left of the limit of a measure, as the last request has been told."""
        standings = self.bench.exchange.record.standings
        return next(each.remaining for each in standings if each.quota.measure is measure)


def passed(reply: Reply | None) -> bool:
    if isinstance(reply, PhaseReply):
        return True
    assert error_of(reply) == (429, "rate_limit_exceeded")
    return False


def told(reply: Reply | None) -> tuple[str, dict[str, str]]:
    assert isinstance(reply, ImmediateReply)
    return json.loads(reply.body)["error"]["message"], dict(reply.headers)


def limited(**limits: int) -> User:
    return User("ann", limits=Limits(**limits))


async def test_requests_pass_until_the_limit_and_are_told_which_one() -> None:
    door = Door(limited(requests_per_minute=2))
    for _ in range(2):
        assert passed(await door.begin())
        await door.answer()
    reply = await door.begin()
    assert not passed(reply)
    message, headers = told(reply)
    assert message == "user 'ann' may have 2 requests per minute; try again in 60 s"
    # It may be a second more: but the SDKs obey no more than a minute.
    assert headers["retry-after"] == "60"
    assert headers["x-ratelimit-limit-requests"] == "2"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    await door.end()
    record = door.bench.notes.finished[-1]
    assert record.refused_by is not None
    assert record.refused_by.quota.measure is Measure.REQUESTS


async def test_an_answer_says_what_is_left() -> None:
    door = Door(limited(requests_per_minute=10, tokens_per_minute=1000))
    await door.begin(max_tokens=9)
    [reply] = await door.bench.tell(response_headers())
    assert isinstance(reply, PhaseReply)
    headers = dict(reply.set_headers)
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "9"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert 1000 - 39 < int(headers["x-ratelimit-remaining-tokens"]) < 991
    await door.end()


async def test_anthropics_clients_are_told_in_their_own_words() -> None:
    door = Door(limited(requests_per_minute=1))
    assert passed(await door.begin(path="/v1/messages", max_tokens=5))
    await door.answer()
    reply = await door.begin(path="/v1/messages", max_tokens=5)
    assert isinstance(reply, ImmediateReply)
    assert json.loads(reply.body)["error"]["type"] == "rate_limit_error"
    headers = dict(reply.headers)
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert "retry-after" in headers
    await door.end()


async def test_a_place_is_held_until_the_stream_ends_however_it_does() -> None:
    door = Door(limited(concurrent_requests=1))
    assert passed(await door.begin())
    held, door.bench.exchange = door.bench.exchange, door.bench.open()
    reply = await door.begin()
    assert not passed(reply)
    assert told(reply)[0] == "user 'ann' may have 1 requests at a time; try again in 1 s"
    await door.end()
    held.close()  # The client has left.
    await asyncio.sleep(0)
    assert passed(await door.begin())
    await door.answer()
    assert passed(await door.begin())
    await door.end()


async def test_who_sends_the_next_request_before_the_last_has_ended_waits_a_moment() -> None:
    door = Door(limited(concurrent_requests=1))
    await door.begin()
    asyncio.get_running_loop().call_later(0.005, door.bench.exchange.close)
    assert passed(await door.begin())
    await door.end()


def fail(kind: FailureKind) -> Callable[[Door], None]:
    def arrange(door: Door) -> None:
        door.bench.prefill.answer = lambda: kind

    return arrange


def hide_pods(door: Door) -> None:
    door.bench.cache.replace((PREFILL, replace(DECODE, ready=False)))


@pytest.mark.parametrize(
    ("arrange", "status", "requests", "tokens"),
    [
        # No engine has had anything of it.
        (hide_pods, 503, 2, 1000),
        (fail(FailureKind.CONNECT), 502, 2, 1000),
        # One has, and nobody has got an answer.
        (fail(FailureKind.TRANSPORT), 502, 1, 1000),
    ],
)
async def test_a_request_that_no_engine_had_costs_nothing(
    arrange: Callable[[Door], None], status: int, requests: int, tokens: int
) -> None:
    door = Door(limited(requests_per_minute=2, tokens_per_minute=1000, concurrent_requests=1))
    arrange(door)
    reply = await door.begin()
    assert isinstance(reply, ImmediateReply)
    assert reply.status == status
    await door.end()
    door.bench.cache.replace((PREFILL, DECODE))
    door.bench.prefill.answer = lambda: EngineAnswer(200, {}, b"{}")
    await door.begin()
    assert door.left(Measure.REQUESTS) == requests - 1
    assert door.left(Measure.TOKENS) > tokens - 40
    await door.end()


async def test_a_request_that_envoy_could_not_send_costs_nothing() -> None:
    for attempts, again in ((1.0, True), (2.0, False)):
        door = Door(limited(requests_per_minute=1), routing_algorithm="random")
        assert passed(await door.begin())
        await door.bench.tell(local_reply(UNREACHED, attempts))
        await door.end()
        # After a second attempt it is not known whether the first has come to an engine.
        assert passed(await door.begin()) is again
        await door.end()


USAGE = b'{"usage": {"prompt_tokens": 200, "completion_tokens": 300}}'


@pytest.mark.parametrize(
    ("answer", "status", "used"),
    [
        (USAGE, "200", 500),
        (b"{}", "200", None),
    ],
)
async def test_tokens_are_put_right_once_they_are_known(
    answer: bytes, status: str, used: int | None
) -> None:
    door = Door(limited(tokens_per_minute=10_000))
    await door.begin(max_tokens=9)
    reserved = 10_000 - door.left(Measure.TOKENS)
    assert 9 < reserved < 40
    await door.answer(answer, status)
    await door.begin(max_tokens=9)
    expected = reserved if used is None else used
    assert 10_000 - door.left(Measure.TOKENS) == expected + reserved
    await door.end()


@pytest.mark.parametrize(("events", "output"), [(5, None), (49, None), (51, 51), (3000, 3000)])
async def test_a_stream_that_says_no_usage_costs_as_much_as_was_seen_of_it(
    events: int, output: int | None
) -> None:
    door = Door(limited(tokens_per_minute=10_000))
    await door.begin(stream=True, max_tokens=50)
    reserved = 10_000 - door.left(Measure.TOKENS)
    await door.bench.tell(
        ResponseHeaders({":status": "200", "content-type": "text/event-stream"}),
        *[ResponseBody(b'data: {"choices": [{"delta": {}}]}\n\n', False)] * events,
    )
    await door.end()
    await door.begin(max_tokens=50)
    left = door.left(Measure.TOKENS)
    prompt = reserved - 50
    assert prompt > 0
    assert left == 10_000 - prompt - (50 if output is None else output) - reserved
    await door.end()


async def test_an_error_is_not_counted_twice_when_the_access_log_tells_of_it() -> None:
    door = Door(limited(tokens_per_minute=10_000))
    await door.begin(max_tokens=9)
    reserved = 10_000 - door.left(Measure.TOKENS)
    request = RoutedRequest.describe(door.bench.exchange.record, generates=True)
    await door.bench.tell(local_reply("via_upstream", 1.0, "500"))
    await door.end()
    for status in (500, 0):
        report = AnswerReport(request, "", status, Usage(300, None, 90), None, None)
        door.bench.exchanges.gate.settle(report)
    await asyncio.sleep(0)
    await door.begin(max_tokens=9)
    assert 10_000 - door.left(Measure.TOKENS) == reserved
    await door.end()


async def test_who_leaves_while_the_prompt_is_computed_gets_nothing_back() -> None:
    """Or who asks and leaves would have all the engines' time."""
    door = Door(limited(requests_per_minute=9, tokens_per_minute=10_000, concurrent_requests=1))
    door.bench.prefill.answer = asyncio.Event().wait
    asking = asyncio.create_task(door.begin(max_tokens=9))
    async with asyncio.timeout(5):
        while not door.bench.prefill.posts:
            await asyncio.sleep(0)
    reserved = 10_000 - door.left(Measure.TOKENS)
    asking.cancel()
    await asyncio.wait([asking])
    await door.end()
    door.bench.prefill.answer = lambda: FailureKind.CONNECT
    await door.begin(max_tokens=9)
    assert door.left(Measure.REQUESTS) == 7
    assert 10_000 - door.left(Measure.TOKENS) == 2 * reserved
    # Another one has the place.
    assert door.left(Measure.CONCURRENT) == 0
    await door.end()


async def test_what_an_engine_has_refused_costs_no_tokens() -> None:
    door = Door(limited(tokens_per_minute=10_000, requests_per_minute=9))
    await door.begin(max_tokens=9)
    reserved = 10_000 - door.left(Measure.TOKENS)
    await door.bench.tell(local_reply("via_upstream", 1.0, "400"))
    await door.end()
    await door.begin(max_tokens=9)
    assert 10_000 - door.left(Measure.TOKENS) == reserved
    assert door.left(Measure.REQUESTS) == 7
    await door.end()


@pytest.mark.parametrize(
    ("user", "observe", "seen"),
    [
        (limited(requests_per_minute=5), TokenObservation(), False),
        (limited(tokens_per_minute=1000), TokenObservation(), True),
        (limited(tokens_per_minute=1000), FIRST_TOKEN, True),
        (limited(tokens_per_minute=1000), TokenObservation(access_log=True, counts=True), False),
    ],
)
async def test_answers_are_looked_at_only_where_their_tokens_are_limited(
    user: User, observe: TokenObservation, seen: bool
) -> None:
    door = Door(user, observe_tokens=observe)
    await door.begin()
    [reply] = await door.bench.tell(
        ResponseHeaders({":status": "200", "content-type": "application/json"})
    )
    assert isinstance(reply, PhaseReply)
    assert (reply.mode_override is not None) is seen
    await door.end()


async def test_tokens_that_envoys_log_reports_are_put_right_by_whichever_router_hears_it() -> None:
    counted = TokenObservation(access_log=True, counts=True)
    door = Door(limited(tokens_per_minute=10_000), observe_tokens=counted)
    reply = await door.begin(max_tokens=9)
    reserved = 10_000 - door.left(Measure.TOKENS)
    assert isinstance(reply, PhaseReply)
    assert reply.dynamic_metadata is not None
    noted = reply.dynamic_metadata["pdrouter"]["request"]
    assert "user 'ann'" not in noted
    await door.answer()
    # The entry comes later, and has nothing but what Envoy has kept.
    request = RoutedRequest.read(noted)
    assert request.user == "ann"
    report = AnswerReport(request, "", 200, Usage(100, None, 50), None, None)
    assert door.bench.exchanges.answers.receive(report)
    await asyncio.sleep(0)
    await door.begin(max_tokens=9)
    assert 10_000 - door.left(Measure.TOKENS) == 150 + reserved
    await door.end()


async def test_a_prompt_that_is_longer_than_the_limit_is_told_that_it_never_passes() -> None:
    door = Door(limited(tokens_per_minute=3))
    reply = await door.begin()
    assert not passed(reply)
    message, headers = told(reply)
    assert message.startswith("user 'ann' may have 3 tokens per minute; this request alone needs")
    assert headers["x-should-retry"] == "false"
    assert "retry-after" not in headers
    await door.end()


@pytest.mark.parametrize(
    ("user", "config", "model_limits", "guarded"),
    [
        (None, "", {}, False),
        (User("ann"), "", {}, True),
        (None, '{"profiles": {"default": {"requestsPerSecond": 1}}}', {}, True),
        (None, "", {"m": Limits(requests_per_minute=1)}, True),
    ],
)
def test_what_nothing_limits_is_not_looked_at(
    user: User | None, config: str, model_limits: dict[str, Limits], guarded: bool
) -> None:
    pod = make_pod(config=parse_config(config) if config else None)
    gate = Gate(LocalCounters(), keys_of(model_limits=model_limits))
    assert gate.guards(user, make_model_pods(pod)) is guarded


async def test_limits_of_a_model_are_everybodys() -> None:
    door = Door(
        User("ann"), User("bob"), around={"model_limits": {"m": Limits(requests_per_minute=1)}}
    )
    assert passed(await door.begin("ann"))
    await door.answer()
    reply = await door.begin("bob")
    assert not passed(reply)
    message, headers = told(reply)
    assert message.startswith("model 'm' may have 1 requests per minute")
    assert not [name for name in headers if name.startswith("x-ratelimit")]
    await door.end()


@pytest.mark.parametrize("first", ["m", "default/m"])
@pytest.mark.parametrize(
    "limits",
    [
        {"*": Limits(requests_per_minute=1)},
        {"default/m": Limits(requests_per_minute=1), "*": Limits(requests_per_minute=1)},
        {"default/m": Limits(requests_per_minute=1), "m": Limits(requests_per_minute=1)},
    ],
)
async def test_another_name_of_a_model_is_no_way_past_its_limits(
    first: str, limits: dict[str, Limits]
) -> None:
    door = Door(User("ann", model_limits=limits))
    view = door.bench.cache.view
    models = {**view.models, "default/m": view.models["m"]}
    door.bench.cache.publish(ClusterView.of(models, view.pods, ("m",)), synced=True)
    assert passed(await door.begin(model=first))
    await door.answer()
    second = {"m": "default/m", "default/m": "m"}[first]
    assert not passed(await door.begin(model=second))
    await door.end()


@pytest.mark.parametrize("asked", [("m", "b/m"), ("b/m", "a/m"), ("a/m", "m")])
async def test_a_model_of_several_namespaces_has_one_limit(asked: tuple[str, str]) -> None:
    """By each of its names another part of it is asked; together they are one model."""
    limits = {"*": Limits(requests_per_minute=1)}
    door = Door(User("ann"), around={"model_limits": limits}, merge_namespaces=True)
    catalog = Catalog(merge_namespaces=True)
    for namespace in ("a", "b"):
        for pod in (PREFILL, DECODE):
            uid = f"{namespace}-{pod.uid}"
            catalog.put_pod(replace(pod, uid=uid, name=uid, namespace=namespace))
    door.bench.cache.publish(catalog.build(0.0), synced=True)
    first, second = asked
    assert passed(await door.begin(model=first))
    await door.answer()
    assert not passed(await door.begin(model=second))
    await door.end()


async def test_limits_of_a_user_for_a_model_are_ones_own() -> None:
    ann = User("ann", model_limits={"*": Limits(requests_per_minute=1)})
    door = Door(ann, User("bob"))
    assert passed(await door.begin("ann"))
    await door.answer()
    reply = await door.begin("ann")
    assert not passed(reply)
    assert told(reply)[0].startswith("user 'ann' and model 'm' may have 1 requests")
    await door.end()
    assert passed(await door.begin("bob"))
    await door.end()


class Broken:
    """Counters that cannot be reached."""

    async def take(self, demands: Sequence[Demand], holder: str) -> Verdict:
        raise CountersUnavailable("away")

    async def correct(self, taken: Taken, tokens: int) -> None:
        raise CountersUnavailable("away")

    async def release(self, taken: Taken) -> None:
        raise CountersUnavailable("away")

    give_back = release


@pytest.mark.parametrize("on_failure", OnFailure)
async def test_requests_that_cannot_be_counted_pass_or_do_not(on_failure: OnFailure) -> None:
    around = {"keys": keys_of(limited(requests_per_minute=1)), "counters": Broken()}
    bench = Bench(around=around, limits_on_failure=on_failure)
    for _ in range(2):
        _, reply = await bench.tell(request_headers(authorization="Bearer ann"), request_body())
        if on_failure is OnFailure.OPEN:
            assert isinstance(reply, PhaseReply)
        else:
            assert error_of(reply) == (503, "limits_unavailable")
        bench.close()
        bench.exchange = bench.open()
    assert bench.exchanges.gate.failures["take"] == 2
    bench.close()


class Forgetful(LocalCounters):
    """Counters that are lost once something was taken."""

    async def release(self, taken: Taken) -> None:
        raise CountersUnavailable("away")


async def test_what_cannot_be_given_back_is_counted() -> None:
    around = {"keys": keys_of(limited(concurrent_requests=1)), "counters": Forgetful()}
    bench = Bench(around=around)
    async with bench.exchanges.gate as gate:
        await bench.tell(request_headers(authorization="Bearer ann"), request_body())
        bench.close()
    assert gate.failures == {"release": 1}


class Ending(StrEnum):
    """How a request ends that was let in, with what of it counts then."""

    SERVED = "served"
    UNREACHED = "unreached"
    REFUSED = "refused"
    LEFT = "left"

    def put(self, record: RequestRecord) -> tuple[int, bool]:
        """Return whether the request counts, and whether its tokens do."""
        record.forwarded = True
        match self:
            case Ending.SERVED:
                record.outcome, record.status = Outcome.OK, 200
                return 1, True
            case Ending.UNREACHED:
                record.outcome, record.status, record.unseen = Outcome.LOCAL_REPLY, 503, True
                return 0, False
            case Ending.REFUSED:
                record.outcome, record.status = Outcome.ENGINE_ERROR, 400
                return 1, False
            case Ending.LEFT:
                return 1, True


@given(
    st.tuples(st.integers(0, 6), st.integers(0, 400), st.integers(0, 4)),
    st.lists(st.one_of(st.integers(1, 120), st.sampled_from(Ending)), max_size=40),
)
def test_whatever_becomes_of_requests_no_more_counts_and_no_less_than_was_used(
    limits: tuple[int, int, int], steps: list[int | Ending]
) -> None:
    async def run() -> None:
        user = User("ann", limits=Limits(*limits))
        gate = Gate(LocalCounters(lambda: 1000.0), keys_of(user))
        pods = Bench().cache.view.models["m"]
        held: list[tuple[Admission, RequestRecord, int]] = []
        requests = tokens = 0
        for number, step in enumerate(steps):
            record = RequestRecord(str(number), model="m")
            if isinstance(step, Ending):
                if held:
                    admission, record, amount = held.pop(0)
                    counts, used = step.put(record)
                    admission.end(record)
                    admission.end(record)
                    await asyncio.sleep(0)
                    requests += counts - 1
                    tokens -= 0 if used else amount
                continue
            fits = (
                requests + 1 <= limits[0]
                and tokens + step <= limits[1]
                and len(held) + 1 <= limits[2]
            )
            try:
                taken = await gate.admit(user, pods, record, tokens=(step, 0), per_second=None)
            except RequestRejected:
                assert not fits
                continue
            assert fits
            assert taken is not None
            held.append((taken, record, step))
            requests, tokens = requests + 1, tokens + step
            left = [standing.remaining for standing in record.standings]
            assert left == [limits[0] - requests, limits[1] - tokens, limits[2] - len(held)]

    with patch("pdrouter.serving.gate._PAUSES_S", ()):
        asyncio.run(run())
