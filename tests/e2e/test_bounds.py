"""What hostile bodies and pods that hang may cost: others are served, and memory has a bound."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from expectations import (
    DECODE,
    PREFILL,
    UNTIL_SETTLED_S,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    read_metrics,
)
from failures import CHAT, failing

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
LIMIT = 16 * MIB
"""Room for the bodies that wait: two of the large ones."""
LARGE = 7 * MIB


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    roomy: dict[str, Any] = {
        "max_model_len": 16 * MIB,
        "block_size": 1_024,
        "prefill_tokens_per_s": 0.0,
        "kv_lease_s": UNTIL_SETTLED_S,
    }
    return StackOptions(
        prefill=[dataclasses.replace(each, **roomy) for each in PREFILL],
        decode=[dataclasses.replace(each, **roomy) for each in DECODE],
        environment={"PDROUTER_MAX_HELD_BYTES": str(LIMIT)},
    )


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(stack, headers={"content-type": "application/json"}) as connected:
        yield connected
    await expect_settled(stack)
    assert (await read_metrics(stack)).total("pdrouter_body_bytes") == 0


def write_large() -> bytes:
    return b'{"model":"demo","messages":[{"role":"user","content":"%s"}],"max_tokens":1}' % (
        b"hello wo" * (LARGE // 8)
    )


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    """Without a length."""
    for start in range(0, len(body), MIB):
        yield body[start : start + MIB]


HOSTILE = {
    "a repeated member": b""
    b'{"model":"demo","messages":[{"role":"user","content":"hi"}],"max_tokens":1,'
    b'"user":[%s],"user":"u"}' % b",".join([b"[]"] * 300_000),
    "many messages": b'{"model":"demo","messages":[%s]}' % b",".join([b"{}"] * 300_000),
    "many parts": b'{"model":"demo","messages":[{"role":"user","content":[%s]}]}'
    % b",".join([b'{"type":"text","text":""}'] * 40_000),
    "many members": b'{"model":"demo","messages":[{}],%s}' % b",".join([b'"a":1'] * 150_000),
    "deep": b'{"model":"demo","messages":%s%s}' % (b"[" * 500_000, b"]" * 500_000),
}


async def test_others_are_served_while_hostile_bodies_come(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    hostile = [asyncio.create_task(client.post(CHAT, content=body)) for body in HOSTILE.values()]
    for _ in range(5):
        expect_disaggregated(stack, await client.post(CHAT, json=chat()))
    statuses = {
        name: (await answer).status_code for name, answer in zip(HOSTILE, hostile, strict=True)
    }
    assert statuses["many members"] == statuses["deep"] == 400
    assert statuses["a repeated member"] == 200
    assert max(statuses.values()) < 500


async def test_more_parts_than_are_searched_go_to_one_pod(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    messages = [{"role": "user", "content": "hi"}] * 2_000
    request = chat() | {"messages": messages}
    expect_disaggregated(stack, await client.post(CHAT, json=request))
    text = 'an "image"'
    request = chat() | {"messages": [*messages, {"role": "user", "content": text}]}
    expect_disaggregated(stack, await client.post(CHAT, json=request))
    # Where there is more than texts, such a word may be an image's, as far as a search can tell.
    parts = [{"type": "refusal", "refusal": text}]
    request = chat() | {"messages": [*messages, {"role": "user", "content": parts}]}
    expect_whole(stack, await client.post(CHAT, json=request), "many-parts")


async def test_bodies_that_wait_have_a_bound(stack: LocalStack, client: httpx.AsyncClient) -> None:
    body = write_large()
    with failing(stack.prefill, Fault(hang=True)):
        waiting = [asyncio.create_task(client.post(CHAT, content=body)) for _ in range(2)]

        async def check() -> None:
            assert (await read_metrics(stack)).total("pdrouter_body_bytes") == 2 * len(body)

        await eventually(check)
        for content in (body, in_pieces(body)):
            refused = await client.post(CHAT, content=content)
            expect_error(refused, 503, "body_memory_exhausted")
            assert refused.headers["retry-after"]
        # Others are served; what they need fits beside.
        assert (await client.get("/v1/models")).status_code == 200
        assert (await read_metrics(stack)).total("pdrouter_bodies_refused_total") == 2
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
    await expect_settled(stack)
    assert (await read_metrics(stack)).total("pdrouter_body_bytes") == 0
    expect_disaggregated(stack, await client.post(CHAT, content=body))


async def test_a_body_that_goes_on_its_way_takes_no_more_room(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    body = write_large()
    waiting: list[asyncio.Task[httpx.Response]] = []

    async def check() -> None:
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_pod_decode_requests") == len(waiting)
        assert metrics.total("pdrouter_pod_prefill_requests") == 0
        assert metrics.total("pdrouter_body_bytes") == 0

    with failing(stack.decode, Fault(hang=True)):
        # More than have room at the same time.
        for _ in range(3):
            waiting.append(asyncio.create_task(client.post(CHAT, content=body)))
            await eventually(check)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
