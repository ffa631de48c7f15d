"""Blocks that nobody will fetch: who is asked to have them freed, over real sockets."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from factories import make_answers, make_kv_params, make_pod
from loopback import Server, hang, listen
from waiting import LONGER_S, wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.client import ClientLimits
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import Leg
from pdrouter.load.failures import FailureMemory
from pdrouter.serving.engine_client import EngineClient
from pdrouter.serving.release import HeldHandle, ReleaseOutcome, ReleaseRules, Releases
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

MODEL = "simulated-model"
LIMITS = ClientLimits(connect_s=LONGER_S, response_s=LONGER_S, answer_bytes=64 * 1024)
CLIENTS_HEADERS = {"authorization": "Bearer k", "x-extra": "1", "cookie": "c"}
KEPT_S = 600.0
NOBODY = "127.0.0.9:1"


class Outcomes:
    """Remembers what came of releases."""

    def __init__(self) -> None:
        self.ended: list[ReleaseOutcome] = []

    def release_ended(self, outcome: ReleaseOutcome) -> None:
        self.ended.append(outcome)


def make_engine_pod(address: str, role: Role, **more: Any) -> Pod:
    host, port = address.rsplit(":", 1)
    return make_pod(uid=address, ip=host, port=int(port), model=MODEL, role=role, **more)


class Bench:
    """Releases, and what they need."""

    def __init__(self, client: EngineClient, holder: str, decode: Sequence[str]) -> None:
        self.holder = make_engine_pod(holder, Role.PREFILL)
        self.decode = [make_engine_pod(address, Role.DECODE) for address in decode]
        self.cache = PodCache()
        self.cache.replace([self.holder, *self.decode])
        self.failures = FailureMemory()
        self.outcomes = Outcomes()
        self.client = client
        self.releases = self.create()

    def create(self, timeout_s: float = LONGER_S, *, enabled: bool = True) -> Releases:
        return Releases(
            self.client,
            self.cache,
            self.failures,
            Splits(),
            observer=self.outcomes,
            rules=ReleaseRules(enabled, timeout_s, ("authorization", "x-extra")),
        )

    def hold(self, answer: bytes = b"", *, by: Releases | None = None) -> HeldHandle:
        body = answer or json.dumps({"kv_transfer_params": make_kv_params()}).encode()
        (given,) = make_answers(body, self.holder)
        last = self.decode[0] if self.decode else make_pod(uid="gone")
        held = (by or self.releases).hold(given, last, MODEL, CLIENTS_HEADERS)
        assert held is not None
        return held

    async def settle(self, *expected: ReleaseOutcome) -> None:
        await wait_until(lambda: len(self.outcomes.ended) >= len(expected))
        assert self.outcomes.ended == list(expected)
        await wait_until(lambda: self.releases.outstanding == 0)


@asynccontextmanager
async def bench(holder: str, *decode: str) -> AsyncIterator[Bench]:
    async with EngineClient(LIMITS) as client:
        running = Bench(client, holder, decode)
        async with running.releases:
            yield running


@asynccontextmanager
async def pair(*faults: Fault, **settings: Any) -> AsyncIterator[tuple[Bench, Any, Any, bytes]]:
    """A prefill engine that has answered, and a decode engine that has not got its handle."""
    async with (
        SimulatedEngine(
            EngineConfig(role="prefill", host="127.0.0.2", kv_lease_s=KEPT_S, **settings)
        ) as p,
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3", **settings), *faults) as d,
        bench(p.address, d.address) as running,
    ):
        yield running, p, d, await prefill(p)


async def prefill(engine: SimulatedEngine) -> bytes:
    """Return the answer to a prefill leg."""
    empty = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    body = {
        "model": MODEL,
        "prompt": "a prompt that is a little longer than one block of sixteen tokens " * 2,
        "max_tokens": 1,
        "stream": False,
        "kv_transfer_params": {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "transfer_id": "x",
            **empty,
        },
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{engine.address}/v1/completions", json=body) as response,
    ):
        assert response.status == 200
        return await response.read()


def count_violations(*engines: SimulatedEngine) -> float:
    names = ("contract_violations", "prompt_mismatches", "unexpected_role")
    return sum(engine.count(f"simulation:{name}_total") for engine in engines for name in names)


# --- Engines ---


async def test_blocks_that_nobody_fetches_are_freed_long_before_their_lease_ends() -> None:
    async with pair() as (running, p, d, answer):
        assert p.count("simulation:kv_handles_outstanding") == 1
        running.hold(answer).release()
        await running.settle(ReleaseOutcome.ASKED)
        assert p.count("simulation:kv_handles_outstanding") == 0
        assert p.count("simulation:kv_releases_total") == 1
        assert d.count("vllm:prompt_tokens_total") == d.count("vllm:generation_tokens_total") == 0
        assert count_violations(p, d) == 0
        (request,) = d.requests
        assert (request.status, request.outcome) == (404, "answered")


async def test_a_release_has_the_clients_key_and_an_id_of_its_own() -> None:
    async with pair() as (running, _, d, answer):
        running.hold(answer).release()
        await running.settle(ReleaseOutcome.ASKED)
        headers = d.requests[0].headers
        assert headers["authorization"] == "Bearer k"
        assert headers["x-extra"] == "1"
        assert headers["x-request-id"] == "id-1-release"
        assert headers["content-type"] == "application/json"
        assert "cookie" not in headers
        # Rare as it is, a connection that was kept would be closed when it is wanted again.
        assert headers["connection"] == "close"


async def test_a_handle_is_released_once_whoever_gives_it_up_and_how_often() -> None:
    async with pair() as (running, p, d, answer):
        held = running.hold(answer)
        held.release()
        held.release()
        await running.settle(ReleaseOutcome.ASKED)
        assert count_violations(p, d) == 0


async def test_blocks_that_would_be_written_are_freed_likewise() -> None:
    async with pair(kv_connector="nixl-push") as (running, p, d, answer):
        assert p.count("simulation:kv_handles_outstanding") == 1
        running.hold(answer).release()
        await running.settle(ReleaseOutcome.ASKED)
        assert p.count("simulation:kv_handles_outstanding") == 0
        assert count_violations(p, d) == 0


async def test_engines_that_do_not_know_how_keep_the_blocks_until_the_lease_ends() -> None:
    async with pair(release="old") as (running, p, d, answer):
        running.hold(answer).release()
        await running.settle(ReleaseOutcome.UNSUPPORTED)
        assert p.count("simulation:kv_handles_outstanding") == 1
        assert not d.requests


async def test_the_older_neuron_wire_has_no_way() -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        legacy = make_engine_pod("127.0.0.2:1", Role.PREFILL, kv_connector="neuron-legacy")
        (answer,) = make_answers(b'{"id": "x"}', legacy)
        held = running.releases.hold(answer, running.decode[0], MODEL, {})
        assert held is not None
        held.release()
        await running.settle(ReleaseOutcome.UNSUPPORTED)


# --- Which pod is asked ---


async def test_the_pod_that_could_not_be_connected_is_not_asked() -> None:
    async with (
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3")) as other,
        bench("127.0.0.2:1", NOBODY, other.address) as running,
    ):
        running.hold().release(unreachable=True)
        await running.settle(ReleaseOutcome.ASKED)
        assert len(other.requests) == 1


async def test_without_another_pod_there_is_nobody_to_ask() -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        running.hold().release(unreachable=True)
        await running.settle(ReleaseOutcome.NO_POD)


async def test_if_a_pod_refuses_the_connection_another_is_asked() -> None:
    async with (
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3")) as other,
        bench("127.0.0.2:1", NOBODY, other.address) as running,
    ):
        running.hold().release()
        await running.settle(ReleaseOutcome.ASKED)


async def test_pods_that_are_left_out_are_asked_last() -> None:
    async with (
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3")) as first,
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.4")) as other,
        bench("127.0.0.2:1", first.address, other.address) as running,
    ):
        for _ in range(9):
            running.failures.note_failure(
                first.address, Leg.DECODE, "connect", running.failures.clock()
            )
        assert running.failures.is_left_out(first.address)
        running.hold().release()
        await running.settle(ReleaseOutcome.ASKED)
        assert (len(first.requests), len(other.requests)) == (0, 1)


@pytest.mark.parametrize("gone", ["holder", "decode", "model"])
async def test_nobody_is_asked_about_blocks_that_went_with_their_pod(gone: str) -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        held = running.hold()
        pods = {"holder": running.decode, "decode": [running.holder], "model": []}[gone]
        running.cache.replace(pods)
        held.release()
        await running.settle(ReleaseOutcome.NO_POD)


async def test_pods_of_other_rolesets_are_not_asked() -> None:
    async with bench("127.0.0.2:1") as running:
        other = make_engine_pod(NOBODY, Role.DECODE, roleset="other")
        running.cache.replace([running.holder, other])
        running.hold().release()
        await running.settle(ReleaseOutcome.NO_POD)


async def test_pods_of_another_revision_are_not_asked() -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        held = running.hold()
        (other,) = running.decode
        running.cache.replace([running.holder.take_for("1"), other.take_for("2")])
        held.release()
        await running.settle(ReleaseOutcome.NO_POD)


async def test_a_revision_that_is_known_only_now_counts() -> None:
    async with (
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3")) as engine,
        bench("127.0.0.2:1", engine.address) as running,
    ):
        held = running.hold()
        (decode,) = running.decode
        running.cache.replace([running.holder.take_for("1"), decode.take_for("1")])
        held.release()
        await running.settle(ReleaseOutcome.ASKED)


# --- Bounds ---


@pytest.mark.parametrize("status", [401, 422, 500, 503])
async def test_an_engine_that_answers_otherwise_is_not_asked_again(status: int) -> None:
    async with pair(Fault(status=status)) as (running, p, d, answer):
        running.hold(answer).release()
        await running.settle(ReleaseOutcome.UNEXPECTED)
        assert len(d.requests) == 1
        assert p.count("simulation:kv_handles_outstanding") == 1


async def test_an_engine_that_computes_instead_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def compute(server: Server, reader: StreamReader, writer: StreamWriter) -> None:
        await server.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with listen(compute) as server, bench("127.0.0.2:1", server.address) as running:
        running.hold().release()
        await running.settle(ReleaseOutcome.UNEXPECTED)
    assert "set PDROUTER_RELEASE=off" in caplog.text


async def test_a_request_that_may_have_been_heard_is_not_said_again() -> None:
    async with (
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3"), Fault(drop=True)) as first,
        SimulatedEngine(EngineConfig(role="decode", host="127.0.0.4")) as other,
        bench("127.0.0.2:1", first.address, other.address) as running,
    ):
        running.hold().release()
        await running.settle(ReleaseOutcome.FAILED)
        assert (len(first.requests), len(other.requests)) == (1, 0)


async def test_a_release_ends_at_its_deadline() -> None:
    async with listen(hang) as server, bench("127.0.0.2:1", server.address) as running:
        running.hold(by=running.create(timeout_s=0.02)).release()
        await running.settle(ReleaseOutcome.FAILED)
        await wait_until(server.closed.is_set)


async def test_those_that_wait_for_their_turn_end_at_their_deadlines_too() -> None:
    async with listen(hang) as server, bench("127.0.0.2:1", server.address) as running:
        short = running.create(timeout_s=0.05)
        for _ in range(40):
            running.hold(by=short).release()
        await running.settle(*[ReleaseOutcome.FAILED] * 40)
        assert server.connections <= 40


async def test_more_than_can_wait_are_left_to_the_lease() -> None:
    async with listen(hang) as server, bench("127.0.0.2:1", server.address) as running:
        short = running.create(timeout_s=0.05)
        for _ in range(300):
            running.hold(by=short).release()
        assert short.outstanding == 256
        assert running.outcomes.ended == [ReleaseOutcome.DROPPED] * 44
        await wait_until(lambda: short.outstanding == 0)


async def test_a_few_are_under_way_at_once() -> None:
    gate = asyncio.Event()

    async def refuse(server: Server, reader: StreamReader, writer: StreamWriter) -> None:
        await server.read(reader)
        await gate.wait()
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}")

    async with listen(refuse) as server, bench("127.0.0.2:1", server.address) as running:
        for _ in range(30):
            running.hold().release()
        await wait_until(lambda: len(server.requests) == 8)
        for _ in range(10):
            await asyncio.sleep(0)
        assert server.connections == 8
        gate.set()
        await running.settle(*[ReleaseOutcome.ASKED] * 30)


async def test_of_a_large_answer_the_handle_is_kept() -> None:
    async with pair() as (running, p, d, answer):
        large = answer.removesuffix(b"}") + b',"prompt_logprobs":[' + b"0," * 10**6 + b"0]}"
        held = running.hold(large)
        assert held.answer.body == b""
        assert held.written is not None
        assert len(held.written.body) < len(answer)
        held.release()
        await running.settle(ReleaseOutcome.ASKED)
        assert p.count("simulation:kv_handles_outstanding") == 0
        assert count_violations(p, d) == 0


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(None, id="no handle"),
        pytest.param(make_kv_params(remote_block_ids=[list(range(200_000))]), id="too large"),
    ],
)
async def test_of_a_large_answer_nothing_else_is_kept(params: Any) -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        body = json.dumps({"kv_transfer_params": params, "more": "x" * 20_000}).encode()
        (answer,) = make_answers(body, running.holder)
        assert running.releases.hold(answer, running.decode[0], MODEL, {}) is None


async def test_nothing_is_held_where_it_is_switched_off() -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        (answer,) = make_answers(b"{}", running.holder)
        off = running.create(enabled=False)
        assert off.hold(answer, running.decode[0], MODEL, {}) is None


# --- The end of the router ---


async def test_at_the_end_what_is_under_way_is_carried_out() -> None:
    async with pair(Fault(slow_s=0.05)) as (running, p, _, answer):
        async with running.releases:
            running.hold(answer).release()
        assert running.outcomes.ended == [ReleaseOutcome.ASKED]
        assert p.count("simulation:kv_handles_outstanding") == 0


async def test_at_the_end_what_takes_too_long_is_given_up() -> None:
    async with listen(hang) as server, bench("127.0.0.2:1", server.address) as running:
        # Its deadline is the bound of the end, too.
        late = running.create(timeout_s=0.05)
        async with late:
            for _ in range(20):
                running.hold(by=late).release()
        assert late.outstanding == 0
        assert len(running.outcomes.ended) == 20
        assert set(running.outcomes.ended) <= {ReleaseOutcome.FAILED, ReleaseOutcome.DROPPED}


async def test_after_the_end_nothing_is_begun() -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:
        async with running.releases:
            pass
        running.hold().release()
        assert running.outcomes.ended == [ReleaseOutcome.DROPPED]
        assert running.releases.outstanding == 0


async def test_what_goes_wrong_inside_is_counted_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench("127.0.0.2:1", NOBODY) as running:

        async def break_down(*_: object) -> EngineAnswer:
            raise RuntimeError("a bug")

        monkeypatch.setattr(EngineClient, "post", break_down)
        running.hold().release()
        await running.settle(ReleaseOutcome.FAILED)
    assert "a release has failed" in caplog.text
