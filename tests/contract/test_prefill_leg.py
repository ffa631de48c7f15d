"""The prefill leg against real servers: retries, deadlines, refusals, counts that end at zero."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from exchanges import Notes
from factories import make_model_pods, make_pod, make_state
from loopback import OK, Server, Talk, answer_always, answering, hang, listen, reset, trickle
from waiting import LONGER_S, WAIT_S, wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods, PodCache
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import (
    NOTHING,
    PREFILL_DECODE,
    Leg,
    Order,
    Placement,
    SideAnswer,
    Split,
)
from pdrouter.load.ledger import Ledger
from pdrouter.load.legs_in_flight import LegLoad
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.load.retry_budget import RetryBudget, RetryRules
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.routing.decision import Choice, Decision, NoReadyPod, RoutingFacts
from pdrouter.routing.router import Router
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategy_book import StrategyBook
from pdrouter.serving.cache_reports import CacheReports
from pdrouter.serving.call import Call
from pdrouter.serving.choosing import Routed
from pdrouter.serving.companion import Companion
from pdrouter.serving.drains import Drains
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.introductions import Introductions
from pdrouter.serving.lease import Leases
from pdrouter.serving.leg_outcome import Attempt, LegAnswer, LegFailed, LegRefused
from pdrouter.serving.leg_posts import LegPosts, number_ids
from pdrouter.serving.leg_requests import LegRequests
from pdrouter.serving.legs import SideLegs
from pdrouter.serving.lessons import LegLessons
from pdrouter.serving.open_decision import OpenDecision
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.priorities import Priorities, PriorityRules
from pdrouter.serving.record import RequestRecord, Retry
from pdrouter.serving.statuses import BUSY, Speaks
from pdrouter.serving.unsplittable import UnsplittableKinds

SHORT_S = 0.15
MIB = 1024 * 1024
BODY = b'{"model":"llama","prompt":"a"}'
DECODE = make_pod("d", Role.DECODE, ip="10.0.0.2")
OTHER_DECODE = make_pod("d-other", Role.DECODE, ip="10.0.0.3", roleset="other")
TOKENS = 77
COUNTED_DECODE = {Leg.DECODE: LegLoad(1, TOKENS)}
OF_THE_POD = [401, 403, 404, 405, 407, 408, 421, 425, 429]
LIMITS = ClientLimits(connect_s=LONGER_S, response_s=LONGER_S, answer_bytes=1024)


def status(code: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d Whatever\r\nx-from: engine\r\ncontent-length: %d\r\n\r\n%s" % (
        code,
        len(body),
        body,
    )


class InOrder:
    """Tries the pods in the order in which they were added."""

    name = "in-order"

    def decide(self, facts: RoutingFacts, pods: ModelPods, state: RoutingState) -> Decision:
        del facts, state
        if not pods.prefill:
            raise NoReadyPod(pods.model, Role.PREFILL)
        first = pods.prefill[0]
        return make_pair(first, pods.decode[first.pairing][0])

    def list_algorithms(self, prefill_policy: str, decode_policy: str) -> frozenset[str]:
        del prefill_policy, decode_policy
        return frozenset((self.name,))


async def fail(error: Exception) -> None:
    """Nothing is begun that goes on beside the last leg."""
    raise error


class Unchanged(Split):
    """A connector that gives the client's body to engines."""

    name = "unchanged"
    legs = PREFILL_DECODE
    order = Order.SERIAL
    fits: frozenset[str] = frozenset()

    def find(self, engine: str, connector: str | None) -> "Unchanged":
        del engine, connector
        return self

    def side_body(self, leg: Leg, request: InferenceRequest, placement: Placement) -> Pieces:
        del leg, placement
        return request.body.edit()

    def last_body(
        self, request: InferenceRequest, placement: Placement, answers: Sequence[SideAnswer]
    ) -> Pieces:
        del placement, answers
        return request.body.edit()

    def find_expiry(self, answer: SideAnswer) -> float | None:
        del answer
        return None


def choose(pod: Pod, leg: Leg = Leg.PREFILL) -> Choice:
    return Choice(leg, pod, "in-order", 0.0, [pod], [0.0], TOKENS)


def make_pair(prefill: Pod, decode: Pod) -> Decision:
    return Decision((choose(prefill),), choose(decode, Leg.DECODE))


@dataclass
class Stage(Notes):
    """Engines, what was tried on them, and a leg to run."""

    stack: AsyncExitStack
    ledger: Ledger = field(default_factory=Ledger)
    pods: list[Pod] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    told: list[Retry] = field(default_factory=list)
    strategy: InOrder = field(default_factory=InOrder)
    budget: RetryBudget = field(default_factory=RetryBudget)
    record: RequestRecord = field(default_factory=lambda: RequestRecord("id"))

    async def add_engine(self, talk: Talk, roleset: str = "") -> Pod:
        """Start a server that talks so, and return the pod that it stands for."""
        server = await self.stack.enter_async_context(listen(talk))
        self.servers.append(server)
        return self.add_pod(server.address, roleset)

    def add_pod(self, address: str, roleset: str = "") -> Pod:
        ip, _, port = address.rpartition(":")
        name = f"p{len(self.pods)}"
        self.pods.append(make_pod(name, ip=ip, port=int(port), roleset=roleset))
        return self.pods[-1]

    async def create_leg(
        self, *, limits: ClientLimits = LIMITS, total_s: float = LONGER_S, retries: int = 1
    ) -> SideLegs:
        client = await self.stack.enter_async_context(EngineClient(limits))
        return self.create_leg_with(client, total_s, retries)

    def create_leg_with(self, client: EngineClient, total_s: float, retries: int) -> SideLegs:
        cache = PodCache()
        cache.replace([*self.pods, DECODE, OTHER_DECODE])
        self.router = Router(StrategyBook({}), make_state(self.ledger))
        state = self.router.state
        return SideLegs(
            client,
            cache,
            self.router,
            Unchanged(),  # type: ignore[arg-type]
            LegLessons(
                PodOutcomes(state.failures),
                UnsplittableKinds(state.clock),
                TokenRatios(),
                self,
                CacheReports(state.prefixes, self),
            ),
            total_s,
            retries,
            self.budget,
            Introductions(client),
            Leases(30.0),
            Priorities(client, state.priorities, self, PriorityRules()),
        )

    def leg_attempted(self, record: RequestRecord, attempt: Attempt) -> None:
        assert attempt is record.attempts[-1]
        self.attempts.append(attempt)

    def leg_retried(self, record: RequestRecord) -> None:
        self.told.append(record.retries[-1])

    async def run(self, legs: SideLegs, body: bytes = BODY) -> LegAnswer:
        request = parse_request(
            ENDPOINTS["/v1/completions"],
            "?a=b",
            body,
            transfer_members=frozenset(),
            split_multimodal=False,
        )
        legs.budget.count_request(request.model)
        routed = Routed(
            make_model_pods(*self.pods, DECODE, OTHER_DECODE),
            self.strategy,
            RoutingFacts(TOKENS, None),
            make_pair(self.pods[0], DECODE),
            0.0,
        )
        self.record = RequestRecord("id")
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        chosen = OpenDecision(routed, self.router.state, self.record)
        try:
            async with asyncio.timeout(WAIT_S):
                done = await legs.run(
                    Leg.PREFILL,
                    LegRequests(request, time.monotonic() + legs.total_s),
                    chosen,
                    headers,
                    Call(self.record, fail, Drains()),
                )
            assert isinstance(done, LegAnswer)
            return done
        finally:
            chosen.close()

    @property
    def failures(self) -> list[FailureKind | None]:
        return [attempt.failure for attempt in self.attempts]


@pytest_asyncio.fixture
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        stage = Stage(stack)
        yield stage
        # However a test ended, nothing may be left of it.
        assert stage.ledger.snapshot() == {}


# --- Success ---


async def test_an_engine_that_answers_has_carried_out_the_leg(stage: Stage) -> None:
    pod = await stage.add_engine(answering(status(200, b'{"kv_transfer_params":{}}')))
    prefilled = await stage.run(await stage.create_leg())
    assert prefilled.pod is pod
    assert prefilled.request_id == "id"
    assert prefilled.body == b'{"kv_transfer_params":{}}'
    (attempt,) = stage.attempts
    assert attempt == Attempt(Leg.PREFILL, pod, "id", 200, None, "", attempt.seconds, 0)
    assert attempt.seconds > 0
    (request,) = stage.servers[0].requests
    assert request.line == "POST /v1/completions?a=b HTTP/1.1"
    assert request.body == BODY
    assert request.headers["authorization"] == "Bearer k"
    assert request.headers["x-request-id"] == "id"


async def test_the_work_is_counted_on_the_pod_while_it_lasts(stage: Stage) -> None:
    seen: list[Mapping[str, Mapping[Leg, LegLoad]]] = []

    async def look_at_the_ledger(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)
        seen.append(stage.ledger.snapshot())
        writer.write(OK)

    pod = await stage.add_engine(look_at_the_ledger)
    await stage.run(await stage.create_leg())
    counted = {pod.uid: {Leg.PREFILL: LegLoad(1, TOKENS)}, DECODE.uid: COUNTED_DECODE}
    assert seen == [counted]
    assert stage.ledger.snapshot() == {}


@pytest.mark.parametrize("size", [MIB + 1, 8 * MIB])
async def test_large_bodies_survive_a_retry(stage: Stage, size: int) -> None:
    body = b'{"model":"llama","prompt":"' + b"x" * size + b'"}'
    await stage.add_engine(reset)
    await stage.add_engine(answer_always)
    await stage.run(await stage.create_leg(), body)
    assert [server.requests[0].body == body for server in stage.servers] == [True, True]


# --- Retries on another pod ---


@pytest.mark.parametrize(
    ("talk", "failure", "code"),
    [
        (reset, FailureKind.TRANSPORT, None),
        (answering(b""), FailureKind.TRANSPORT, None),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), FailureKind.TRANSPORT, None),
        (hang, FailureKind.TIMEOUT, None),
        (answering(status(200, b"x" * 1025)), FailureKind.TOO_LARGE, None),
        (answering(status(500)), FailureKind.STATUS, 500),
        (answering(status(502)), FailureKind.STATUS, 502),
        (answering(status(503)), FailureKind.STATUS, 503),
        (answering(status(302)), FailureKind.STATUS, 302),
        (answering(status(304, b"")), FailureKind.STATUS, 304),
    ],
    ids=[
        *("reset", "closed", "broken off", "hang", "too large"),
        *("500", "502", "503", "302", "304"),
    ],
)
async def test_what_another_pod_might_do_better_is_tried_there_under_a_fresh_id(
    stage: Stage, talk: Talk, failure: FailureKind, code: int | None
) -> None:
    first = await stage.add_engine(talk)
    second = await stage.add_engine(answer_always)
    leg = await stage.create_leg(limits=ClientLimits(LONGER_S, SHORT_S, 1024))
    prefilled = await stage.run(leg)
    assert prefilled.pod is second
    assert prefilled.request_id == "id-2"
    assert stage.servers[0].requests[0].headers["x-request-id"] == "id"
    assert stage.servers[1].requests[0].headers["x-request-id"] == "id-2"
    failed, succeeded = stage.attempts
    assert (failed.pod, failed.failure, failed.status) == (first, failure, code)
    assert failed.message
    assert (succeeded.pod, succeeded.failure, succeeded.status) == (second, None, 200)


async def test_a_pod_that_refuses_connections_is_left_for_another(stage: Stage) -> None:
    async with listen(hang) as gone:
        stage.add_pod(gone.address)
    second = await stage.add_engine(answer_always)
    assert (await stage.run(await stage.create_leg())).pod is second
    assert stage.failures == [FailureKind.CONNECT, None]


async def test_only_the_pod_that_is_being_tried_is_counted(stage: Stage) -> None:
    first = await stage.add_engine(answering(status(500)))
    second = await stage.add_engine(hang)
    task = asyncio.create_task(stage.run(await stage.create_leg()))
    await wait_until(lambda: bool(stage.servers[1].requests))
    assert set(stage.ledger.snapshot()) == {second.uid, DECODE.uid}
    assert stage.ledger.load(Leg.PREFILL, first.uid) == LegLoad()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize(
    ("engines", "retries", "attempts"), [(1, 0, 1), (2, 0, 1), (1, 3, 1), (3, 1, 2), (3, 3, 3)]
)
async def test_retries_end_with_their_number_or_with_the_pods(
    stage: Stage, engines: int, retries: int, attempts: int
) -> None:
    for number in range(engines):
        await stage.add_engine(answering(status(500 + number)))
    with pytest.raises(LegFailed) as caught:
        await stage.run(await stage.create_leg(retries=retries))
    assert len(caught.value.attempts) == attempts
    assert caught.value.attempts[-1] is stage.attempts[-1]
    assert caught.value.attempts[-1].status == 499 + attempts
    assert [attempt.pod for attempt in stage.attempts] == stage.pods[:attempts]


# --- Retries on another pair ---


async def test_another_roleset_is_tried_with_its_decode_pod(stage: Stage) -> None:
    seen: list[Mapping[str, Mapping[Leg, LegLoad]]] = []

    async def look_at_the_ledger(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)
        seen.append(stage.ledger.snapshot())
        writer.write(OK)

    first = await stage.add_engine(reset)
    second = await stage.add_engine(answering(status(500)))
    third = await stage.add_engine(look_at_the_ledger, "other")
    answer = await stage.run(await stage.create_leg(retries=2))
    assert (answer.pod, answer.request_id) == (third, "id-3")
    assert [attempt.pod for attempt in stage.attempts] == [first, second, third]
    counted = {third.uid: {Leg.PREFILL: LegLoad(1, TOKENS)}, OTHER_DECODE.uid: COUNTED_DECODE}
    assert seen == [counted]
    record = stage.record
    assert record.decision is not None
    assert [choice.pod for choice in record.decision.legs] == [third, OTHER_DECODE]
    assert record.retries == (Retry.SAME_ROLESET, Retry.OTHER_PAIR)
    assert stage.told == list(record.retries)
    assert record.decision.notes == (
        "not carried out by p0: tried again on p1 of the same roleset",
        "not carried out by p1: tried again on p2, with d-other",
    )


async def test_a_roleset_in_which_two_pods_have_failed_is_left(stage: Stage) -> None:
    for _ in range(4):
        await stage.add_engine(reset)
    last = await stage.add_engine(answer_always, "other")
    assert (await stage.run(await stage.create_leg(retries=2))).pod is last
    assert [attempt.pod for attempt in stage.attempts] == [*stage.pods[:2], last]


async def test_one_whose_pods_only_say_that_they_are_busy_is_not(stage: Stage) -> None:
    for _ in range(3):
        await stage.add_engine(answering(status(429)))
    last = await stage.add_engine(answer_always)
    await stage.add_engine(answer_always, "other")
    assert (await stage.run(await stage.create_leg(retries=2))).pod is last


async def test_cancelling_on_another_pair_counts_nothing(stage: Stage) -> None:
    await stage.add_engine(reset)
    other = await stage.add_engine(hang, "other")
    task = asyncio.create_task(stage.run(await stage.create_leg()))
    await wait_until(lambda: bool(stage.servers[1].requests))
    assert set(stage.ledger.snapshot()) == {other.uid, OTHER_DECODE.uid}
    task.cancel()
    await asyncio.wait([task])
    assert stage.ledger.snapshot() == {}


# --- The budget of a model ---


async def test_above_the_budget_the_first_failure_is_the_last(stage: Stage) -> None:
    stage.budget = RetryBudget(RetryRules(share=0.5, per_second=0.0))
    await stage.add_engine(answering(status(500)))
    await stage.add_engine(answer_always)
    legs = await stage.create_leg()
    with pytest.raises(LegFailed) as caught:
        await stage.run(legs)
    assert caught.value.over_budget
    assert len(caught.value.attempts) == 1
    assert stage.told == [Retry.OVER_BUDGET]
    # Two requests pay for one that is tried again.
    await stage.run(legs)
    assert stage.told == [Retry.OVER_BUDGET, Retry.SAME_ROLESET]


async def test_no_pod_to_try_is_no_matter_of_the_budget(stage: Stage) -> None:
    stage.budget = RetryBudget(RetryRules(share=0.0, per_second=0.0))
    await stage.add_engine(answering(status(500)))
    with pytest.raises(LegFailed) as caught:
        await stage.run(await stage.create_leg())
    assert not caught.value.over_budget
    assert stage.told == []


@pytest.mark.parametrize("code", OF_THE_POD)
async def test_pods_that_are_busy_are_not_asked_many_times_more_but_a_key_may_be_found(
    stage: Stage, code: int
) -> None:
    stage.budget = RetryBudget(RetryRules(share=0.0, per_second=0.0))
    await stage.add_engine(answering(status(code)))
    await stage.add_engine(answer_always)
    legs = await stage.create_leg()
    if code in BUSY:
        with pytest.raises(LegRefused):
            await stage.run(legs)
        assert stage.told == [Retry.OVER_BUDGET]
    else:
        await stage.run(legs)
        assert stage.told == [Retry.SAME_ROLESET]


# --- Stale connections ---


async def test_a_stale_connection_is_tried_once_more_on_the_same_pod_under_a_fresh_id(
    stage: Stage,
) -> None:
    answers = iter([[OK, b""], [OK]])

    async def close_when_used_again(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await answering(*next(answers))(server, reader, writer)

    pod = await stage.add_engine(close_when_used_again)
    leg = await stage.create_leg(retries=0)
    await stage.run(leg)
    prefilled = await stage.run(leg)
    assert (prefilled.pod, prefilled.request_id) == (pod, "id-2")
    ids = [request.headers["x-request-id"] for request in stage.servers[0].requests]
    assert ids == ["id", "id", "id-2"]
    assert stage.failures == [None, None]
    assert [attempt.stale_connections for attempt in stage.attempts] == [0, 1]


async def test_a_connection_that_is_stale_twice_is_a_failure(stage: Stage) -> None:
    """As when an engine drops all connections that it has kept."""
    first = await stage.add_engine(answering(OK, b""))
    second = await stage.add_engine(answer_always)
    leg = await stage.create_leg()
    # Two at once, so that two connections are kept.
    await asyncio.gather(stage.run(leg), stage.run(leg))
    assert stage.servers[0].connections == 2
    stage.attempts.clear()
    prefilled = await stage.run(leg)
    assert (prefilled.pod, prefilled.request_id) == (second, "id-3")
    assert stage.failures == [FailureKind.TRANSPORT, None]
    assert [attempt.stale_connections for attempt in stage.attempts] == [1, 0]
    assert stage.attempts[0].pod is first


async def test_an_id_that_both_legs_have_is_not_sent_again_to_an_engine_that_may_have_seen_it(
    stage: Stage,
) -> None:
    async def close_when_used_again(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await server.read(reader)
        writer.write(OK)
        await writer.drain()
        await server.read(reader)

    pod = await stage.add_engine(close_when_used_again)
    client = await stage.stack.enter_async_context(EngineClient(LIMITS))
    request = parse_request(
        ENDPOINTS["/v1/completions"],
        "",
        BODY,
        transfer_members=frozenset(),
        split_multimodal=False,
    )
    record, until = stage.record, time.monotonic() + WAIT_S
    numbered = number_ids(record.request_id)
    posts = LegPosts(client, Leg.PREFILL, request, {}, record, numbered, until, total_s=WAIT_S)
    for _ in range(2):
        companion = Companion(pod, NOTHING, trusts_head=False)
        attempt, answer = await posts.send(pod, lambda _: ({}, Pieces((BODY,))), companion)
    ids = [each.headers["x-request-id"] for each in stage.servers[0].requests]
    assert (answer, attempt.failure) == (None, FailureKind.TRANSPORT)
    assert ids == ["id", "id-2"]


async def test_a_first_connection_that_breaks_is_not_tried_again_on_the_same_pod(
    stage: Stage,
) -> None:
    await stage.add_engine(answering(b""))
    with pytest.raises(LegFailed):
        await stage.run(await stage.create_leg())
    assert len(stage.servers[0].requests) == 1
    assert [attempt.stale_connections for attempt in stage.attempts] == [0]


# --- Refusals ---


@pytest.mark.parametrize("code", [400, 402, 409, 413, 415, 422, 431, 451, 499])
async def test_a_refusal_is_handed_on_unchanged_and_tried_nowhere_else(
    stage: Stage, code: int
) -> None:
    body = b'{"error": {"message" : "no\\u00e9", "code":%d}}' % code
    pod = await stage.add_engine(answering(status(code, body)))
    await stage.add_engine(answer_always)
    with pytest.raises(LegRefused, match=str(code)) as caught:
        await stage.run(await stage.create_leg())
    answer = caught.value.answer
    assert (answer.status, answer.body) == (code, body)
    assert answer.headers["x-from"] == "engine"
    (attempt,) = stage.attempts
    assert (attempt.pod, attempt.status, attempt.failure) == (pod, code, None)
    assert stage.servers[1].requests == []


async def test_a_refusal_after_a_failure_is_still_a_refusal(stage: Stage) -> None:
    await stage.add_engine(reset)
    await stage.add_engine(answering(status(400)))
    with pytest.raises(LegRefused):
        await stage.run(await stage.create_leg())
    assert stage.failures == [FailureKind.TRANSPORT, None]


@pytest.mark.parametrize("code", OF_THE_POD)
async def test_what_a_pod_says_of_itself_is_no_answer_while_another_has_not_been_asked(
    stage: Stage, code: int
) -> None:
    first = await stage.add_engine(answering(status(code, b'{"error":{"message":"not me"}}')))
    second = await stage.add_engine(answer_always)
    assert (await stage.run(await stage.create_leg())).pod is second
    refused, done = stage.attempts
    assert (refused.pod, refused.status, refused.failure) == (first, code, None)
    assert refused.speaks is Speaks.POD
    assert refused.message == f"the prefill engine answered {code}: not me"
    assert done.speaks is Speaks.DONE


@pytest.mark.parametrize("code", OF_THE_POD)
async def test_what_all_pods_say_reaches_the_client_unchanged(stage: Stage, code: int) -> None:
    for _ in range(2):
        await stage.add_engine(answering(status(code, b'{"code": %d }' % code)))
    with pytest.raises(LegRefused) as caught:
        await stage.run(await stage.create_leg())
    assert (caught.value.answer.status, caught.value.answer.body) == (code, b'{"code": %d }' % code)
    assert len(stage.attempts) == 2


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ((401, 404), 404),
        ((404, 429), 429),
        ((429, 404), 429),
        ((403, 401), 403),
        ((429, 400), 400),
        ((408, 503), 408),
        ((500, 429), 429),
        ((404, 500), None),
        ((500, 401), None),
    ],
)
async def test_the_most_telling_answer_is_the_one_that_the_client_gets(
    stage: Stage, codes: Sequence[int], told: int | None
) -> None:
    for code in codes:
        await stage.add_engine(answering(status(code)))
    with pytest.raises((LegRefused, LegFailed)) as caught:
        await stage.run(await stage.create_leg())
    answer = caught.value.answer if isinstance(caught.value, LegRefused) else None
    assert (answer and answer.status) == told


async def test_refusals_do_not_use_up_the_retries_but_end(stage: Stage) -> None:
    for _ in range(4):
        await stage.add_engine(answering(status(429)))
    await stage.add_engine(reset)
    last = await stage.add_engine(answer_always)
    assert (await stage.run(await stage.create_leg())).pod is last


async def test_a_wrong_key_is_not_tried_on_every_pod_there_is(stage: Stage) -> None:
    for _ in range(9):
        await stage.add_engine(answering(status(401)))
    with pytest.raises(LegRefused):
        await stage.run(await stage.create_leg())
    assert len(stage.attempts) == 6


async def test_without_retries_a_refusal_is_the_answer(stage: Stage) -> None:
    await stage.add_engine(answering(status(429)))
    await stage.add_engine(answer_always)
    with pytest.raises(LegRefused):
        await stage.run(await stage.create_leg(retries=0))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(b"7", 7.0), (b"Wed, 21 Oct 2015 07:28:00 GMT", 0.0), (b"soon", None), (b"-1", None)],
)
async def test_it_is_noted_when_the_engine_wants_to_be_asked_again(
    stage: Stage, header: bytes, seconds: float | None
) -> None:
    answer = b"HTTP/1.1 429 Busy\r\nretry-after: %s\r\ncontent-length: 0\r\n\r\n" % header
    await stage.add_engine(answering(answer))
    with pytest.raises(LegRefused):
        await stage.run(await stage.create_leg())
    assert stage.attempts[0].retry_after_s == seconds


# --- Deadlines ---


@pytest.mark.parametrize("talk", [hang, trickle], ids=["hang", "trickle"])
async def test_the_deadline_of_the_leg_leaves_no_time_for_another_pod(
    stage: Stage, talk: Talk
) -> None:
    await stage.add_engine(talk)
    await stage.add_engine(answer_always)
    limits = ClientLimits(LONGER_S, LONGER_S, MIB)
    with pytest.raises(LegFailed) as caught:
        await stage.run(await stage.create_leg(limits=limits, total_s=SHORT_S))
    assert caught.value.attempts[-1].failure is FailureKind.TIMEOUT
    assert len(caught.value.attempts) == 1
    assert stage.servers[1].requests == []
    await wait_until(stage.servers[0].closed.is_set)


async def test_the_deadline_of_the_leg_holds_for_all_attempts_together(stage: Stage) -> None:
    for _ in range(4):
        await stage.add_engine(hang)
    limits = ClientLimits(LONGER_S, SHORT_S, 1024)
    with pytest.raises(LegFailed) as caught:
        await stage.run(await stage.create_leg(limits=limits, total_s=1.5 * SHORT_S, retries=9))
    assert set(stage.failures) == {FailureKind.TIMEOUT}
    assert 1 <= len(caught.value.attempts) <= 2


# --- Cancellation and errors ---


@pytest.mark.parametrize("talk", [hang, trickle], ids=["hang", "trickle"])
async def test_cancelling_closes_the_connection_and_counts_nothing(
    stage: Stage, talk: Talk
) -> None:
    await stage.add_engine(talk)
    await stage.add_engine(answer_always)
    leg = await stage.create_leg(limits=ClientLimits(LONGER_S, LONGER_S, 10**9))
    task = asyncio.create_task(stage.run(leg))
    await wait_until(lambda: bool(stage.servers[0].requests))
    assert stage.ledger.load(Leg.PREFILL, stage.pods[0].uid) == LegLoad(1, TOKENS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.ledger.snapshot() == {}
    await wait_until(stage.servers[0].closed.is_set)
    assert stage.attempts == []
    assert stage.servers[1].requests == []


async def test_many_legs_at_once_on_faulty_engines_leave_nothing_behind(stage: Stage) -> None:
    calls = 0

    async def behave_in_turns(
        server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal calls
        calls += 1
        turns = (answer_always, reset, hang, answering(status(500)), answering(OK, b""), trickle)
        await turns[calls % len(turns)](server, reader, writer)

    for _ in range(3):
        await stage.add_engine(behave_in_turns)
    leg = await stage.create_leg(
        limits=ClientLimits(LONGER_S, SHORT_S, 1024), retries=2, total_s=1.0
    )
    tasks = [asyncio.create_task(stage.run(leg)) for _ in range(60)]
    await wait_until(lambda: bool(stage.attempts))
    for task in tasks[::5]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    expected = (LegAnswer, LegFailed, asyncio.CancelledError)
    assert [outcome for outcome in outcomes if not isinstance(outcome, expected)] == []
    assert any(isinstance(outcome, LegAnswer) for outcome in outcomes)
    assert stage.ledger.snapshot() == {}


async def test_an_error_in_the_choice_of_another_pod_leaves_nothing_behind(stage: Stage) -> None:
    await stage.add_engine(reset)

    def fail(*args: object) -> Decision:
        del args
        raise RuntimeError(f"{len(stage.attempts)} tried")

    stage.strategy.decide = fail  # type: ignore[assignment, method-assign]
    leg = await stage.create_leg()
    with pytest.raises(RuntimeError, match="1 tried"):
        await stage.run(leg)


async def test_a_client_that_is_not_open_leaves_nothing_behind(stage: Stage) -> None:
    stage.add_pod("127.0.0.1:9")
    leg = stage.create_leg_with(EngineClient(LIMITS), LONGER_S, 1)
    with pytest.raises(RuntimeError, match="not open"):
        await stage.run(leg)
