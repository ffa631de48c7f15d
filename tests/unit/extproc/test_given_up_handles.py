"""When the blocks of a prefill leg are released, by what happens to the request."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from exchanges import (
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    error_of,
    local_reply,
    request_body,
    request_headers,
    sglang,
)
from waiting import wait_until

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.extproc.messages import ResponseHeaders
from pdrouter.serving.release import ReleaseOutcome
from pdrouter.settings.choices import Aggregation, BlockRelease, FailurePolicy

REFUSED = "upstream_reset_before_response_started{remote_connection_failure|Connection_refused}"
ELSEWHERE = Pod.create(
    uid="e", name="else", ip="10.0.0.9", port=8000, model="m", role=Role.DECODE, roleset="other"
)
OTHER = Pod.create(uid="d2", name="decode-1", ip="10.0.0.3", port=8000, model="m", role=Role.DECODE)


async def list_outcomes(bench: Bench) -> list[ReleaseOutcome]:
    """End the request, and return what came of releases."""
    bench.close()
    await wait_until(lambda: not bench.exchanges.releases.outstanding)
    return bench.notes.releases


async def count_releases(bench: Bench) -> int:
    """End the request, and count the releases that were asked for."""
    outcomes = await list_outcomes(bench)
    posts = [
        post for post in bench.prefill.posts if post.headers["x-request-id"].endswith("-release")
    ]
    assert len(posts) == len(outcomes)
    for post in posts:
        assert json.loads(bytes(post.body))["kv_transfer_params"]["remote_request_id"] == "r"
    return len(posts)


@pytest.mark.parametrize(
    ("details", "attempts", "releases"),
    [
        (REFUSED, 1.0, 1),
        ("no_healthy_upstream", 0.0, 1),
        (REFUSED, 2.0, 0),
        (REFUSED, None, 0),
        ("upstream_reset_before_response_started{connection_termination}", 1.0, 0),
        ("upstream_response_timeout", 1.0, 0),
        ("via_upstream", 1.0, 0),
    ],
)
async def test_what_envoy_could_not_send_is_released(
    details: str, attempts: float | None, releases: int
) -> None:
    bench = Bench([PREFILL, DECODE, OTHER])
    await bench.tell(request_headers(), request_body(), local_reply(details, attempts))
    assert await count_releases(bench) == releases


async def test_without_another_decode_pod_nobody_can_be_asked() -> None:
    bench = Bench()
    await bench.tell(request_headers(), request_body(), local_reply(REFUSED, 1.0))
    assert await list_outcomes(bench) == [ReleaseOutcome.NO_POD]


async def test_a_client_that_leaves_once_the_request_is_envoys_leaves_the_blocks_to_the_pod() -> (
    None
):
    bench = Bench()
    await bench.tell(request_headers(), request_body())
    assert await count_releases(bench) == 0


async def test_an_engine_that_answers_has_the_handle() -> None:
    bench = Bench()
    await bench.tell(request_headers(), request_body(), ResponseHeaders({":status": "200"}))
    assert bench.exchange.call.handle is None
    assert await count_releases(bench) == 0


@pytest.mark.parametrize("policy", list(FailurePolicy))
async def test_a_handle_that_is_too_large_to_be_sent_is_released(policy: FailurePolicy) -> None:
    content = json.dumps({"model": "m", "prompt": "x" * 3000, "max_tokens": 9}).encode()
    limit = len(content) + MESSAGE_OVERHEAD_BYTES + 50
    bench = Bench(max_message_bytes=limit, on_handoff_failure=policy)
    _, reply = await bench.tell(request_headers("/v1/completions"), request_body(content))
    if policy is FailurePolicy.FAIL:
        assert error_of(reply) == (502, "handoff_invalid")
    assert await count_releases(bench) == 1


@pytest.mark.parametrize("policy", list(FailurePolicy))
async def test_an_answer_without_a_handle_has_nothing_to_release(policy: FailurePolicy) -> None:
    bench = Bench(on_handoff_failure=policy)
    bench.prefill.answer = lambda: EngineAnswer(200, {}, b'{"kv_transfer_params": null}')
    await bench.tell(request_headers(), request_body())
    assert await list_outcomes(bench) == []


async def test_a_decode_pod_that_goes_during_prefill_leaves_the_blocks_to_its_successor() -> None:
    bench = Bench()
    answer = bench.prefill.answer

    def lose_decode() -> Any:
        bench.cache.replace([PREFILL, OTHER])
        bench.prefill.answer = answer
        return answer()

    bench.prefill.answer = lose_decode
    await bench.tell(request_headers(), request_body())
    assert bench.exchange.call.handle is not None
    assert await count_releases(bench) == 0


async def test_blocks_are_given_up_if_the_request_goes_whole_since_no_partner_is_left() -> None:
    bench = Bench(aggregation=Aggregation.FALLBACK)
    answer = bench.prefill.answer

    def lose_decode() -> Any:
        bench.cache.replace([PREFILL, ELSEWHERE])
        bench.prefill.answer = answer
        return answer()

    bench.prefill.answer = lose_decode
    await bench.tell(request_headers(), request_body())
    assert bench.exchange.record.aggregated
    # Nobody is left to be asked, either.
    assert await list_outcomes(bench) == [ReleaseOutcome.NO_POD]


async def test_what_fails_after_the_prefill_leg_releases_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    def break_down(*_: object) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pdrouter.serving.way.hand_over", break_down)
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (500, "internal_error")
    assert await count_releases(bench) == 1


async def test_what_fails_before_envoy_is_told_where_to_send_it_releases_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    def break_down(*_: object, **__: object) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pdrouter.extproc.phases.forward", break_down)
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (500, "internal_error")
    assert not bench.exchange.record.forwarded
    assert await count_releases(bench) == 1


async def test_a_client_that_leaves_during_prefill_leaves_no_blocks_to_be_released() -> None:
    bench = Bench()
    waiting = asyncio.Event()

    async def wait() -> EngineAnswer:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench.prefill.answer = wait
    await bench.tell(request_headers())
    task = asyncio.create_task(bench.exchange.handle(request_body()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await count_releases(bench) == 0


async def test_releases_can_be_switched_off() -> None:
    bench = Bench([PREFILL, DECODE, OTHER], release=BlockRelease.OFF)
    await bench.tell(request_headers(), request_body(), local_reply(REFUSED, 1.0))
    assert await count_releases(bench) == 0


PUSHED = PARAMS[:-1] + b', "transfer_mode": "push", "tp_size": 1}'


async def send_both(bench: Bench) -> None:
    """Let the engine be known by a first request, and send both legs of a second one at once."""

    def answer() -> EngineAnswer:
        if bench.prefill.progress is not None:
            bench.prefill.progress.note_head(200)
        return EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PUSHED + b"}")

    bench.prefill.answer = answer
    await bench.tell(request_headers(), request_body(), ResponseHeaders({":status": "200"}))
    bench.close()
    bench.exchange = bench.open()
    await bench.tell(request_headers(), request_body())
    companion = bench.exchange.call.companion
    assert companion is not None
    await companion.wait_good()


def engine_reply(status: str) -> ResponseHeaders:
    return local_reply("via_upstream", 1.0, status)


@pytest.mark.parametrize(
    ("event", "releases"),
    [
        (local_reply(REFUSED, 1.0), 1),
        (local_reply("no_healthy_upstream", 0.0), 1),
        # It could not free them, since it did not know what their engine calls them.
        (engine_reply("400"), 1),
        (engine_reply("404"), 1),
        # It may have asked for them.
        (engine_reply("500"), 0),
        (engine_reply("200"), 0),
        (local_reply(REFUSED, 2.0), 0),
        (local_reply("upstream_reset_before_response_started{connection_termination}", 1.0), 0),
    ],
    ids=lambda value: None if isinstance(value, int) else "",
)
async def test_blocks_that_decode_has_not_asked_for_are_released_where_both_legs_ran_at_once(
    event: ResponseHeaders, releases: int
) -> None:
    pods = [replace(pod, kv_connector="nixl-push") for pod in (PREFILL, DECODE, OTHER)]
    bench = Bench(pods)
    await send_both(bench)
    await bench.tell(event)
    assert await count_releases(bench) == releases


async def test_a_wire_without_releases_is_not_asked_for_one() -> None:
    bench = Bench([sglang(pod) for pod in (PREFILL, DECODE, OTHER)])

    def answer() -> EngineAnswer:
        assert bench.prefill.progress is not None
        bench.prefill.progress.note_head(200)
        return EngineAnswer(200, {}, b"{}")

    bench.prefill.answer = answer
    await bench.tell(request_headers(), request_body(), local_reply(REFUSED, 1.0))
    assert await list_outcomes(bench) == []
