"""Installations in which something goes wrong in a known way."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Protocol

import httpx
import pytest
import yaml
from expectations import (
    UNTIL_SETTLED_S,
    Metrics,
    connect,
    engines_of,
    eventually,
    run_checked_stack,
)

from pdrouter.engines.split import Leg
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

CHAT = "/v1/chat/completions"

PREFILL = tuple(
    EngineConfig(role="prefill", host=host, kv_lease_s=UNTIL_SETTLED_S)
    for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4")
)
DECODE = EngineConfig(role="decode", itl_ms=1)

FOLLOW_ENDPOINTS = {"PDROUTER_ENDPOINTS_POLL": "0.02"}


class Listening(Protocol):
    """What requests can be sent to: an engine, or what stands where one should."""

    @property
    def address(self) -> str: ...


RoleSets = Mapping[str, tuple[Sequence[Listening], Sequence[Listening]]]
"""Prefill and decode engines by the name of their roleset."""


@asynccontextmanager
async def run_small_stack(
    environment: Mapping[str, str], **options: Any
) -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    """Run two prefill engines and one decode engine, unless the options say otherwise."""
    chosen = {"prefill": PREFILL[:2], "decode": [DECODE], **options}
    async with (
        run_checked_stack(StackOptions(environment=environment, **chosen)) as stack,
        connect(stack) as client,
    ):
        yield stack, client


@contextmanager
def try_first(stack: LocalStack, *engines: SimulatedEngine) -> Iterator[None]:
    """Let prefill engines be tried in this order: the later they come, the busier they look."""
    with ExitStack() as scopes:
        others = [engine for engine in stack.prefill if engine not in engines]
        for place, engine in enumerate((*engines, *others)):
            scopes.enter_context(
                stack.router.ledger.start(Leg.PREFILL, engine.address, place * 1_000_000)
            )
        yield


@contextmanager
def failing(engines: Sequence[SimulatedEngine], fault: Fault) -> Iterator[None]:
    """Let engines show a fault."""
    for engine in engines:
        engine.faults.set(fault)
    try:
        yield
    finally:
        for engine in engines:
            engine.faults.clear()


async def list_pods(stack: LocalStack, rolesets: RoleSets) -> None:
    """Replace the endpoints file, and wait until the router follows it."""
    content = [
        {
            "name": name,
            "prefill": [engine.address for engine in prefill],
            "decode": [engine.address for engine in decode],
        }
        for name, (prefill, decode) in rolesets.items()
    ]
    temporary = stack.endpoints_file.with_suffix(".new")
    temporary.write_text(yaml.safe_dump({"models": [{"name": stack.model, "rolesets": content}]}))
    temporary.replace(stack.endpoints_file)
    wanted = {
        (engine.address, name)
        for name, (prefill, decode) in rolesets.items()
        for engine in (*prefill, *decode)
    }

    async def check() -> None:
        pods = stack.router.cache.view.pods
        assert {(pod.address, pod.roleset) for pod in pods} == wanted

    await eventually(check)


async def read_line(caplog: pytest.LogCaptureFixture, request_id: str) -> dict[str, Any]:
    """Wait for the log line of a request; `caplog` must be at level INFO."""
    found: list[dict[str, Any]] = []

    async def check() -> None:
        lines = [
            line
            for record in caplog.records
            # Another one, `answer`, follows where Envoy tells when the first token came.
            if record.name == "pdrouter.request" and record.getMessage() == "request"
            for line in vars(record)["lines"]
        ]
        found[:] = [line for line in lines if line.get("request_id") == request_id]
        assert len(found) == 1

    await eventually(check)
    return found[0]


async def expect_running(engine: SimulatedEngine, count: int) -> None:
    """Wait until an engine is busy with so many requests."""

    async def check() -> None:
        assert [request.outcome for request in engine.requests].count("running") == count

    await eventually(check)


async def expect_ended(stack: LocalStack) -> None:
    """Wait until the router knows that all requests have ended."""

    async def check() -> None:
        assert not stack.router.telemetry.open

    await eventually(check)


def list_ids(engine: SimulatedEngine, request_id: str) -> list[str]:
    """Return the ids of what an engine received on behalf of a request."""
    ids = [request.headers["x-request-id"] for request in engine.requests]
    return [each for each in ids if each.startswith(request_id)]


def count_since(before: Metrics, after: Metrics, name: str, **labels: str) -> float:
    """Return by how much a counter has grown."""
    return after.total(name, **labels) - before.total(name, **labels)


def expect_no_address(stack: LocalStack, response: httpx.Response) -> None:
    """Check that a response does not tell where pods are."""
    told = f"{response.text} {response.headers.multi_items()}"
    for engine in engines_of(stack):
        assert engine.address not in told
        assert engine.host not in told
