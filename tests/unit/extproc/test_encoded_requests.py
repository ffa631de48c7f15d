"""Requests with media where pods encode for the others: three legs, from the body to the last."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from encode_stage import ENCODERS, HANDLE, Stage, chat, list_handles, picture
from exchanges import (
    DECODE,
    PARAMS,
    PREFILL,
    error_of,
)
from waiting import wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.messages import ImmediateReply
from pdrouter.routing.explanation import describe_in_detail
from pdrouter.routing.router import Router
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import FailurePolicy
from pdrouter.telemetry.descriptions import describe_request

OTHER_PREFILL = replace(PREFILL, uid="p2", name="prefill-1", ip="10.0.0.5", address="10.0.0.5:8000")


async def test_media_are_encoded_before_prefill_and_decode_gets_what_stands_for_them() -> None:
    stage = Stage()
    body = await stage.serve(picture(1), picture(2), {"type": "text", "text": "hi"})
    (prefill,) = stage.prefilled
    assert list_handles(prefill) == {1, 2}
    for members in (prefill, body):
        kinds = [part["type"] for part in members["messages"][0]["content"]]
        assert kinds == ["image_embeds", "image_embeds", "text"]
    assert "ec_transfer_params" not in body
    assert body["kv_transfer_params"] == json.loads(PARAMS)
    ids = {request_id for _, request_id, _ in stage.encoded}
    assert len(ids) == 2
    record = await stage.end()
    assert record.aggregated == ""
    assert record.decision is not None
    assert [choice.leg for choice in record.decision.encode] == [Leg.ENCODE] * 2
    assert record.prefill_pod is PREFILL
    assert (record.encode_attempts, record.prefill_attempts) == (2, 1)
    assert record.steps.seconds.keys() >= {"media", "encode", "prefill"}


async def test_a_content_is_encoded_once_and_always_by_the_same_pod() -> None:
    stage, where = Stage(), set()
    for _ in range(3):
        await stage.serve(picture(7), picture(7))
        await stage.end()
        stage.reopen()
        (found,) = stage.encoded
        where.add(found[0])
        stage.encoded.clear()
    assert len(where) == 1


async def test_each_item_counts_on_its_pod_while_it_is_encoded() -> None:
    stage, gate = Stage(), asyncio.Event()

    async def wait(*_: Any) -> None:
        await gate.wait()

    stage.encode = wait
    task = asyncio.create_task(stage.serve(*map(picture, range(6))))
    await wait_until(lambda: len(stage.encoded) == 6)
    ledger = stage.bench.ledger
    counted = {pod.address: ledger.load(Leg.ENCODE, pod.uid).requests for pod in ENCODERS}
    sent = [address for address, _, _ in stage.encoded]
    assert counted == {pod.address: sent.count(pod.address) for pod in ENCODERS}
    gate.set()
    await task
    await stage.end()


async def test_no_more_are_encoded_at_once_than_is_set_and_no_request_may_have_too_many() -> None:
    stage = Stage(encode_concurrency=2, encode_items=5)

    async def wait(*_: Any) -> None:
        await asyncio.sleep(0)

    stage.encode = wait
    await stage.serve(*map(picture, range(5)))
    assert stage.most == 2
    await stage.end()
    stage.reopen()
    reply = await stage.ask(*map(picture, range(6)))
    assert error_of(reply) == (400, "too_many_media")
    assert len(stage.encoded) == 5
    stage.bench.close()


async def test_a_pod_without_partners_gets_everything() -> None:
    whole = replace(DECODE, role=Role.BOTH)
    stage = Stage(*ENCODERS, whole)
    body = await stage.serve(picture(1))
    assert body["messages"][0]["content"][0]["type"] == "image_embeds"
    assert list_handles(body) == {1}
    assert "kv_transfer_params" not in body
    assert not stage.prefilled
    record = await stage.end()
    assert record.aggregated == "multimodal"


async def test_without_encode_pods_and_without_media_all_is_as_ever() -> None:
    for pods in ((PREFILL, DECODE), (replace(ENCODERS[0], ready=False), PREFILL, DECODE)):
        stage = Stage(*pods)
        assert await stage.serve(picture(1)) == chat(picture(1))
        assert (await stage.end()).aggregated == "multimodal"
    stage = Stage()
    body = await stage.serve({"type": "text", "text": "hi"})
    assert "kv_transfer_params" in body
    assert not stage.encoded
    record = await stage.end()
    assert "encode" not in record.steps.seconds
    assert record.decision is not None
    assert not record.decision.encode


async def test_what_is_whole_for_other_reasons_is_not_encoded() -> None:
    stage = Stage()
    assert (await stage.serve(picture(1), n=2))["messages"] == chat(picture(1))["messages"]
    assert not stage.encoded
    assert (await stage.end()).aggregated == "n"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_an_engine_s_refusal_reaches_the_client_as_it_is(status: int) -> None:
    stage = Stage()
    said = EngineAnswer(status, {"content-type": "application/json"}, b'{"error": "bad image"}')
    stage.encode = lambda *_: said
    reply = await stage.ask(picture(1), picture(2))
    assert isinstance(reply, ImmediateReply)
    assert (reply.status, reply.body) == (status, said.body)
    assert not stage.prefilled
    record = stage.bench.close()
    assert record.outcome is Outcome.ENGINE_ERROR


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (FailureKind.CONNECT, (502, "encode_failed")),
        (FailureKind.TRANSPORT, (502, "encode_failed")),
        (FailureKind.TIMEOUT, (504, "encode_timeout")),
        (EngineAnswer(500, {}, b"{}"), (502, "encode_failed")),
        (EngineAnswer(503, {"retry-after": "7"}, b"{}"), (503, "encode_unavailable")),
        (EngineAnswer(200, {}, b"[]"), (502, "encode_invalid")),
    ],
)
async def test_what_no_pod_encodes_ends_the_request_before_prefill(
    failure: Any, error: tuple[int, str]
) -> None:
    stage = Stage(on_prefill_failure=FailurePolicy.AGGREGATE)
    stage.encode = lambda *_: failure
    assert error_of(await stage.ask(picture(1))) == error
    assert not stage.prefilled
    stage.bench.close()


async def test_a_pod_whose_answers_cannot_be_understood_is_left_out() -> None:
    stage = Stage()
    await stage.serve(picture(1))
    await stage.end()
    ((bad, _, _),) = stage.encoded
    stage.encode = lambda address, _: EngineAnswer(200, {}, b"[]") if address == bad else None
    for _ in range(3):
        stage.reopen()
        assert error_of(await stage.ask(picture(1))) == (502, "encode_invalid")
        stage.bench.close()
    stage.reopen()
    await stage.serve(picture(1))
    assert stage.encoded[-1][0] != bad
    await stage.end()


async def test_the_first_failure_ends_the_others() -> None:
    stage, left = Stage(), 0

    async def answer(_: str, number: int) -> Any:
        nonlocal left
        if number == 2:
            return EngineAnswer(400, {}, b"{}")
        try:
            await asyncio.Event().wait()
        finally:
            left += 1

    stage.encode = answer
    reply = await stage.ask(*map(picture, range(3)))
    assert isinstance(reply, ImmediateReply)
    assert reply.status == 400
    assert left == 2
    stage.bench.close()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pods that are said to have left somebody without an answer."""
    blamed: list[str] = []
    monkeypatch.setattr(PodOutcomes, "note_silence", lambda _, pod, *__: blamed.append(pod.uid))
    return blamed


async def test_who_is_given_up_for_another_s_failure_is_not_blamed(silent: list[str]) -> None:
    stage = Stage()

    async def answer(_: str, number: int) -> Any:
        if number < 3:
            await asyncio.Event().wait()
        return EngineAnswer(400, {}, b"{}")

    stage.encode = answer
    await stage.ask(*map(picture, range(3)))
    assert (len(stage.encoded), silent) == (3, [])
    stage.bench.close()


@pytest.mark.parametrize(
    ("most", "least_s", "blamed"), [(2, 6.0, False), (1, 60.0, True), (2, 3.0, True)]
)
async def test_who_was_given_little_time_is_not_slow(
    silent: list[str], monkeypatch: pytest.MonkeyPatch, most: int, least_s: float, *, blamed: bool
) -> None:
    """Other items have taken most of 60 s, before a slot was free; 3 s are a limit of its own."""
    stage = Stage(encode_concurrency=1)
    legs = stage.bench.exchanges.dispatcher.legs
    start, passed = time.monotonic(), 0.0

    def encode(_: str, number: int) -> Any:
        nonlocal passed
        if number == most:
            passed += least_s
            return FailureKind.TIMEOUT
        passed = 0.9 * legs.total_s
        return None

    stage.encode = encode
    monkeypatch.setattr(time, "monotonic", lambda: start + passed)
    assert error_of(await stage.ask(picture(1), picture(2))) == (504, "encode_timeout")
    assert bool(silent) is not blamed
    stage.bench.close()


async def test_a_client_that_leaves_ends_all(silent: list[str]) -> None:
    stage = Stage()

    async def wait(*_: Any) -> None:
        await asyncio.Event().wait()

    stage.encode = wait
    task = asyncio.create_task(stage.ask(*map(picture, range(3))))
    await wait_until(lambda: stage.under_way == 3)
    task.cancel()
    await asyncio.wait([task])
    assert stage.under_way == 0
    assert stage.bench.close().outcome is Outcome.CLIENT_LEFT
    assert len(silent) == 3


@pytest.mark.parametrize("failure", [FailureKind.CONNECT, EngineAnswer(500, {}, b"{}")])
async def test_another_pod_encodes_what_one_has_failed(failure: Any) -> None:
    stage = Stage(prefill_retries=1)
    stage.encode = lambda _, number: failure if number == 1 else None
    await stage.serve(picture(1))
    (first, first_id, sent), (second, second_id, again) = stage.encoded
    assert first != second
    assert first_id != second_id
    assert sent == again
    assert list_handles(stage.prefilled[0]) == {2}
    record = await stage.end()
    assert [attempt.failure is None for attempt in record.attempts] == [False, True, True]
    assert record.retries == ()


async def test_above_the_budget_nothing_is_encoded_again() -> None:
    stage = Stage(prefill_retries=5, retry_budget_share=0.0, retry_budget_per_second=0.0)
    stage.encode = lambda *_: FailureKind.TRANSPORT
    reply = await stage.ask(picture(1))
    assert error_of(reply) == (502, "encode_failed")
    assert isinstance(reply, ImmediateReply)
    assert b"too many" in reply.body
    assert len(stage.encoded) == 1
    stage.bench.close()


async def test_a_request_counts_once_however_many_legs_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, counted = Stage(), []
    budget = stage.bench.exchanges.dispatcher.legs.budget
    monkeypatch.setattr(type(budget), "count_request", lambda _, model: counted.append(model))
    await stage.serve(picture(1), picture(2))
    await stage.end()
    assert counted == ["m"]


async def test_what_a_prefill_engine_may_have_fetched_is_encoded_again() -> None:
    stage = Stage(*ENCODERS, PREFILL, OTHER_PREFILL, DECODE, prefill_retries=1)
    stage.prefill = lambda _, number: FailureKind.TRANSPORT if number == 1 else HANDLE
    await stage.serve(picture(1), picture(2))
    assert [list_handles(body) for body in stage.prefilled] == [{1, 2}, {3, 4}]
    assert len({request_id for _, request_id, _ in stage.encoded}) == 4
    await stage.end()


async def test_what_is_encoded_again_goes_to_a_pod_that_is_there_by_then() -> None:
    """The pair stays: its first handle has come too late, for the router stood still."""
    gone, come = ENCODERS[:2]
    stage = Stage(gone, PREFILL, DECODE, prefill_retries=1)
    freed = PARAMS[:-1] + b', "remote_blocks_expiry_time": 1789999990}'
    late = {"date": formatdate(1_790_000_000, usegmt=True)}

    def prefill(_: str, number: int) -> EngineAnswer:
        stage.bench.cache.replace((come, PREFILL, DECODE))
        return HANDLE if number > 1 else EngineAnswer(200, late, HANDLE.body.replace(PARAMS, freed))

    stage.prefill = prefill
    await stage.serve(picture(1))
    assert [address for address, _, _ in stage.encoded] == [gone.address, come.address]
    assert [list_handles(body) for body in stage.prefilled] == [{1}, {2}]
    await stage.end()


async def test_a_source_that_has_gone_while_media_were_encoded_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, other, last = (
        replace(pod, kv_connector="nixl-p2p") for pod in (PREFILL, OTHER_PREFILL, DECODE)
    )
    stage = Stage(ENCODERS[0], first, other, last)
    known: list[tuple[Pod, ...]] = []

    def find_source(_: Router, __: Pod, ___: Any, pods: ModelPods, ____: Any) -> None:
        known.append(pods.prefill)

    def leave(*_: Any) -> None:
        stage.bench.cache.replace((ENCODERS[0], first, last))

    monkeypatch.setattr(Router, "find_kv_source", find_source)
    stage.encode = leave
    await stage.serve(picture(1))
    assert known == [(first,)]
    await stage.end()


async def test_what_no_engine_can_have_fetched_is_good_for_the_next() -> None:
    stage = Stage(*ENCODERS, PREFILL, OTHER_PREFILL, DECODE, prefill_retries=1)
    stage.prefill = lambda _, number: FailureKind.CONNECT if number == 1 else HANDLE
    await stage.serve(picture(1))
    assert [list_handles(body) for body in stage.prefilled] == [{1}, {1}]
    await stage.end()


async def test_if_prefill_fails_and_decode_may_serve_it_it_gets_the_media_themselves() -> None:
    stage = Stage(on_prefill_failure=FailurePolicy.AGGREGATE)
    stage.prefill = lambda *_: FailureKind.TRANSPORT
    assert await stage.serve(picture(1)) == chat(picture(1))
    assert (await stage.end()).aggregated == "prefill-failed"


async def test_if_there_is_no_handle_decode_gets_the_media_themselves() -> None:
    stage = Stage()
    stage.prefill = lambda *_: EngineAnswer(200, {}, b'{"kv_transfer_params": null}')
    assert await stage.serve(picture(1)) == chat(picture(1))
    assert (await stage.end()).aggregated == "handoff-null-params"


async def test_two_engines_that_describe_one_hash_differently_end_the_request() -> None:
    stage = Stage()
    stage.encode = lambda _, number: EngineAnswer(
        200, {}, b'{"ec_transfer_params": {"h": {"metadata": {"n": %d}}}}' % number
    )
    assert error_of(await stage.ask(picture(1), picture(2))) == (502, "encode_invalid")
    assert stage.bench.close().handoff == "ec-conflict"


async def test_answers_that_are_too_large_together_end_the_request() -> None:
    stage = Stage(max_message_bytes=600_000)
    assert stage.bench.exchanges.dispatcher.encoders.rules.most_bytes < 600_000
    stage.encode = lambda _, number: EngineAnswer(
        200, {}, b'{"ec_transfer_params": {"h%d": {"pad": "%s"}}}' % (number, b"x" * 40_000)
    )
    assert error_of(await stage.ask(*map(picture, range(20)))) == (502, "encode_invalid")
    assert stage.bench.close().handoff == "ec-too-large"


async def test_only_a_roleset_in_which_somebody_encodes_gets_media() -> None:
    def of(pod: Pod, roleset: str) -> Pod:
        return replace(
            pod,
            uid=pod.uid + roleset,
            name=f"{pod.name}-{roleset}",
            roleset=roleset,
            pairing=pod.pairing._replace(roleset=roleset),
        )

    pairs = [of(pod, roleset) for roleset in "ab" for pod in (PREFILL, DECODE)]
    stage = Stage(*pairs, of(ENCODERS[0], "b"))
    for number in range(8):
        await stage.serve(picture(number))
        record = await stage.end()
        stage.reopen()
        assert record.decision is not None
        assert {choice.pod.roleset for choice in record.decision.legs} == {"b"}


async def test_a_large_picture_is_read_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []

    async def note(work: Callable[..., Any], *arguments: Any) -> Any:
        moved.append(work)
        return work(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", note)
    stage = Stage(max_body_bytes=3_000_000)
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    body = await stage.serve(large)
    assert len(moved) == 1
    assert len(json.dumps(body)) < 2000
    await stage.end()


async def test_the_bytes_of_media_say_nothing_of_the_length_of_prompts() -> None:
    stage = Stage(max_body_bytes=3_000_000)
    usage = b'{"kv_transfer_params": ' + PARAMS + b', "usage": {"prompt_tokens": 1200}}'
    stage.prefill = lambda *_: EngineAnswer(200, {}, usage)
    for letter in "ABC":
        url = f"data:image/png;base64,{letter * 1_000_000}"
        large = {"type": "image_url", "image_url": {"url": url}}
        await stage.serve({"type": "text", "text": letter}, large)
        record = await stage.end()
        assert record.decision is not None
        assert record.decision.prefill is not None
        assert 1000 <= record.decision.prefill.tokens < 1100
        stage.reopen()
    # Of texts, nothing was learnt.
    ratios = stage.bench.exchanges.dispatcher.chooser.ratios
    assert ratios.estimate("m", 4000) == 1000


async def test_the_decision_shows_who_encodes() -> None:
    stage = Stage()
    await stage.serve(picture(1), picture(2), picture(3))
    record = await stage.end()
    assert record.decision is not None
    shown = describe_in_detail(record.decision)["encode"]
    names = {pod.address: pod.name for pod in ENCODERS}
    assert shown == {
        "items": 3,
        "policy": "rendezvous",
        "candidates": 3,
        "pods": dict(Counter(names[address] for address, _, _ in stage.encoded)),
    }
    line = describe_request(record)
    assert (line["encoded_items"], line["encode_attempts"]) == (3, 3)
    assert line["prefill_attempts"] == 1
    assert line["encode_ms"] >= 0
