"""The table of bounds in `docs/reliability.md`: each row is true, and each bound holds."""

import asyncio
import inspect
import json
import logging
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from factories import (
    make_answers,
    make_attempt,
    make_decision,
    make_kv_params,
    make_pod,
    make_record,
    make_request,
)
from loopback import Server, answer_always, answering, hang, listen
from opentelemetry.sdk.trace.export import SpanExportResult
from waiting import LONGER_S, WAIT_S, wait_until

from pdrouter.admin import http_port
from pdrouter.admin.http_port import HttpPort
from pdrouter.cluster import host_names, places, pod_config, pods
from pdrouter.cluster.catalog import Catalog
from pdrouter.cluster.host_names import HostNames
from pdrouter.cluster.kubernetes import routes
from pdrouter.cluster.kubernetes.api import KubeRefused
from pdrouter.cluster.kubernetes.back_off import BackOff
from pdrouter.cluster.kubernetes.reflector import DEFAULT_TIMING
from pdrouter.cluster.pods import Inactive, Pod, Role
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.source import RouteUnavailable
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.client import SURELY_OPEN_S, ClientLimits, HttpClient
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engines import exposition
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Leg
from pdrouter.engines.vllm import nixl
from pdrouter.engines.vllm.mooncake import Mooncake
from pdrouter.extproc import codec, grpcio_server, header_map, known_parts
from pdrouter.extproc.access_log import entries
from pdrouter.extproc.limits import HANDLE_HEADROOM_BYTES
from pdrouter.extproc.messages import Phase, PhaseReply
from pdrouter.extproc.server import ServerOptions
from pdrouter.journal import journal, memory
from pdrouter.load import failures as failure_memory
from pdrouter.load import (
    output_length,
    peers,
    prompt_length,
    proofs,
    recent_prompts,
    retry_budget,
    scraper,
    served_tokens,
    silences,
    turn_claims,
    virtual_tokens,
)
from pdrouter.load import priorities as priority_knowledge
from pdrouter.load.engine_check import EngineCheck
from pdrouter.load.failures import EjectionRules, FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.output_length import OutputLengths
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.load.samples import EngineSample
from pdrouter.load.scraper import MetricsScraper
from pdrouter.load.served_tokens import ServedTokens
from pdrouter.load.turn_claims import TurnClaims
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.openai import usage_scan
from pdrouter.openai.errors import RequestRejected
from pdrouter.openai.headers import REQUEST_ID, TARGET_POD
from pdrouter.openai.kind import RequestKind
from pdrouter.openai.pieces import Pieces
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.openai.usage import Usage
from pdrouter.process_limits import choose_body_memory
from pdrouter.routing import homes, strategy_book
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.strategies import create_strategies
from pdrouter.serving import (
    charges,
    drains,
    engine_client,
    legs,
    pod_questions,
    priorities,
    release,
    unsplittable,
    wakes,
)
from pdrouter.serving import tokenizers as tokenizing
from pdrouter.serving.answers import AnswerReport, RoutedRequest
from pdrouter.serving.cache_reports import CacheReports
from pdrouter.serving.charges import Charge, Charges
from pdrouter.serving.drains import Drains
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.held_bodies import HeldBodies
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.pod_questions import PodQuestions
from pdrouter.serving.priorities import Priorities, PriorityRules
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.serving.release import ReleaseOutcome, ReleaseRules, Releases
from pdrouter.serving.tokenizers import PromptTokenizers
from pdrouter.serving.unsplittable import UnsplittableKinds
from pdrouter.serving.wakes import Wakes
from pdrouter.settings import Settings, describe_settings
from pdrouter.settings.choices import Priority
from pdrouter.settings.redis_url import RedisUrl
from pdrouter.telemetry import held_lines, logs, model_series, requests, tracing
from pdrouter.telemetry.decisions import DecisionLog
from pdrouter.telemetry.journal import JournalMetrics
from pdrouter.telemetry.page import render_page
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.tools.envoy_config import Address, EnvoyConfig, build_bootstrap, to_yaml
from pdrouter.users import cached_directory, window_counts
from pdrouter.users.redis import backlog, leases, link
from pdrouter.users.redis.clients import RedisFiles
from pdrouter.users.user import User
from pdrouter.wiring.knowledge import create_knowledge
from pdrouter.wiring.rules import choose_encode_rules, choose_fairness_rules
from pdrouter.wiring.sharing import LANGUAGE, Sharing
from pdrouter.workers import process, supervisor
from pdrouter.workers.metrics_page import describe_workers

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = "| What | Bound | Then | Setting | Metric |\n|---|---|---|---|---|\n"
DEFAULTS = Settings.load({}, {})
SOON_S = 0.05
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table, its cells as they stand there."""

    what: str
    bound: str
    then: str
    setting: str
    metric: str


def read_rows() -> list[Row]:
    tables = re.findall(re.escape(HEAD) + r"((?:\|.*\n)+)", PAGE.read_text())
    lines = "".join(tables).splitlines()
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


Fill = Callable[[pytest.MonkeyPatch], Awaitable[None]]
WALK: dict[str, tuple[str, Fill]] = {}
"""For each row the bound that the code has, and what goes beyond it and sees it hold."""


def walk(what: str, bound: str) -> Callable[[Fill], Fill]:
    def add(fill: Fill) -> Fill:
        WALK[what] = bound, fill
        return fill

    return add


def name_many(count: int) -> list[str]:
    return [f"name-{number}" for number in range(count)]


# --- The table ---


def test_each_row_is_walked_and_no_other() -> None:
    assert [row.what for row in read_rows()] == list(WALK)


def test_each_setting_exists_or_it_is_said_why_there_is_none() -> None:
    known = set(re.findall(r"`([A-Z_]+)`", describe_settings()))
    for row in read_rows():
        named = set(re.findall(r"`([A-Z_]{8,})`", row.setting))
        assert named <= known, row
        assert named or row.setting.startswith("none"), row


def test_each_metric_exists_or_there_is_none() -> None:
    page = RequestTelemetry(PodCache(), Ledger()).metrics.render().decode()
    page += render_page(describe_workers({0: 1}, 1)).decode()
    page += render_page(JournalMetrics(Counter(noted=1)).collect()).decode()
    exported = set(re.findall(r"^# TYPE (\S+)", page, re.MULTILINE))
    for row in read_rows():
        named = set(re.findall(r"`(pdrouter_\w+)`", row.metric))
        assert named <= exported, row
        assert named or row.metric.startswith("none"), row


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row.what)
def test_the_bound_is_that_of_the_code(row: Row) -> None:
    assert row.bound == WALK[row.what][0]


@pytest.mark.parametrize("row", read_rows(), ids=lambda row: row.what)
async def test_the_bound_holds(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    await WALK[row.what][1](monkeypatch)


# --- Waits and retries ---


async def fail(address: str, **limits: float) -> PostFailed:
    """Return how a POST fails that has so long for something, and long for all else."""
    connect_s, response_s = (limits.get(name, LONGER_S) for name in ("connect_s", "response_s"))
    within = ClientLimits(connect_s, response_s, MIB)
    async with EngineClient(within) as client:
        body, total_s = Pieces((b"{}",)), limits.get("total_s", LONGER_S)
        with pytest.raises(PostFailed) as caught:
            async with asyncio.timeout(WAIT_S):
                await client.post(address, "/v1/completions", {}, body, total_s)
    return caught.value


@walk(
    "What is encoded and the prefill leg, all attempts together",
    f"{DEFAULTS.prefill_timeout_s:g} s",
)
async def exceed_the_leg(_: pytest.MonkeyPatch) -> None:
    async with listen(hang) as engine:
        assert (await fail(engine.address, total_s=SOON_S)).kind is FailureKind.TIMEOUT


@walk("An attempt that gets no byte", "the leg's")
async def exceed_an_attempt(_: pytest.MonkeyPatch) -> None:
    assert DEFAULTS.prefill_response_timeout_s is None
    async with listen(hang) as engine:
        assert (await fail(engine.address, response_s=SOON_S)).kind is FailureKind.TIMEOUT


@walk("A connection to a prefill pod", f"{DEFAULTS.prefill_connect_timeout_s:g} s")
async def exceed_a_connection(_: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as listener, closing(socket.socket()) as first:
        # Linux lets one connection more than the backlog wait, and ignores the next.
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first.connect(listener.getsockname())
        failed = await fail("{}:{}".format(*listener.getsockname()), connect_s=SOON_S)
        assert failed.kind is FailureKind.CONNECT


@walk("A prefill queue, as it is predicted", "the leg's")
async def exceed_a_queue(_: pytest.MonkeyPatch) -> None:
    assert DEFAULTS.max_wait_s is None
    test = "test_if_all_queues_are_too_long_the_request_is_refused"
    shown_by("unit/routing/test_admission.py", test)


@walk("A request that waits for its turn", f"{DEFAULTS.fairness_wait_s:g} s, and half of the leg's")
async def exceed_the_wait_for_a_turn(_: pytest.MonkeyPatch) -> None:
    short = replace(DEFAULTS, prefill_timeout_s=DEFAULTS.fairness_wait_s)
    assert choose_fairness_rules(short).longest_s == DEFAULTS.fairness_wait_s / 2
    test = "test_a_request_that_waits_too_long_is_told_when_to_come_again"
    shown_by("unit/serving/test_fair_queue.py", test)


@walk(
    "Further pods for one leg",
    f"{DEFAULTS.prefill_retries}, and {legs.FREE_REFUSALS} that only lack something",
)
async def exceed_the_retries(_: pytest.MonkeyPatch) -> None:
    shown_by("contract/test_prefill_leg.py", "test_refusals_do_not_use_up_the_retries_but_end")


@walk(
    "Further tries of all requests of a model",
    f"{DEFAULTS.retry_budget_share:.0%} of those of {DEFAULTS.retry_budget_window_s:g} s,"
    f" and {DEFAULTS.retry_budget_per_second:g} per second".replace("%", " %"),
)
async def exceed_the_budget(_: pytest.MonkeyPatch) -> None:
    budget = RetryBudget(clock=lambda: 0.0)
    for _request in range(500):
        budget.count_request("m")
    assert [budget.take_retry("m") for _retry in range(300)].count(True) == 500 * 0.2 + 10 * 10


@walk(
    "A connection that was closed while it was idle",
    "1 more try; where both legs run at once, none: these take one that was used in the last "
    f"{SURELY_OPEN_S:g} s, or a new one",
)
async def exceed_the_stale_connections(_: pytest.MonkeyPatch) -> None:
    tests = "contract/test_prefill_leg.py"
    shown_by(tests, "test_a_connection_that_is_stale_twice_is_a_failure")
    shown_by(
        tests,
        "test_an_id_that_both_legs_have_is_not_sent_again_to_an_engine_that_may_have_seen_it",
    )


@walk(
    "The back-off of a pod that fails",
    f"{DEFAULTS.eject_s:g} s, doubled up to {DEFAULTS.eject_longest_s:g} s",
)
async def exceed_the_back_off(_: pytest.MonkeyPatch) -> None:
    now = 0.0
    rules = EjectionRules(1, DEFAULTS.eject_s, DEFAULTS.eject_longest_s)
    memory = FailureMemory(rules, lambda: now, Random(1))
    waits = []
    for _failure in range(12):
        memory.note_failure("p", Leg.PREFILL, "connect", now)
        (told,) = memory.describe("p")
        waits.append(cast("float", told["seconds_until_trial"]))
        now += waits[-1] + 1
    assert waits[0] <= DEFAULTS.eject_s < waits[3] < max(waits) <= DEFAULTS.eject_longest_s


@asynccontextmanager
async def asking(count: int) -> AsyncIterator[tuple[FailureMemory, Server]]:
    """Questions to so many pods, of which none answers, with the one engine behind them."""
    async with listen(hang) as engine, AsyncExitStack() as stack:
        ip, _colon, port = engine.address.rpartition(":")
        cache, memory = PodCache(), FailureMemory()
        cache.replace(
            make_pod(f"d{number}", Role.DECODE, ip=ip, port=int(port)) for number in range(count)
        )
        client = await stack.enter_async_context(
            EngineClient(ClientLimits(LONGER_S, LONGER_S, MIB))
        )
        for pod in cache.view.pods:
            memory.note_failure(pod.uid, Leg.DECODE, "x", memory.clock(), path="/v1/completions")
        questions = PodQuestions(client, cache, PodOutcomes(memory))
        task = asyncio.create_task(questions.run())
        try:
            yield memory, engine
        finally:
            task.cancel()


@walk("A question to a decode pod that was left out", f"{pod_questions._ANSWER_S:g} s")
async def exceed_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_questions, "_ANSWER_S", SOON_S)
    async with asking(1) as (memory, _):
        await wait_until(lambda: bool(memory.list_ejected()))
        assert memory.asked == {"failed": 1}


class Unreachable:
    async def post(self, *_: object) -> None:
        raise PostFailed(FailureKind.CONNECT, "it is away")


class NobodyTold:
    def prefixes_corrected(self, record: RequestRecord) -> None:
        raise AssertionError(record)

    def priority_refused(self, model: str) -> None:
        raise AssertionError(model)


@asynccontextmanager
async def closing_questions(client: EngineClient) -> AsyncIterator[Priorities]:
    memory, rules = priority_knowledge.PriorityKnowledge(), PriorityRules(Priority.AUTO)
    asker = Priorities(client, memory, NobodyTold(), rules)
    async with asker.questions:
        yield asker


def ask_for_priority(asker: Priorities, pod: Pod) -> None:
    """Have an engine asked that nothing is known of."""
    record = make_record(priority=1)
    request = asker.take_over(make_request("/v1/completions"), {})
    ranked = asker.rank(request, Leg.DECODE, (pod,), record, {}, once=True)
    assert ranked.priority is None


@asynccontextmanager
async def asking_for_priorities(count: int) -> AsyncIterator[tuple[Priorities, Server]]:
    """Questions to so many pods, of which none answers, with the one engine behind them."""
    async with (
        listen(hang) as engine,
        EngineClient(ClientLimits(LONGER_S, LONGER_S, MIB)) as client,
        closing_questions(client) as asker,
    ):
        ip, _colon, port = engine.address.rpartition(":")
        for number in range(count):
            ask_for_priority(asker, make_pod(f"d{number}", Role.DECODE, ip=ip, port=int(port)))
        yield asker, engine


@walk("An engine that is asked whether it takes priorities", f"{priorities._ANSWER_S:g} s")
async def exceed_a_question_for_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priorities, "_ANSWER_S", SOON_S)
    async with asking_for_priorities(1) as (asker, engine):
        await wait_until(lambda: engine.connections == 1)
        await wait_until(lambda: not asker.questions.outstanding)


@asynccontextmanager
async def waking(count: int) -> AsyncIterator[tuple[Wakes, Server]]:
    """Wishes to so many warm pods, of which none answers, with the one runtime behind them."""
    async with (
        listen(hang) as runtime,
        EngineClient(ClientLimits(LONGER_S, LONGER_S, MIB)) as client,
    ):
        ip, _colon, port = runtime.address.rpartition(":")
        async with Wakes(client, port=int(port)) as asker:
            for number in range(count):
                pod = make_pod(f"w{number}", Role.BOTH, ip=ip, ready=False)
                asleep = replace(pod, inactive=Inactive.SLEEPING)
                assert asker.turn_away(asleep, "m").status == 503
            yield asker, runtime


@walk("A warm pod that is asked to wake a model", f"{wakes._ANSWER_S:g} s")
async def exceed_a_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakes, "_ANSWER_S", SOON_S)
    async with waking(1) as (asker, runtime):
        await wait_until(lambda: runtime.connections == 1)
        await wait_until(lambda: not asker.outstanding)


@asynccontextmanager
async def counting(
    monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> AsyncIterator[tuple[PromptTokenizers, threading.Event]]:
    """Tokenizers whose one thread is busy until an event is set."""
    go_on = threading.Event()
    monkeypatch.setattr(tokenizing, "load_tokenizer", lambda path: path)
    monkeypatch.setattr(tokenizing, "_count", lambda *_: go_on.wait(WAIT_S) and 7)
    async with PromptTokenizers({"*": Path("x")}, timeout_s, 1) as tokenizers:
        try:
            yield tokenizers, go_on
        finally:
            go_on.set()


@walk("A bootstrap server that is asked which ranks it has (Mooncake)", "5 s")
async def exceed_the_introduction(_: pytest.MonkeyPatch) -> None:
    inquiry = Mooncake().inquire(make_pod())
    assert inquiry is not None
    assert inquiry.timeout_s == 5.0
    test = "test_an_engine_that_says_nothing_is_not_waited_for"
    shown_by("contract/test_introductions.py", test)


@walk("A prompt whose tokens are to be counted", f"{DEFAULTS.tokenizer_timeout_s:g} s")
async def exceed_the_tokenizer_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with counting(monkeypatch, SOON_S) as (tokenizers, _):
        assert await tokenizers.count(make_request("/v1/completions")) is None
        assert tokenizers.stats.late == 1


class Outcomes:
    """Remembers what came of releases."""

    def __init__(self) -> None:
        self.ended: list[ReleaseOutcome] = []

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        self.ended.append(outcome)


@asynccontextmanager
async def releasing(
    timeout_s: float, count: int
) -> AsyncIterator[tuple[Releases, Outcomes, Server]]:
    """So many releases that no engine answers, with the engine."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(listen(hang))
        ip, _colon, port = engine.address.rpartition(":")
        decode = make_pod("d", Role.DECODE, ip=ip, port=int(port))
        prefill, cache, outcomes = make_pod("p"), PodCache(), Outcomes()
        cache.replace([prefill, decode])
        limits = ClientLimits(LONGER_S, LONGER_S, MIB)
        client = await stack.enter_async_context(EngineClient(limits))
        rules = ReleaseRules(True, timeout_s, ())
        releases = Releases(
            client, cache, FailureMemory(), Splits(), observer=outcomes, rules=rules
        )
        await stack.enter_async_context(releases)
        for _request in range(count):
            (answer,) = make_answers(encode_handle(), prefill)
            held = releases.hold(answer, decode, "llama", {})
            assert held is not None
            held.release()
        yield releases, outcomes, engine


def encode_handle() -> bytes:
    return b'{"kv_transfer_params": %s}' % json.dumps(make_kv_params()).encode()


@walk(
    "A role that is updated before the other, all pods being ready",
    f"{DEFAULTS.rollout_patience_s:g} s",
)
async def exceed_the_patience(_: pytest.MonkeyPatch) -> None:
    catalog = Catalog(merge_namespaces=False, patience_s=DEFAULTS.rollout_patience_s)
    decode = make_pod("d", Role.DECODE, image="old")
    for pod in (make_pod("p", image="old"), decode):
        catalog.put_pod(pod)
    catalog.build(0.0)
    catalog.put_pod(make_pod("p", image="new"))
    for now, pairs in ((10.0, 0), (10.0 + DEFAULTS.rollout_patience_s, 1)):
        assert len(catalog.build(now).models[decode.model].prefill) == pairs


@walk("A prefill answer beside which the client has its own (SGLang)", f"{drains._PATIENCE_S:g} s")
async def exceed_the_patience_with_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    async with Drains(SOON_S) as owner:
        task = asyncio.create_task(asyncio.Event().wait())
        owner.take(task)
        await asyncio.wait([task], timeout=WAIT_S)
        assert task.cancelled()


@walk("The release of blocks", f"{DEFAULTS.release_timeout_s:g} s")
async def exceed_a_release(_: pytest.MonkeyPatch) -> None:
    async with releasing(SOON_S, 1) as (_releases, outcomes, _engine):
        await wait_until(lambda: outcomes.ended == [ReleaseOutcome.FAILED])


@walk("Releases under way when the process ends", f"{release._LAST_S:g} s")
async def exceed_the_end_of_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_LAST_S", SOON_S)
    async with releasing(LONGER_S, 2) as (releases, outcomes, engine):
        await wait_until(lambda: len(engine.requests) == 2)
    assert outcomes.ended == [ReleaseOutcome.DROPPED] * 2
    assert releases.outstanding == 0


ENVOY = EnvoyConfig(
    routers=(Address("127.0.0.1", 1),), prefill_timeout_s=DEFAULTS.prefill_timeout_s
)


@walk("A decode pod that sends nothing", f"{ENVOY.stream_idle_timeout_s:g} s")
async def exceed_the_silence_of_decode(_: pytest.MonkeyPatch) -> None:
    manager = to_yaml(build_bootstrap(ENVOY))
    assert manager.count(f"{ENVOY.stream_idle_timeout_s:g}s") == 2


@asynccontextmanager
async def scraping(engine: Server, deadline_s: float = 2.0) -> AsyncIterator[MetricsScraper]:
    cache = PodCache()
    ip, _, port = engine.address.rpartition(":")
    cache.replace([make_pod(ip=ip, port=int(port), metrics_port=int(port))])
    async with MetricsScraper(cache, Ledger(), interval_s=SOON_S, deadline_s=deadline_s) as scrapes:
        task = asyncio.create_task(scrapes.run())
        try:
            yield scrapes
        finally:
            task.cancel()
            await asyncio.wait([task])


@walk("A look at an engine's metrics", "2 s")
async def exceed_a_scrape(_: pytest.MonkeyPatch) -> None:
    assert inspect.signature(MetricsScraper).parameters["deadline_s"].default == 2.0
    async with listen(hang) as engine, scraping(engine, deadline_s=SOON_S) as scrapes:
        await wait_until(lambda: scrapes.stats.failures["timeout"] > 0)


@walk("An engine that is asked for its models", "5 s")
async def exceed_the_engine_check(_: pytest.MonkeyPatch) -> None:
    assert inspect.signature(EngineCheck).parameters["wait_s"].default == 5.0
    cache = PodCache()
    async with listen(hang) as engine:
        ip, _colon, port = engine.address.rpartition(":")
        pod = make_pod(ip=ip, port=int(port))
        cache.replace([pod])
        check = EngineCheck(cache, wait_s=SOON_S)
        task = asyncio.create_task(check.run())
        await wait_until(lambda: check.is_silent(pod))
        task.cancel()
        await asyncio.wait([task])


@walk("A watch of the API server that is silent", f"{DEFAULT_TIMING.silence_s:g} s")
async def exceed_a_watch(_: pytest.MonkeyPatch) -> None:
    shown_by("kubernetes/test_informer_faults.py", "test_a_half_open_connection_is_given_up")
    timing = DEFAULT_TIMING
    assert (timing.backoff_s, timing.backoff_most_s) == (0.2, 30.0)
    pauses = BackOff(timing.backoff_s, timing.backoff_most_s, 2.0, Random(1))
    waits = [pauses.lengthen(ValueError()) for _failure in range(40)]
    assert 0.1 <= waits[0] <= 0.2 < max(waits) <= 30.0
    assert pauses.lengthen(ValueError(), 1e9) == 30.0


@walk("A model's HTTPRoute that is looked up", f"{routes._GET_S:g} s")
async def exceed_a_look_at_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_GET_S", SOON_S)
    looked: list[float] = []

    class Silent:
        @asynccontextmanager
        async def get(
            self, path: str, _: object, *, total_s: float, silence_s: float
        ) -> AsyncIterator[None]:
            looked.extend((total_s, silence_s))
            if path:
                raise TimeoutError
            yield

    checked = routes.HttpRoutes(cast("Any", Silent()), "aibrix-system", 30.0)
    with pytest.raises(RouteUnavailable):
        await checked.check("m")
    assert looked == [SOON_S, SOON_S]


@walk("A host name of the endpoints file", f"{host_names._WAIT_S:g} s")
async def exceed_a_look_up(_: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def resolve(name: str) -> tuple[str, ...]:
        go_on.wait(WAIT_S)
        return (name,)

    names = HostNames(resolve, wait_s=SOON_S)
    assert await names.look_up(["slow"]) == {}
    # A name that nobody asks for any more is not kept either.
    assert await names.look_up([]) == {}
    assert not names._pending
    go_on.set()


@walk(
    "A call to Redis",
    f"{DEFAULTS.redis_timeout_s:g} s; after {link.FAILURES} that fail, none until it is seen "
    f"again, every {link.PROBE_S:g} to {link.LONGEST_PROBE_S:g} s",
)
async def exceed_the_call(_: pytest.MonkeyPatch) -> None:
    tests = "contract/test_redis_faults.py"
    shown_by(tests, "test_a_server_that_hangs_and_goes_on")
    shown_by(tests, "test_a_burst_while_the_server_hangs_ends_with_the_deadline")


@walk("A place among those at a time, of a router that has died", f"{leases.LEASE_S:g} s")
async def exceed_the_lease(_: pytest.MonkeyPatch) -> None:
    test = "test_those_of_a_router_that_has_died_are_free_again"
    shown_by("contract/test_redis_counters.py", test)


@walk("An Envoy that has vanished", f"{2 * DEFAULTS.grpc_keepalive_s:g} s")
async def exceed_the_keepalive(_: pytest.MonkeyPatch) -> None:
    options = dict(grpcio_server._list_channel_options(ServerOptions("", 0, MIB, 7.0, tls=None)))
    assert options["grpc.keepalive_time_ms"] == options["grpc.keepalive_timeout_ms"] == 7000
    assert options["grpc.keepalive_permit_without_calls"] == 1


@walk("The end of the process", f"{DEFAULTS.drain_s:g} s")
async def exceed_the_drain(_: pytest.MonkeyPatch) -> None:
    shown_by("e2e/test_process.py", "test_what_is_open_at_the_end_of_the_drain_time_is_cancelled")


@asynccontextmanager
async def serving(page: http_port.Page) -> AsyncIterator[HttpPort]:
    port = HttpPort({"/page": page, "/healthz": page})
    await port.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await port.stop()


@walk("A connection to the HTTP port that asks for nothing", f"{http_port._IDLE_S:g} s")
async def exceed_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_port, "_IDLE_S", SOON_S)

    async def show(_: web.Request) -> web.Response:
        return web.Response()

    async with serving(show) as port:
        host, number = port.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(number))
        async with asyncio.timeout(WAIT_S):
            assert await reader.read() == b""
        writer.close()


@walk("A page of the HTTP port that is not read", f"{http_port._SEND_S:g} s")
async def exceed_the_time_to_read_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_port, "_SEND_S", SOON_S)

    async def show_much(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 64 * MIB)

    async with serving(show_much) as port:
        host, number = port.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(number), limit=1024)
        writer.write(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n")
        await wait_until(lambda: port.pages == 1)
        await wait_until(lambda: port.pages == 0)
        read = 0
        with suppress(ConnectionError):
            while data := await reader.read(MIB):
                read += len(data)
        assert read < 64 * MIB
        writer.close()


class Hanging:
    """A worker that neither answers nor ends by itself."""

    number = 0

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.asked = 0

    async def wait(self) -> int:
        await self.ended.wait()
        return -9

    async def get(self, _: str) -> process.Answer:
        self.asked += 1
        raise process.NoAnswer

    def send(self, number: signal.Signals) -> None:
        assert number is signal.SIGKILL
        self.ended.set()


@walk("A worker that does not answer its supervisor", f"{process._ANSWER_S:g} s")
async def exceed_the_patience_with_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (supervisor._MISSED_CHECKS, supervisor._CHECK_S) == (3, 10.0)
    monkeypatch.setattr(supervisor, "_CHECK_S", SOON_S)
    worker = Hanging()
    assert await supervisor._wait_for_end(cast("Any", worker)) == -9
    assert worker.asked == 3


@walk(
    "A worker that ends, until it is started again",
    f"{supervisor._FIRST_PAUSE_S:g} s, doubled up to {supervisor._LONGEST_PAUSE_S:g} s",
)
async def exceed_the_restarts(_: pytest.MonkeyPatch) -> None:
    shown_by(
        "e2e/test_workers.py",
        "test_a_worker_that_dies_takes_only_its_own_requests_along_and_comes_back",
    )


def shown_by(file: str, test: str) -> None:
    """Check that there is a test that shows it."""
    assert f"def {test}(" in (Path(__file__).parents[1] / file).read_text()


# --- Memory ---


@walk("Bodies that wait", "a third of the memory beyond 192 MiB")
async def exceed_the_bodies(_: pytest.MonkeyPatch) -> None:
    assert choose_body_memory(492 * MIB, 1) == 100 * MIB
    bodies = HeldBodies(60, 100)
    held = bodies.hold(60)
    with pytest.raises(RequestRejected) as refused:
        bodies.hold(60)
    held.release()
    assert (refused.value.code, bodies.refused, bodies.bytes) == ("body_memory_exhausted", 1, 0)


LARGEST = DEFAULTS.max_message_bytes


@walk(
    "A body; a prefill answer",
    f"{(LARGEST - HANDLE_HEADROOM_BYTES) / MIB:g} MiB; {LARGEST / MIB:g} MiB",
)
async def exceed_one_body(_: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestRejected) as refused:
        HeldBodies(60, 100).hold(61)
    assert refused.value.status == 413
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (2 * MIB, b"x" * 2 * MIB)
    async with listen(answering(answer)) as engine:
        assert (await fail(engine.address)).kind is FailureKind.TOO_LARGE


@walk(
    "Open requests, and their work in flight", f"{ENVOY.max_concurrent_requests:,} for each Envoy"
)
async def exceed_the_open_requests(_: pytest.MonkeyPatch) -> None:
    shown_by(
        "contract/test_envoy_behaviour.py",
        "test_a_request_above_the_limit_of_concurrency_is_refused_at_once",
    )


@walk(
    "Connections to engines",
    f"one for each leg in flight; idle ones for {engine_client._KEEPALIVE_S:g} s",
)
async def exceed_the_idle_connections(_: pytest.MonkeyPatch) -> None:
    async with listen(answer_always) as engine:
        with closing(
            HttpClient(ClientLimits(LONGER_S, LONGER_S, MIB), keepalive_s=SOON_S)
        ) as client:
            await client.request("GET", engine.address, "/", {}, body=None, total_s=LONGER_S)
            await wait_until(engine.closed.is_set)


@walk("Prefill answers that are read after their request", f"{drains._MOST:,}")
async def exceed_the_answers_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    async with Drains(LONGER_S) as owner:
        tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(drains._MOST + 5)]
        for task in tasks:
            owner.take(task)
        await wait_until(lambda: sum(task.done() for task in tasks) == 5)
        assert owner.outstanding == drains._MOST


@walk(
    "Media of one request, and those encoded at once",
    f"{DEFAULTS.encode_items}, {DEFAULTS.encode_concurrency}",
)
async def exceed_the_media(_: pytest.MonkeyPatch) -> None:
    test = "test_no_more_are_encoded_at_once_than_is_set_and_no_request_may_have_too_many"
    shown_by("unit/extproc/test_encoded_requests.py", test)


@walk(
    "What is said of a request's encoded media",
    f"{choose_encode_rules(DEFAULTS).most_bytes / MIB:.1f} MiB",
)
async def exceed_what_is_said_of_media(_: pytest.MonkeyPatch) -> None:
    test = "test_answers_that_are_too_large_together_end_the_request"
    shown_by("unit/extproc/test_encoded_requests.py", test)


@walk("Releases at once, and in all", f"{release._AT_ONCE}, {release._MOST}")
async def exceed_the_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "_LAST_S", SOON_S)
    async with releasing(LONGER_S, release._MOST + 5) as (releases, outcomes, engine):
        assert releases.outstanding == release._MOST
        assert outcomes.ended == [ReleaseOutcome.DROPPED] * 5
        await wait_until(lambda: len(engine.requests) == release._AT_ONCE)
        assert engine.connections == release._AT_ONCE


@walk("Questions to pods at once", f"{pod_questions._AT_ONCE}")
async def exceed_the_questions(_: pytest.MonkeyPatch) -> None:
    async with asking(pod_questions._AT_ONCE + 9) as (_memory, engine):
        await wait_until(lambda: engine.connections >= pod_questions._AT_ONCE)
        await asyncio.sleep(SOON_S)
        assert engine.connections == pod_questions._AT_ONCE


@walk("Engines that are asked for priorities at once", f"{priorities._AT_ONCE}")
async def exceed_the_asked(_: pytest.MonkeyPatch) -> None:
    async with asking_for_priorities(priorities._AT_ONCE + 9) as (_asker, engine):
        await wait_until(lambda: engine.connections >= priorities._AT_ONCE)
        await asyncio.sleep(SOON_S)
        assert engine.connections == priorities._AT_ONCE


@walk("Models that are woken at once", f"{wakes._AT_ONCE}")
async def exceed_the_wakes(_: pytest.MonkeyPatch) -> None:
    most = wakes._AT_ONCE
    async with waking(2 * most) as (asker, runtime):
        assert asker.outstanding == most
        await wait_until(lambda: runtime.connections == most)


@walk(
    "A handle that is kept until its pod answers",
    f"{release._SMALL // 1024} KiB with its answer, else {release._LARGEST // MIB} MiB without",
)
async def exceed_a_kept_handle(_: pytest.MonkeyPatch) -> None:
    async with releasing(LONGER_S, 0) as (releases, _outcomes, _engine):
        pod, handle = make_pod("p"), encode_handle()
        (large,) = make_answers(handle + b" " * release._SMALL, pod)
        held = releases.hold(large, pod, "llama", {})
        assert held is not None
        assert held.written is not None
        assert not held.answer.body
        assert len(held.written.body) < 1024
        blocks = make_kv_params(remote_block_ids=[list(range(release._LARGEST // 6))])
        (larger,) = make_answers(json.dumps({"kv_transfer_params": blocks}).encode(), pod)
        assert releases.hold(larger, pod, "llama", {}) is None


@walk("Prompts in a tokenizer's threads", f"{DEFAULTS.tokenizer_threads}")
async def exceed_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with counting(monkeypatch, SOON_S) as (tokenizers, go_on):
        request = make_request("/v1/completions")
        counts = await asyncio.gather(*(tokenizers.count(request) for _ in range(50)))
        assert counts == [None] * 50
        # What was given up has left nothing behind.
        assert tokenizers._threads._work_queue.qsize() == 0
        go_on.set()
        tokenizers._timeout_s = WAIT_S
        assert await tokenizers.count(request) == 7


@walk("Prefixes that pods have cached", f"{DEFAULTS.prefix_index_bytes / MIB:g} MiB")
async def exceed_the_prefixes(_: pytest.MonkeyPatch) -> None:
    index = PrefixIndex(12_000, 3600, lambda: 0.0)
    for first in range(0, 10_000, 100):
        index.add(range(first, first + 100), "p")
        assert len(index) <= 100


@walk(
    "Prompts of late, for `prefix-cache-preble`; lists of algorithms that were read before",
    f"{recent_prompts._MOST_ENTRIES:,}, "
    f"{strategy_book._MOST_KEPT} of {strategy_book._LONGEST_KEPT // 1024} KiB",
)
async def exceed_the_recent_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_prompts, "_MOST_ENTRIES", 100)
    memory = recent_prompts.RecentPrompts(clock=lambda: 0.0)
    for number in range(300):
        memory.add(Leg.DECODE, (number,), "p", 10, 0)
    assert (len(memory), len(memory._prompts), memory.measure("p").prompts) == (100, 100, 100)
    book = create_strategies()
    for weight in range(300):
        book.find(f"least-request,prefix-cache:{weight + 1}")
        book.find(f"least-request,prefix-cache:{weight + 1}" + " " * 1024)
    assert len(book._found) == strategy_book._MOST_KEPT
    assert max(map(len, book._found)) <= strategy_book._LONGEST_KEPT


@walk("Failures of pods, by leg and model", f"{failure_memory._MOST_PARTS:,}")
async def exceed_the_failures(_: pytest.MonkeyPatch) -> None:
    memory = FailureMemory(EjectionRules(after=1), lambda: 0.0, Random(1))
    for uid in name_many(5000):
        memory.note_failure(uid, Leg.PREFILL, "connect", 0.0)
        memory.note_scrape(uid, connected=False)
    for kept in (memory._records, memory._out, memory._reaches.pods):
        assert len(kept) == failure_memory._MOST_PARTS


@walk("What wires know of prefill engines", f"{peers._MOST:,} of {peers._LONGEST // 1024} KiB")
async def exceed_the_peers(_: pytest.MonkeyPatch) -> None:
    memory = peers.PeerKnowledge()
    for name in name_many(5000):
        memory.learn(make_pod(name), {"engine": b"x" * (peers._LONGEST + 1)}, 0.0)
    assert not len(memory)
    for name in name_many(5000):
        memory.learn(make_pod(name), {"engine": b"x"}, 0.0)
    assert len(memory) == peers._MOST


@walk("Which engines have said what they had cached, by path", f"{proofs.MOST_NAMES:,}")
async def exceed_the_cache_reports(_: pytest.MonkeyPatch) -> None:
    known = proofs.Proofs()
    index = PrefixIndex(MIB, 60, lambda: 0.0)
    reports = CacheReports(index, NobodyTold(), known)
    for name in name_many(5000):
        answer = LegAnswer(Leg.PREFILL, make_pod(name), "id", b"", Usage(100, 0))
        guess = reports.guess(PromptPrefix((1,), (10,), 10), answer.pod.uid, 100)
        reports.take(guess, answer, "/v1/completions", make_record())
    assert len(known._told) == proofs.MOST_NAMES


@walk(
    "Parts of the pods among routers, by model; weights, by pod and router",
    f"{homes._MOST_KEPT}, {homes._MOST_WEIGHTS:,}",
)
async def exceed_the_homes(_: pytest.MonkeyPatch) -> None:
    known = homes.Homes(RouterGroup("0", replicas=("0", "1")))
    for name in name_many(200):
        known.find((name, "a", "b"))
    assert len(known._found) == homes._MOST_KEPT
    for name in name_many(2 * homes._MOST_WEIGHTS):
        homes._weigh(name, "router")
    assert homes._weigh.cache_info().currsize == homes._MOST_WEIGHTS


@walk(
    "Which engines take priorities, and when they were asked",
    f"{priority_knowledge._MOST:,}, {priorities._MOST:,}",
)
async def exceed_the_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = priority_knowledge.PriorityKnowledge()
    for name in name_many(5000):
        memory.note(make_pod(name), takes=True)
    assert len(memory) == priority_knowledge._MOST
    monkeypatch.setattr(priorities, "_AT_ONCE", 5000)
    client = cast("EngineClient", Unreachable())
    async with closing_questions(client) as asker:
        for name in name_many(5000):
            ask_for_priority(asker, make_pod(name, Role.DECODE))
        assert len(asker._asked) == priorities._MOST


@walk("Pods' last answers, and who waits in vain", f"{silences._MOST:,}, {silences._MOST:,}")
async def exceed_the_silences(_: pytest.MonkeyPatch) -> None:
    memory = silences.Silences()
    for uid in name_many(5000):
        memory.note_answer(uid, Leg.PREFILL, 1.0)
        memory.note_given_up(f"other-{uid}", Leg.PREFILL, 2.0, 3.0)
    assert len(memory._answered) == len(memory._silences) == silences._MOST


@walk(
    "Who has served which model, who has given a handle",
    f"{proofs.MOST_NAMES:,}, {proofs.MOST_NAMES:,}",
)
async def exceed_the_outcomes(_: pytest.MonkeyPatch) -> None:
    known = proofs.Proofs()
    outcomes = PodOutcomes(FailureMemory(), known)
    for model in name_many(5000):
        known.note_served(Leg.PREFILL, "default", model, "/v1/completions", "p")
        outcomes.note_usable(LegAnswer(Leg.PREFILL, make_pod(), "id", b"", Usage(5, None)), model)
    assert len(known._served) == len(known._handles) == proofs.MOST_NAMES
    for uid in name_many(100):
        known.note_served(Leg.PREFILL, "default", "name-4999", "/v1/completions", uid)
    assert all(len(served.pods) <= proofs._ENOUGH for served in known._served.values())


@walk(
    "What workers tell each other, of each of them; legs that one tells at once which comes later",
    f"{memory.Layout(1).ring_bytes // MIB} MiB, {journal._TOLD_AT_ONCE}",
)
async def exceed_the_journals(patch: pytest.MonkeyPatch) -> None:
    del patch
    layout = memory.Layout(2)
    descriptor = memory.create_memory(layout)
    try:
        shared = memory.SharedMemory(descriptor, layout)
        workers = [journal.Journal(shared, number, LANGUAGE) for number in range(2)]
        states = [
            create_knowledge(Settings(), Sharing(one), RouterGroup()).state for one in workers
        ]
        for one in workers:
            await one.join()
        scopes = [states[0].ledger.start(Leg.DECODE, "pod", 1) for _ in range(1200)]
        workers[0].flush()
        block = b"x" * shared.ring(0).largest
        for _ in range(layout.ring_bytes // len(block) + 2):
            shared.ring(0).append(block)
        assert os.fstat(descriptor).st_size == layout.bytes
        states[1].catch_up()
        assert workers[1].events["lost"] == 1
        workers[1].flush()
        workers[0].tick()
        assert len(workers[0]._untold) == 1200 - journal._TOLD_AT_ONCE
        for scope in scopes:
            scope.release()
    finally:
        os.close(descriptor)


@walk(
    "Bytes per token, lengths of answers, by model",
    f"{prompt_length._MOST_MODELS:,}, {output_length._MOST_MODELS:,}",
)
async def exceed_the_lengths(_: pytest.MonkeyPatch) -> None:
    ratios, lengths = TokenRatios(), OutputLengths(512)
    for model in name_many(5000):
        ratios.observe(model, 100, 10)
        lengths.observe(model, 10)
    assert len(ratios._sums) == prompt_length._MOST_MODELS
    assert len(lengths._sums) == output_length._MOST_MODELS
    assert lengths.expect("name-0") == 512
    assert lengths.expect("name-4999") < 512


@walk("Retry budgets, by model", f"{retry_budget._MOST_MODELS:,}")
async def exceed_the_budgets(_: pytest.MonkeyPatch) -> None:
    budget = RetryBudget(clock=lambda: 0.0)
    for model in name_many(2000):
        budget.count_request(model)
    assert len(budget._accounts) == retry_budget._MOST_MODELS


@walk("Windows in which requests and tokens are counted", f"{window_counts.MOST_WINDOWS:,}")
async def exceed_the_windows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(window_counts, "MOST_WINDOWS", 1000)
    windows = window_counts.WindowCounts(lambda: 0.0)
    for name in name_many(1500):
        windows.add(name, 60.0, 1)
    assert len(windows._windows) == 1000
    assert [windows.count(name, 60.0) for name in ("name-0", "name-1499")] == [0, 1]


@walk("Users who are looked up by name", f"{cached_directory._MOST:,}")
async def exceed_the_known_users(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cached_directory, "_MOST", 100)
    directory = cached_directory.CachedDirectory(_Anybody(), lambda: 0.0)
    for name in name_many(150):
        assert await directory.find(name) == User(name)
    assert len(directory._found) == 100


class _Anybody:
    async def find(self, name: str) -> User | None:
        return User(name)


@walk("Requests that wait for their turn, by model", f"{DEFAULTS.fairness_queue:,}")
async def exceed_the_queue(_: pytest.MonkeyPatch) -> None:
    test = "test_a_flood_that_fills_the_queue_displaces_its_own_newest_request"
    shown_by("unit/serving/test_fair_queue.py", test)


@walk(
    "What users were served, by model, class and user; of late; charges that may be put right",
    f"{virtual_tokens.MOST_COUNTERS:,}, {served_tokens.MOST_USERS:,}, {charges.MOST_UNSETTLED:,}",
)
async def exceed_the_users(_: pytest.MonkeyPatch) -> None:
    counters, served = VirtualTokens(), ServedTokens()
    unsettled = Charges(served)
    charge = Charge(RoutingFacts(1, None), unsettled.weights, lambda _tokens: None)
    for name in name_many(virtual_tokens.MOST_COUNTERS + 1):
        counters.charge(name, name, 1)
        served.count(name, 1)
        unsettled.keep(name, charge)
    assert len(counters) == len(counters._reached) == virtual_tokens.MOST_COUNTERS
    assert len(served) == served_tokens.MOST_USERS
    assert len(unsettled) == charges.MOST_UNSETTLED


@walk(
    "Who is next at other workers, by what they need room on",
    f"{turn_claims.MOST_WAYS:,}, for {turn_claims.FRESH_S:g} s",
)
async def exceed_the_claims(_: pytest.MonkeyPatch) -> None:
    now = 0.0
    claims = TurnClaims(lambda: now)
    for name in name_many(5000):
        claims.put(name, "worker", "line", 0.0, 0.0)
    assert len(claims._claims) == turn_claims.MOST_WAYS
    now = 1.01 * turn_claims.FRESH_S
    assert not list(claims.list_others(name, "another"))


@walk("Calls to Redis at once", f"{link.MAX_CALLS}")
async def exceed_the_calls(_: pytest.MonkeyPatch) -> None:
    test = "test_no_more_calls_at_a_time_than_there_may_be"
    shown_by("contract/test_redis_faults.py", test)


@walk(
    "What is counted too much or too little while Redis is away",
    f"{backlog.MAX_WAITING:,} corrections; each batch for {backlog.RESENT_S:g} s",
)
async def exceed_the_backlog(_: pytest.MonkeyPatch) -> None:
    away = link.RedisLink(RedisUrl((("127.0.0.1", 1),)), RedisFiles(), SOON_S, "x")
    waiting = backlog.Backlog(away, "x")
    correction = backlog.Correction("k", backlog.Kind.ADD, 1, 60.0, 1.0)
    waiting.add([correction] * (backlog.MAX_WAITING + 5))
    assert len(waiting) == backlog.MAX_WAITING
    assert away.stats.dropped == 5
    shown_by("unit/users/test_backlog.py", "test_a_batch_is_given_up_before_it_could_count_twice")


@walk("Kinds of requests that are served whole", f"{unsplittable._MOST_KINDS}")
async def exceed_the_kinds(_: pytest.MonkeyPatch) -> None:
    kinds = UnsplittableKinds(lambda: 0.0)
    for name in name_many(500):
        kinds.note_failed("m", RequestKind("/v1/completions", (name,)), ["p", "q"], ["p", "q"])
    assert len(kinds.evidence) == unsplittable._MOST_KINDS


@walk("HTTPRoutes that were looked up", f"{routes._MOST_MODELS:,}")
async def exceed_the_routes(_: pytest.MonkeyPatch) -> None:
    class Refusing:
        @asynccontextmanager
        async def get(self, path: str, *_: object, **__: object) -> AsyncIterator[None]:
            if path:
                raise KubeRefused(404, "none")
            yield

    checked = routes.HttpRoutes(cast("Any", Refusing()), "aibrix-system", 3600.0)
    for model in name_many(5000):
        with pytest.raises(RouteUnavailable):
            await checked.check(model)
    assert len(checked._verdicts) == len(checked._locks) == routes._MOST_MODELS


@walk(
    "Hosts in handles, headers, metadata, pairs, annotations that were read before, distances",
    ", ".join(
        f"{cache.cache_info().maxsize:,}"
        for cache in (
            nixl._is_unusable,
            codec._begin_option,
            codec._begin_field,
            pods._create_pairing,
            pod_config.read_config,
            places.measure_distance,
        )
    ),
)
async def exceed_the_caches(_: pytest.MonkeyPatch) -> None:
    nixl._is_unusable.cache_clear()
    for name in name_many(2000):
        assert not nixl.is_unusable_host(name)
    assert nixl._is_unusable.cache_info().currsize == 1024
    # An engine that says megabytes is not remembered: a thousand of them would fill the memory.
    nixl._is_unusable.cache_clear()
    assert not nixl.is_unusable_host("x" * MIB)
    assert nixl._is_unusable.cache_info().currsize == 0


@walk(
    "Headers that were read before; attributes of answers; what Envoy's filter is configured to do",
    f"{known_parts.MOST} of {known_parts.LARGEST} bytes each",
)
async def exceed_the_known_parts(_: pytest.MonkeyPatch) -> None:
    known = known_parts.KnownParts(bytes.decode)
    for name in name_many(2 * known_parts.MOST):
        for part in (name.encode(), name.encode() + b"x" * known_parts.LARGEST):
            assert known[part] == part.decode()
        assert len(known) <= known_parts.MOST
    assert max(map(len, known)) <= known_parts.LARGEST
    assert all(
        type(kept) is known_parts.KnownParts
        for kept in (header_map._KNOWN, codec._ATTRIBUTES, codec._PROTOCOL_CONFIGS)
    )


@walk(
    "Headers about pods, as they are written",
    f"{codec.MOST_WRITTEN:,} of {known_parts.LARGEST} bytes each",
)
async def exceed_the_written_headers(_: pytest.MonkeyPatch) -> None:
    codec._WRITTEN.clear()
    for value in name_many(2 * codec.MOST_WRITTEN):
        codec.encode(PhaseReply(Phase.RESPONSE_HEADERS, ((TARGET_POD, value),)))
        assert 0 < len(codec._WRITTEN) <= codec.MOST_WRITTEN
    codec._WRITTEN.clear()
    large, of_one_request = (TARGET_POD, "x" * known_parts.LARGEST), (REQUEST_ID, "1")
    codec.encode(PhaseReply(Phase.RESPONSE_HEADERS, (large, of_one_request)))
    assert not codec._WRITTEN


@walk(
    "An answer that is observed",
    f"{usage_scan.MAX_EVENT_BYTES / MIB:g} MiB of a line,"
    f" {usage_scan.MAX_ANSWER_BYTES // 1024} KiB of a plain one",
)
async def exceed_the_observed(_: pytest.MonkeyPatch) -> None:
    stream, plain = usage_scan.StreamScan(), usage_scan.PlainScan()
    for _piece in range(64):
        stream.feed(b"x" * 65_536)
        plain.feed(b"x" * 65_536)
        assert len(stream._rest) <= usage_scan.MAX_EVENT_BYTES
        assert len(plain._body) <= usage_scan.MAX_ANSWER_BYTES
    assert stream.finish() is plain.finish() is None


@walk(
    "A page of an engine's metrics",
    f"{scraper._PAGE_BYTES / MIB:g} MiB, {exposition.MAX_SERIES:,} series",
)
async def exceed_a_metrics_page(_: pytest.MonkeyPatch) -> None:
    page = b"x 1\n" * (MIB // 2)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page)
    async with listen(answering(answer)) as engine, scraping(engine) as scrapes:
        await wait_until(lambda: scrapes.stats.failures["too-large"] > 0)
    series = b"".join(b'vllm:num_requests_running{a="%d"} 1\n' % n for n in range(3000))
    (found,) = exposition.Families("vllm:num_requests_running").find(series).values()
    assert len(found) == exposition.MAX_SERIES


@walk(
    "A message of Envoy's access log",
    f"{entries.LONGEST_MESSAGE / MIB:g} MiB, {entries.MOST_PARTS} resources and scopes",
)
async def exceed_a_message_of_the_log(_: pytest.MonkeyPatch) -> None:
    tests = "unit/extproc/test_access_log.py"
    shown_by(tests, "test_messages_that_would_keep_everybody_waiting_are_refused")


@walk(
    "Lines of requests that wait for what Envoy tells of their answers",
    f"{held_lines.MOST_HELD:,} for {held_lines.HOLD_S:g} s",
)
async def exceed_the_held_lines(_: pytest.MonkeyPatch) -> None:
    tests = "unit/telemetry/test_request_telemetry.py"
    shown_by(tests, "test_no_more_lines_wait_than_there_is_room_for")
    shown_by(tests, "test_a_line_waits_for_what_envoy_tells_of_its_answer")


@walk(
    "Requests that wait to be counted, and to have their lines written",
    f"{requests.MOST_WAITING} for {requests.WAIT_S:g} s",
)
async def exceed_the_uncounted(_: pytest.MonkeyPatch) -> None:
    tests = "unit/telemetry/test_request_telemetry.py"
    shown_by(tests, "test_no_more_requests_wait_to_be_counted_than_are_counted_at_once")
    shown_by(tests, "test_requests_are_counted_and_told_of_soon")


@walk("Lines of the log that wait", f"{logs.MAX_WAITING_LINES:,}")
async def exceed_the_log(_: pytest.MonkeyPatch) -> None:
    lines: SimpleQueue[str | None] = SimpleQueue()
    handler = logs._QueueOfLines(lines, logs.JsonFormatter())
    line = logging.LogRecord("x", logging.INFO, "", 0, "x", (), None)
    for _line in range(logs.MAX_WAITING_LINES + 7):
        handler.handle(line)
    assert (lines.qsize(), handler.dropped) == (logs.MAX_WAITING_LINES, 7)


class StuckExporter:
    """Sends no span until it may."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def export(self, spans: object) -> SpanExportResult:
        del spans
        self.go_on.wait(WAIT_S)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """There is nothing to close."""


def trace_many(count: int, exporter: Any) -> tracing.Tracing:
    running = tracing.Tracing(DEFAULTS, exporter)
    for _request in range(count):
        trace = running.begin({}, "")
        assert trace is not None
        running.take(make_record(trace=trace), trace)
    return running


@walk("Spans of traces that wait", "2,048")
async def exceed_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2048")
    exporter = StuckExporter()
    running = trace_many(2048 * 2 + 100, exporter)
    assert len(running._processor._batch_processor._queue) <= 2048
    exporter.go_on.set()
    await running.close()


@walk("The last spans, when the router ends", f"{tracing.FLUSH_S:g} s")
async def exceed_the_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.01)
    exporter = StuckExporter()
    await trace_many(1, exporter).close()
    assert not exporter.go_on.is_set()
    exporter.go_on.set()


@walk("Decisions that are kept", f"{DEFAULTS.kept_decisions}")
async def exceed_the_decisions(_: pytest.MonkeyPatch) -> None:
    kept = DecisionLog(100)
    decision = make_decision(make_pod("p"), make_pod("d", Role.DECODE))
    for name in name_many(250):
        kept.note(make_record(request_id=name, decision=decision))
    assert len(kept._entries) == 100
    assert kept.find("name-149") is None
    assert kept.find("name-150") is not None


@walk("Pages of the HTTP port at once", f"{http_port._PAGES_AT_ONCE}")
async def exceed_the_pages(_: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def show_late(request: web.Request) -> web.Response:
        if request.path != "/healthz":
            await go_on.wait()
        return web.Response()

    async with serving(show_late) as port, aiohttp.ClientSession() as session:
        url = f"http://{port.address}"

        async def get(path: str = "/page") -> int:
            async with session.get(url + path) as response:
                return response.status

        waiting = [asyncio.create_task(get()) for _ in range(http_port._PAGES_AT_ONCE)]
        await wait_until(lambda: port.pages == http_port._PAGES_AT_ONCE)
        assert await get() == 503
        assert await get("/healthz") == 200
        go_on.set()
        assert await asyncio.gather(*waiting) == [200] * http_port._PAGES_AT_ONCE
        assert port.pages == 0


@walk("What is known of a pod", "while it is known")
async def exceed_the_pods(_: pytest.MonkeyPatch) -> None:
    knowledge = create_knowledge(Settings(eject_after=1), Sharing(), RouterGroup())
    ledger, failures = knowledge.state.ledger, knowledge.state.failures
    prefixes, samples = knowledge.prefixes, knowledge.samples
    for uid in name_many(100):
        with ledger.start(Leg.PREFILL, uid, 10) as scope:
            scope.complete(10)
        prefixes.add([1], uid)
        failures.note_failure(uid, Leg.PREFILL, "connect", 0.0)
        failures.note_success("other", Leg.DECODE, 0.0)
        samples.put(uid, EngineSample(0.0))
        knowledge.forget(uid)
    assert not ledger.snapshot()
    assert not ledger.rates.speeds.factors
    assert not ledger._paces
    assert not prefixes._bits
    assert not failures._records
    assert not samples


@walk("Series of metrics of a model that has gone", f"{model_series._KEPT_S:g} s")
async def exceed_the_series(_: pytest.MonkeyPatch) -> None:
    now = 0.0
    cache, pod = PodCache(), make_pod("p", model="stays")
    telemetry = RequestTelemetry(cache, Ledger())
    telemetry.metrics._registry._clock = lambda: now
    cache.replace([pod, make_pod("d", Role.DECODE, model="stays")])
    for model in ("stays", *name_many(50)):
        count_everything(telemetry, model, pod)
    telemetry.flush()
    assert telemetry.metrics.render().count(b'"name-49"') > 20
    now += model_series._KEPT_S
    page = telemetry.metrics.render()
    assert b"name-" not in page
    assert page.count(b'"stays"') > 20
    assert list(telemetry.metrics._registry._seen) == ["stays"]


def count_everything(telemetry: RequestTelemetry, model: str, pod: Pod) -> None:
    """Let there be a series of each metric for a model."""
    attempt = make_attempt(pod, status=None, failure=FailureKind.CONNECT)
    record = make_record(
        model=model,
        outcome=Outcome.OK,
        status=200,
        strategy="pd",
        handoff="null-params",
        decision=make_decision(pod, make_pod("d", Role.DECODE)),
        attempts=[attempt],
    )
    telemetry.request_started(record)
    telemetry.request_routed(record)
    telemetry.leg_attempted(record, attempt)
    request = RoutedRequest("r", model, "", True, True, True, None)
    flags = ("no_healthy_upstream",)
    report = AnswerReport(request, "", 200, Usage(5, 0, 5), 0.1, 0.1, flags=flags, misrouted=True)
    telemetry.answer_reported(report, None)
    telemetry.request_finished(record)
