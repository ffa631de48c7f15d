"""Chats with media, which pods of their own encode: three legs through the real Envoy."""

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from random import Random
from typing import Any

import httpx
import msgspec
import pytest
from expectations import (
    DECODE,
    PREFILL,
    UNTIL_SETTLED_S,
    Sent,
    chat,
    connect,
    end_leases,
    engines_of,
    eventually,
    expect_error,
    expect_settled,
    find_sent,
    read_metrics,
    run_checked_stack,
)
from failures import CHAT, expect_ended, failing, try_first
from together import Ending, expect_both_ended, post, post_many

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENCODE = tuple(
    EngineConfig(
        role="encode", host=host, kv_lease_s=UNTIL_SETTLED_S, side_channel_host="localhost"
    )
    for host in ("127.0.0.5", "127.0.0.6")
)
TAKES: dict[str, Any] = {"ec_connector": True, "mm_embeds": True}
ENVIRONMENT = {
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": "2",
    # Pods that are made to fail here must be there for the next test.
    "PDROUTER_EJECT_AFTER": "0",
}
TEXT = {"type": "text", "text": "What is this? " * 20}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
SONG = {"type": "audio_url", "audio_url": {"url": "https://media.example/song.ogg"}}
FILM = {"type": "video_url", "video_url": {"url": "https://media.example/film.mp4"}}


def make_options(connector: KvConnector = "nixl", **changes: Any) -> StackOptions:
    return StackOptions(
        **{
            "encode": ENCODE,
            "prefill": [
                replace(config, kv_connector=connector, kv_lease_s=UNTIL_SETTLED_S, **TAKES)
                for config in PREFILL
            ],
            "decode": [
                replace(config, kv_connector=connector, mm_embeds=True) for config in DECODE
            ],
            "environment": {"AIBRIX_KV_CONNECTOR_TYPE": connector, **ENVIRONMENT},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return make_options()


def picture(content: object) -> dict[str, Any]:
    url = f"data:image/png;base64,{b64encode(str(content).encode()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(*parts: dict[str, Any], **members: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": [*parts, TEXT]}], **members)


def list_encoded(stack: LocalStack, request_id: str) -> list[Sent]:
    """Return what encode engines received for a request."""
    return [
        Sent(engine, request)
        for engine in stack.encode
        for request in engine.requests
        if request.headers["x-request-id"].startswith(f"{request_id}:")
    ]


def read_parts(sent: Sent) -> list[Any]:
    parts: list[Any] = json.loads(sent.request.body)["messages"][0]["content"]
    return parts


def expect_three_legs(
    stack: LocalStack, response: httpx.Response, *parts: dict[str, Any]
) -> tuple[list[Sent], Sent, Sent]:
    """Check that a chat with these media had three legs; return what the engines got."""
    assert response.status_code == 200, response.text
    assert response.headers["x-pd-decision"] == "disaggregated"
    encoded = list_encoded(stack, response.headers["x-request-id"])
    sent = [json.dumps({**part, "uuid": ""}) for each in encoded for part in read_parts(each)]
    unique = {json.dumps({**part, "uuid": ""}) for part in parts}
    names = [part["uuid"] for each in encoded for part in read_parts(each)]
    assert len(names) == len(set(names)) == len(unique)
    assert {json.dumps({**json.loads(text), "uuid": ""}) for text in sent} == unique
    prefill, decode = find_sent(stack, response)
    for leg in (prefill, decode):
        *media, text = read_parts(leg)
        assert text == TEXT
        kinds = [next(name for name in part if name.endswith("_embeds")) for part in media]
        assert [part["type"] for part in media] == kinds
        assert {part["uuid"] for part in media} == set(names)
    handles = json.loads(prefill.request.body)["ec_transfer_params"]
    assert handles.keys() == set(names)
    assert b"ec_transfer_params" not in decode.request.body
    return encoded, prefill, decode


async def expect_no_encodings(stack: LocalStack) -> None:
    """Wait until encode engines hold nothing that somebody could fetch."""
    await expect_ended(stack)

    async def check() -> None:
        end_leases(stack.encode)
        assert not sum(each.count("simulation:encodings_outstanding") for each in stack.encode)

    await eventually(check)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "parts",
    [
        [picture(1)],
        [picture(1), picture(2), picture(3)],
        [picture(1), picture(2), picture(1)],
        [SOUND, SONG, FILM],
        [{"type": "image_url", "image_url": {"url": "https://media.example/1.png"}}],
        [picture("x" * 1_000_000)],
    ],
    ids=["one", "several", "twice", "other-kinds", "url", "large"],
)
async def test_media_are_encoded_prefilled_and_decoded(
    stack: LocalStack, client: httpx.AsyncClient, parts: list[dict[str, Any]], *, stream: bool
) -> None:
    response = await client.post(CHAT, json=ask(*parts, stream=stream, seed=7))
    _, prefill, decode = expect_three_legs(stack, response, *parts)
    if stream:
        assert response.text.endswith("data: [DONE]\n\n")
    fetched = json.loads(prefill.request.body)["ec_transfer_params"].values()
    assert {each["peer_host"] for each in fetched} <= {each.host for each in stack.encode}
    assert json.loads(decode.request.body)["seed"] == 7
    # Each was fetched, once.
    assert not sum(each.count("simulation:encodings_outstanding") for each in stack.encode)


async def test_untouched_members_reach_both_legs_byte_by_byte(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    odd = b'"logit_bias" : {"1": 1.50}, "x" :[1e2,\t"\\u00e4"], "seed": 12345678901234567890'
    body = json.dumps(ask(picture(1))).encode()[:-1] + b", " + odd + b"}"
    response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
    _, prefill, decode = expect_three_legs(stack, response, picture(1))
    for leg in (prefill, decode):
        assert odd in leg.request.body


async def test_a_content_always_goes_to_the_same_pod(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    where: dict[str, SimulatedEngine] = {}
    for number in range(12):
        parts = [picture(number), picture(number + 1)]
        response = await client.post(CHAT, json=ask(*parts))
        for sent in expect_three_legs(stack, response, *parts)[0]:
            (part,) = read_parts(sent)
            assert where.setdefault(part["uuid"], sent.engine) is sent.engine
    assert set(where.values()) == set(stack.encode)


async def test_tools_and_options_of_the_processor(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    options = {"mm_processor_kwargs": {"max_pixels": 4096}}
    body = ask(picture(1), tools=tools, tool_choice="required", **options)
    response = await client.post(CHAT, json=body)
    assert response.status_code == 200
    assert response.headers["x-pd-decision"] == "disaggregated"
    assert response.json()["choices"][0]["message"]["tool_calls"]
    (sent,) = list_encoded(stack, response.headers["x-request-id"])
    assert json.loads(sent.request.body)["mm_processor_kwargs"] == options["mm_processor_kwargs"]


async def test_what_has_no_media_is_as_ever(stack: LocalStack, client: httpx.AsyncClient) -> None:
    before = sum(each.requests is not None and len(list(each.requests)) for each in stack.encode)
    response = await client.post(CHAT, json=chat())
    assert response.headers["x-pd-decision"] == "disaggregated"
    response = await client.post(CHAT, json=ask(picture(1), n=2))
    assert response.headers["x-pd-decision"] == "aggregated;reason=n"
    assert response.status_code == 200
    after = sum(each.requests is not None and len(list(each.requests)) for each in stack.encode)
    assert after == before


async def test_a_client_cannot_give_its_picture_the_name_of_another_s(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    response = await client.post(CHAT, json=ask(picture(1)))
    (encoded,), _, _ = expect_three_legs(stack, response, picture(1))
    stolen = read_parts(encoded)[0]["uuid"]
    mine = {**picture("mine"), "uuid": stolen}
    hidden = {"ec_transfer_params": {stolen: {"peer_host": "10.9.9.9"}}}
    whole = json.dumps(ask(mine, n=2, **hidden, vllm_xargs=hidden))
    for body in (whole, whole.replace('"uuid"', '"\\u0075uid"').replace("ec_", "\\u0065c_")):
        response = await client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 200, response.text
        (sent,) = find_sent(stack, response)
        assert read_parts(sent)[0] == {**mine, "uuid": f"client:{stolen}"}
        assert "ec_transfer_params" not in json.loads(sent.request.body)
        assert json.loads(sent.request.body)["vllm_xargs"] == {}
    assert (await client.post(CHAT, json=ask(mine))).status_code == 200
    await expect_ended(stack)


@pytest.mark.parametrize(
    "fault",
    [Fault(null_params=True), Fault(omit_params=("metadata",))],
    ids=["lost", "no-metadata"],
)
async def test_what_has_no_metadata_stays_for_prefill_to_encode(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault
) -> None:
    with failing(stack.encode, fault):
        response = await client.post(CHAT, json=ask(picture(1), SOUND))
    assert response.status_code == 200, response.text
    assert response.headers["x-pd-decision"] == "disaggregated"
    for leg in find_sent(stack, response):
        media = [{**part, "uuid": None} for part in read_parts(leg)[:-1]]
        assert media == [{**picture(1), "uuid": None}, {**SOUND, "uuid": None}]
    await expect_no_encodings(stack)


ENCODE_FAULTS = {
    "400": (Fault(status=400), 400, None),
    "429": (Fault(status=429), 429, None),
    "500": (Fault(status=500), 502, "encode_failed"),
    "503": (Fault(status=503, retry_after="7"), 503, "encode_unavailable"),
    "cut": (Fault(drop=True), 502, "encode_failed"),
    "late-500": (Fault(status=500, slow_s=0.1), 502, "encode_failed"),
    "hang": (Fault(hang=True), 504, "encode_timeout"),
}


@pytest.mark.parametrize("name", ENCODE_FAULTS)
async def test_what_cannot_be_encoded_ends_the_request_before_prefill(
    stack: LocalStack, client: httpx.AsyncClient, name: str
) -> None:
    fault, status, code = ENCODE_FAULTS[name]
    # A stream has not begun: it ends as what is none.
    stream = name in {"400", "cut"}
    received = [len(list(each.requests)) for each in (*stack.prefill, *stack.decode)]
    with failing(stack.encode, fault):
        response = await client.post(CHAT, json=ask(picture(1), picture(2), stream=stream))
        await expect_both_ended(stack)
    if code is None:
        assert response.status_code == status
        assert "Simulated fault" in response.json()["error"]["message"]
    else:
        expect_error(response, status, code)
    assert [len(list(each.requests)) for each in (*stack.prefill, *stack.decode)] == received
    await expect_ended(stack)


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(drop=True)], ids=["500", "cut"])
async def test_another_pod_encodes_what_one_fails(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault
) -> None:
    response = await client.post(CHAT, json=ask(picture(1)))
    (own,), _, _ = expect_three_legs(stack, response, picture(1))
    with failing([own.engine], fault):
        response = await client.post(CHAT, json=ask(picture(1)))
    assert response.status_code == 200, response.text
    sent = list_encoded(stack, response.headers["x-request-id"])
    ids = [each.request.headers["x-request-id"] for each in sent]
    assert len(set(ids)) == len(ids) > 1
    (done,) = [each.engine for each in sent if each.request.status == 200]
    assert done is not own.engine


async def test_another_pod_encodes_what_one_refuses_to_be_connected_for(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    gone, other = stack.encode
    parts = [picture(number) for number in range(6)]
    await gone.stop()
    try:
        response = await client.post(CHAT, json=ask(*parts))
    finally:
        await gone.start()
    encoded, _, _ = expect_three_legs(stack, response, *parts)
    assert {each.engine for each in encoded} == {other}


async def test_encoding_that_is_late_is_waited_for(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    with failing(stack.encode, Fault(slow_s=0.2)):
        response = await client.post(CHAT, json=ask(picture(1)))
    expect_three_legs(stack, response, picture(1))


@pytest.mark.parametrize(
    ("fault", "again"),
    [(Fault(status=500), True), (Fault(drop=True), True), (None, False)],
    ids=["500", "cut", "refused"],
)
async def test_for_another_prefill_engine_all_is_encoded_again_if_it_may_be_gone(
    stack: LocalStack, client: httpx.AsyncClient, fault: Fault | None, *, again: bool
) -> None:
    first, second = stack.prefill
    body = ask(picture(1), picture(2))
    with try_first(stack, first, second):
        if fault is None:
            await first.stop()
            try:
                response = await client.post(CHAT, json=body)
            finally:
                await first.start()
        else:
            with failing([first], fault):
                response = await client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["x-pd-decision"] == "disaggregated"
    names = Counter(
        part["uuid"]
        for sent in list_encoded(stack, response.headers["x-request-id"])
        for part in read_parts(sent)
    )
    assert set(names.values()) == {2 if again else 1}
    # What a failed engine has not fetched, its lease frees.
    await expect_no_encodings(stack)


BEHIND = {
    "prefill-400": ("prefill", Fault(status=400), 400, ""),
    "prefill-500": ("prefill", Fault(status=500), 502, "prefill_failed"),
    "prefill-503": ("prefill", Fault(status=503), 503, "prefill_unavailable"),
    "prefill-cut": ("prefill", Fault(drop=True), 502, "prefill_failed"),
    "prefill-late": ("prefill", Fault(slow_s=0.2), 200, ""),
    "prefill-hang": ("prefill", Fault(hang=True), 504, "prefill_timeout"),
    "decode-400": ("decode", Fault(status=400), 400, ""),
    "decode-500": ("decode", Fault(status=500), 500, ""),
    "decode-cut": ("decode", Fault(drop=True), 503, "upstream_unavailable"),
    "decode-late": ("decode", Fault(slow_s=0.2), 200, ""),
}


@pytest.mark.parametrize("name", BEHIND)
async def test_faults_behind_the_encode_leg_end_as_they_do_without(
    stack: LocalStack, client: httpx.AsyncClient, name: str
) -> None:
    leg, fault, status, code = BEHIND[name]
    with failing(getattr(stack, leg), fault):
        ending = await asyncio.wait_for(post(client, ask(picture(1), SOUND)), 25)
        await expect_both_ended(stack)
    assert (ending.status, ending.code) == (status, code), ending.body
    await expect_ended(stack)
    await expect_no_encodings(stack)


async def test_a_stream_that_decode_breaks_off_is_cut(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    with failing(stack.decode, Fault(drop_after_tokens=2)):
        ending: Ending = await post(client, ask(picture(1), stream=True, max_tokens=20))
    assert ending.cut
    await expect_ended(stack)


@pytest.mark.parametrize("leg", ["encode", "prefill", "decode"])
async def test_a_client_that_leaves_ends_all(
    stack: LocalStack, client: httpx.AsyncClient, leg: str
) -> None:
    slow = getattr(stack, leg)
    with failing(slow, Fault(hang=True)):
        task = asyncio.create_task(client.post(CHAT, json=ask(*map(picture, range(4)))))

        async def check() -> None:
            assert "running" in [each.outcome for engine in slow for each in engine.requests]

        await eventually(check)
        task.cancel()
        await expect_both_ended(stack)
    await expect_ended(stack)
    await expect_no_encodings(stack)


async def test_many_chats_with_faults_leave_nothing(
    stack: LocalStack, client: httpx.AsyncClient
) -> None:
    random = Random(7)
    faults = [Fault(status=500), Fault(drop=True), Fault(slow_s=0.05), Fault(status=400)]
    for engine in engines_of(stack):
        chosen = (random.choice(faults) for _ in range(6))
        engine.faults.set(*(msgspec.structs.replace(fault, times=1) for fault in chosen))
    bodies = [
        ask(*(picture(random.randrange(30)) for _ in range(3)), stream=random.random() < 0.5)
        for _ in range(40)
    ]
    endings = await post_many(client, bodies)
    for engine in engines_of(stack):
        engine.faults.clear()
    assert {ending.status for ending in endings} <= {200, 400, 500, 502, 503, 504}
    # How many are served depends on the machine: some faults end a request, and so does time.
    assert any(ending.status == 200 and not ending.cut for ending in endings)
    await expect_both_ended(stack)
    await expect_settled(stack)
    assert (await client.post(CHAT, json=ask(picture(1), SOUND))).status_code == 200
    metrics = await read_metrics(stack)
    assert metrics.total("pdrouter_encode_attempts_total", model="demo") > len(bodies)
    assert metrics.total("pdrouter_encode_failures_total", reason="status") > 0


@pytest.mark.parametrize("connector", ["nixl-push", "mooncake"])
async def test_legs_that_run_at_once_get_what_was_encoded_before(connector: KvConnector) -> None:
    options = make_options(connector)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        for number in range(3):
            response = await client.post(CHAT, json=ask(picture(number), SOUND))
            expect_three_legs(stack, response, picture(number), SOUND)
        await expect_no_encodings(stack)


async def run_without_prefill() -> AsyncIterator[tuple[LocalStack, httpx.AsyncClient]]:
    decode = [replace(config, **TAKES) for config in DECODE]
    options = make_options(prefill=[], decode=decode)
    async with run_checked_stack(options) as stack, connect(stack) as client:
        yield stack, client


async def test_pods_that_do_all_but_encode_get_everything() -> None:
    async for stack, client in run_without_prefill():
        for stream in (False, True):
            response = await client.post(CHAT, json=ask(picture(1), SOUND, stream=stream))
            assert response.status_code == 200, response.text
            assert response.headers["x-pd-decision"].startswith("aggregated")
            (whole,) = find_sent(stack, response)
            kinds = [part["type"] for part in read_parts(whole)]
            assert kinds == ["image_embeds", "audio_embeds", "text"]
            assert len(json.loads(whole.request.body)["ec_transfer_params"]) == 2
        with failing(stack.encode, Fault(status=400)):
            response = await client.post(CHAT, json=ask(picture(1)))
        assert response.status_code == 400
        await expect_no_encodings(stack)
