"""What must be true of an installation, whatever was done with it, and how to look at it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pdrouter.tools.local_stack import LocalStack, StackOptions, run_stack
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.received_requests import ReceivedRequest

PATIENCE_S = 60.0
"""Bound of every wait. Nothing takes this long; a slow machine may."""

PREFILL = tuple(
    # Addresses of their own make each prefill engine a node apart from the decode engines.
    EngineConfig(role="prefill", host=host, itl_ms=1)
    for host in ("127.0.0.2", "127.0.0.3")
)
DECODE = (EngineConfig(role="decode", itl_ms=1),) * 2

UNTIL_SETTLED_S = 3_600.0
"""Lease of blocks that a test may leave to themselves: `expect_settled` ends it, and no time does,
which may pass between two legs on a busy machine."""

NEVER = (
    "simulation:contract_violations_total",
    "simulation:prompt_mismatches_total",
    "simulation:unexpected_role_total",
    "simulation:duplicate_request_ids_total",
)
"""What engines count if a router breaks the contract."""

ROUTER_GAUGES = (
    "pdrouter_requests_in_flight",
    "pdrouter_pod_encode_requests",
    "pdrouter_pod_prefill_requests",
    "pdrouter_pod_prefill_tokens",
    "pdrouter_pod_decode_requests",
)
ENGINE_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "simulation:kv_handles_outstanding",
    "simulation:rooms_open",
    "simulation:media_encoding",
)


@asynccontextmanager
async def run_checked_stack(options: StackOptions) -> AsyncIterator[LocalStack]:
    """Run an installation; at the end nothing may be in flight, no contract broken.

    What is sent over two pods stays so, however long it goes on: tests that want the faster way say
    so.
    """
    environment = {"PDROUTER_AGGREGATE": "fallback", **options.environment}
    async with run_stack(replace(options, environment=environment)) as stack:
        yield stack
        await expect_settled(stack)


def connect(stack: LocalStack, **options: Any) -> httpx.AsyncClient:
    """Return a client of an installation's Envoy."""
    return httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE_S, verify=False, **options)


async def eventually(check: Callable[[], Awaitable[None]]) -> None:
    """Repeat a check until it raises no AssertionError any more."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            await check()
        except AssertionError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return


async def expect_settled(stack: LocalStack, *, handles: int = 0) -> None:
    """Wait until every gauge is back at zero, then check that no engine saw a broken contract.

    Args:
        stack: the installation.
        handles: KV handles that were issued, and that nobody will fetch.
    """

    async def check() -> None:
        if not stack.router.telemetry.open:
            end_leases(engines_of(stack))
        metrics = await read_metrics(stack)
        gauges = {name: metrics.total(name) for name in ROUTER_GAUGES}
        for name in ENGINE_GAUGES:
            gauges[name] = sum(engine.count(name) for engine in engines_of(stack))
        gauges["simulation:kv_handles_outstanding"] -= handles
        assert not any(gauges.values()), gauges

    await eventually(check)
    assert not stack.router.ledger.snapshot()
    for engine in engines_of(stack):
        counts = {name: engine.count(name) for name in NEVER}
        assert not any(counts.values()), (engine.config.role, engine.address, counts)


def end_leases(engines: Iterable[SimulatedEngine]) -> None:
    """Give up what nobody will fetch any more."""
    for engine in engines:
        if engine.config.kv_lease_s == UNTIL_SETTLED_S:
            engine.end_leases()


def engines_of(stack: LocalStack) -> tuple[SimulatedEngine, ...]:
    """Return all engines of an installation."""
    return (*stack.prefill, *stack.decode, *stack.encode)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The samples of a metrics page, by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (sample, having), value in self.samples.items()
            if sample == name and wanted <= having
        )


async def read_metrics(stack: LocalStack) -> Metrics:
    """Return what the router's `/metrics` says."""
    return parse_metrics((await read_admin(stack, "/metrics")).text)


def parse_metrics(page: str) -> Metrics:
    """Parse a metrics page; each series may stand there once."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} stands twice on the page"
            samples[key] = sample.value
    return Metrics(samples)


async def read_admin(stack: LocalStack, path: str) -> httpx.Response:
    """Get a page of the router's HTTP port."""
    async with httpx.AsyncClient(
        base_url=stack.admin_url, timeout=PATIENCE_S, verify=False
    ) as client:
        return await client.get(path)


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as an engine received it, with that engine."""

    engine: SimulatedEngine
    request: ReceivedRequest


def find_sent(stack: LocalStack, response: httpx.Response) -> list[Sent]:
    """Return what engines received for a response, in the order prefill, decode."""
    request_id = response.headers["x-request-id"]
    return [
        Sent(engine, request)
        for engine in engines_of(stack)
        for request in engine.requests
        if request.headers.get("x-request-id") == request_id
    ]


def expect_disaggregated(stack: LocalStack, response: httpx.Response) -> tuple[Sent, Sent]:
    """Check that one prefill and one decode engine served a response; return what they got."""
    assert response.status_code == 200, response.text
    assert response.headers["x-pd-decision"] == "disaggregated"
    prefill, decode = find_sent(stack, response)
    assert prefill.engine in stack.prefill
    assert decode.engine in stack.decode
    assert prefill.request.leg == "prefill"
    assert decode.request.leg == "decode"
    return prefill, decode


def expect_whole(
    stack: LocalStack, response: httpx.Response, reason: str, *, status: int = 200
) -> Sent:
    """Check that a decode engine alone served a response; return what it got."""
    assert response.status_code == status, response.text
    assert response.headers["x-pd-decision"] == f"aggregated;reason={reason}"
    (whole,) = find_sent(stack, response)
    assert whole.engine in stack.decode
    assert whole.request.leg == "whole"
    return whole


def expect_error(
    response: httpx.Response, status: int, code: str, param: str | None = None
) -> dict[str, Any]:
    """Check that a response is an error in the envelope of its path; return the error.

    Anthropic's envelope has neither the code nor the parameter.
    """
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        assert body.keys() == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["request_id"] == response.headers["request-id"]
        said: dict[str, Any] = body["error"]
        assert said.keys() == {"type", "message"}
        assert said["message"]
        return said
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["code"], error["param"]) == (code, param)
    return error


def count_received(stack: LocalStack) -> int:
    """Return how many requests the engines have received in all."""
    return sum(request.number for engine in engines_of(stack) for request in engine.requests[-1:])


def chat(model: str = "demo", **members: Any) -> dict[str, Any]:
    """Return a small chat request."""
    messages = [{"role": "user", "content": "Why is the sky blue? " * 8}]
    return {"model": model, "messages": messages, "max_tokens": 4, **members}
