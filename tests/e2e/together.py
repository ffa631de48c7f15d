"""Faults of either leg where both run at once, on any wire: what clients get, what is left."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import httpx
import msgspec
from expectations import engines_of, eventually
from failures import CHAT, expect_ended, failing, try_first

from pdrouter.tools.local_stack import LocalStack
from pdrouter.tools.simulation.faults import Fault

AT_ONCE = 8
"""Requests that a busy machine serves together within the deadlines of these tests."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a client sees of a request.

    Attributes:
        status: HTTP status.
        code: `error.code` of a JSON error of the router's, else empty.
        cut: whether the answer broke off.
        headers: headers of the answer.
        body: what came of it.
    """

    status: int
    code: str
    cut: bool
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """A fault of the engines of one leg, and what a client sees.

    Attributes:
        leg: whose engines.
        name: what they do.
        fault: the same for an engine.
        plain: the status, and the router's code where it is the router's, of what is not streamed.
        streamed: the same of a stream; None where it is cut after its head, or ends as what is
            not streamed if the client has seen nothing.
        hangs: whether nothing ends it but the router's deadline or the client.
    """

    leg: Literal["prefill", "decode"]
    name: str
    fault: Fault
    plain: tuple[int, str]
    streamed: tuple[int, str] | None
    hangs: bool = False

    def __str__(self) -> str:
        return f"{self.leg}-{self.name}"


def _case(
    leg: Literal["prefill", "decode"],
    name: str,
    plain: tuple[int, str],
    *,
    streamed: tuple[int, str] | Literal["same"] | None = "same",
    hangs: bool = False,
    **fault: Any,
) -> Case:
    return Case(leg, name, Fault(**fault), plain, plain if streamed == "same" else streamed, hangs)


FAULTS = (
    _case("prefill", "400", (400, ""), status=400),
    _case("prefill", "429", (429, ""), status=429),
    _case("prefill", "500", (503, "prefill_failed"), status=500),
    _case("prefill", "503", (503, "prefill_failed"), status=503, retry_after="7"),
    _case("prefill", "hangs-up", (503, "prefill_failed"), drop=True),
    _case("prefill", "late-400", (400, ""), status=400, slow_s=0.3),
    _case("prefill", "late-500", (503, "prefill_failed"), status=500, slow_s=0.3),
    _case("prefill", "late", (200, ""), slow_s=0.3),
    _case("prefill", "hangs", (503, "prefill_failed"), hangs=True, hang=True),
    _case(
        "prefill",
        "hangs-after-head",
        (200, ""),
        streamed=None,
        hangs=True,
        hang_after_head=True,
    ),
    _case("prefill", "drops-in-the-middle", (200, ""), streamed=None, drop_after_tokens=0),
    _case("prefill", "drops-at-the-end", (200, ""), drop_after_tokens=1),
    _case("decode", "400", (400, ""), status=400),
    _case("decode", "429", (429, ""), status=429),
    _case("decode", "500", (500, ""), status=500),
    _case("decode", "503", (503, ""), status=503),
    _case("decode", "late-500", (500, ""), status=500, slow_s=0.3),
    _case("decode", "late", (200, ""), slow_s=0.3),
    _case("decode", "hangs-up", (503, "upstream_unavailable"), drop=True),
    _case("decode", "drops-in-the-middle", (200, ""), streamed=None, drop_after_tokens=2),
    _case("decode", "hangs", (503, "prefill_failed"), hangs=True, hang=True),
    _case("decode", "hangs-after-head", (200, ""), streamed=None, hangs=True, hang_after_head=True),
)
"""Each fault on each leg. Plain answers have no head of their own: what comes after it is whole."""


async def post(client: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> Ending:
    """Send a request and read its answer as far as it goes."""
    received = bytearray()
    cut = False
    async with client.stream("POST", path, json=body) as response:
        try:
            async for piece in response.aiter_raw():
                received += piece
        except httpx.RemoteProtocolError:
            cut = True
    code = ""
    if response.status_code >= 400 and response.headers["content-type"] == "application/json":
        error = httpx.Response(200, content=bytes(received)).json().get("error") or {}
        code = str(error.get("code") or "")
    return Ending(response.status_code, code, cut, response.headers, bytes(received))


async def post_many(client: httpx.AsyncClient, bodies: Iterable[dict[str, Any]]) -> list[Ending]:
    """Send requests, some at a time, and read their answers as far as they go."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(body: dict[str, Any]) -> Ending:
        async with gate:
            return await post(client, body)

    return await asyncio.gather(*map(send, bodies))


async def expect_both_ended(stack: LocalStack) -> None:
    """Wait until no engine works on a request, or waits for another engine."""

    async def check() -> None:
        busy = {
            engine.address: [each.outcome for each in engine.requests if each.outcome == "running"]
            for engine in engines_of(stack)
        }
        assert not any(busy.values()), busy
        assert not sum(engine.count("simulation:rooms_open") for engine in engines_of(stack))

    await eventually(check)


async def suffer(
    stack: LocalStack, client: httpx.AsyncClient, case: Case, body: dict[str, Any]
) -> None:
    """Send a request while engines show a fault: it ends as documented, and nothing is left.

    The engines wait for each other for as long as ever: what ends them is the router.
    """
    with failing(getattr(stack, case.leg), case.fault):
        ending = await asyncio.wait_for(post(client, body), 25)
        await expect_both_ended(stack)
    await expect_ended(stack)
    expected = case.streamed if body.get("stream") else case.plain
    if expected is None:
        if not ending.cut:
            # The other leg had not begun its answer, or its head was still held back.
            clean = [(503, "prefill_failed"), (502, "gateway_error")]
            assert (ending.status, ending.code) in clean[: 2 if case.leg == "decode" else 1]
            return
        assert ending.status == 200
        assert not ending.body.endswith(b"data: [DONE]\n\n")
        return
    assert not ending.cut
    assert (ending.status, ending.code) == expected, ending.body
    if ending.code == "prefill_failed":
        assert int(ending.headers["retry-after"]) == int(case.fault.retry_after or 1)


async def suffer_many(
    stack: LocalStack, client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], random: Random
) -> None:
    """Send many requests while engines show one fault after another: nothing is left."""
    faults = [case.fault for case in FAULTS if not case.hangs]
    for engine in engines_of(stack):
        chosen = (random.choice(faults) for _ in range(15))
        engine.faults.set(*(msgspec.structs.replace(fault, times=1) for fault in chosen))
    endings = await post_many(client, bodies)
    for engine in engines_of(stack):
        engine.faults.clear()
    # 504 where the machine is slower than a leg's deadline.
    assert {ending.status for ending in endings} <= {200, 400, 429, 500, 502, 503, 504}
    assert sum(ending.status == 200 and not ending.cut for ending in endings) >= len(bodies) / 2
    await expect_both_ended(stack)


async def leave(
    stack: LocalStack, client: httpx.AsyncClient, leg: str, body: dict[str, Any]
) -> None:
    """Leave while the engines of a leg hang: all ends."""
    slow = getattr(stack, leg)
    with failing(slow, Fault(hang=True)):
        asked = [asyncio.create_task(client.post(CHAT, json=body))]

        async def check() -> None:
            running = any(each.outcome == "running" for e in slow for each in e.requests)
            if asked[-1].done():
                # Its deadline was over before anybody looked.
                asked.append(asyncio.create_task(client.post(CHAT, json=body)))
            assert running

        await eventually(check)
        asked[-1].cancel()
        await asyncio.wait(asked)
        await expect_both_ended(stack)
        await expect_ended(stack)


async def try_another_context(
    stack: LocalStack, client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    """Let the first context engine (TensorRT-LLM) refuse connections: another one serves."""
    gone, other = stack.prefill
    await gone.stop()
    try:
        with try_first(stack, gone, other):
            response = await client.post(CHAT, json=body)
    finally:
        await gone.start()
    assert response.status_code == 200, response.text
    request_id = response.headers["x-request-id"]
    context, generation = (
        json.loads(request.body)["disaggregated_params"]
        for engine in (other, *stack.decode)
        for request in engine.requests
        # With another number, unless the engine was only asked who it is.
        if request.headers.get("x-request-id", "").startswith(request_id)
    )
    assert generation["ctx_info_endpoint"] == other.address
    assert generation["ctx_request_id"] == context["disagg_request_id"]
