"""In which time a first token is to come: what headers and profiles say, and what comes of it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from exchanges import DECODE, PREFILL, Bench, error_of, request_body, request_headers

from pdrouter.cluster.pod_config import parse_config
from pdrouter.engines.split import Leg
from pdrouter.extproc.messages import ImmediateReply
from pdrouter.serving.record import RequestRecord

CLASSES = (("interactive", 0.5), ("batch", 300.0))


def name_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def ask(bench: Bench, **headers: str) -> RequestRecord:
    if bench.exchange.ended:
        bench.exchange = bench.open()
    await bench.tell(request_headers(extra=name_headers(headers)), request_body())
    return bench.close()


def bench_with_profile(**routing: Any) -> Bench:
    config = parse_config(json.dumps({"profiles": {"default": {"routingConfig": routing}}}))
    return Bench((replace(PREFILL, config=config), DECODE), classes=CLASSES)


@pytest.mark.parametrize(
    ("headers", "profile", "target"),
    [
        ({}, {}, None),
        ({"x_slo_ttft_ms": "750"}, {}, (0.75, "x-slo-ttft-ms")),
        ({"x_slo_ttft_ms": " 0.5 "}, {}, (0.0005, "x-slo-ttft-ms")),
        ({"x_slo_ttft_ms": "750, 750"}, {}, (0.75, "x-slo-ttft-ms")),
        ({"x_slo_ttft_ms": ""}, {}, None),
        ({"x_priority": "batch"}, {}, (300.0, "class batch")),
        ({"x_priority": "Interactive"}, {}, (0.5, "class interactive")),
        ({"x_priority": "batch", "x_slo_ttft_ms": "9000"}, {}, (9.0, "x-slo-ttft-ms")),
        ({}, {"ttftTargetMs": 2500}, (2.5, "profile")),
        ({"x_priority": "batch"}, {"ttftTargetMs": 2500}, (300.0, "class batch")),
        ({}, {"ttftTargetMs": 0}, None),
        ({}, {"ttftTargetMs": "soon"}, None),
        ({}, {"ttftTargetMs": 86_400_001}, None),
    ],
)
async def test_whose_target_counts(
    headers: dict[str, str], profile: dict[str, Any], target: tuple[float, str] | None
) -> None:
    record = await ask(bench_with_profile(**profile), **headers)
    assert record.status is None
    found = record.deadline
    assert (found and (found.target_s, found.source)) == target
    assert record.priority is None


@pytest.mark.parametrize(
    ("headers", "name", "message"),
    [
        *(
            ({"x_slo_ttft_ms": value}, "x-slo-ttft-ms", "milliseconds above 0 and up to 86400000")
            for value in (
                *("0", "-1", "soon", "nan", "inf", "86400001", "1, 2", "1s", "0x10"),
                *("1_000", "\u0661\u0662", "\uff17", "1e3", "+5", ".", "1\xa02", "0" * 20 + "1"),
            )
        ),
        ({"x_priority": "urgent"}, "x-priority", "'urgent' is none of interactive, batch"),
        ({"x_priority": "1"}, "x-priority", "'1' is none of interactive, batch"),
    ],
)
async def test_a_header_that_cannot_be_understood_is_named(
    headers: dict[str, str], name: str, message: str
) -> None:
    bench = Bench(classes=CLASSES)
    _, reply = await bench.tell(request_headers(extra=name_headers(headers)), request_body())
    assert error_of(reply) == (400, "invalid_value")
    assert isinstance(reply, ImmediateReply)
    error = json.loads(reply.body)["error"]
    assert error["param"] == name
    assert message in error["message"]
    assert not bench.prefill.posts
    bench.close()


async def test_without_classes_their_header_is_somebody_elses() -> None:
    record = await ask(Bench(), x_priority="urgent")
    assert (record.status, record.deadline) == (None, None)


async def test_an_answer_without_a_first_token_is_never_due() -> None:
    bench = Bench(classes=CLASSES)
    if bench.exchange.ended:
        bench.exchange = bench.open()
    body = {"model": "m", "input": "hi"}
    await bench.tell(request_headers("/v1/embeddings", x_slo_ttft_ms="1"), request_body(body))
    assert bench.close().deadline is None


def busy_bench(**settings: Any) -> Bench:
    """A router whose prefill pod has shown its speed, and has 80,000 tokens before it."""
    bench = Bench(classes=CLASSES, **settings)
    with bench.ledger.start(Leg.PREFILL, "p", 1) as scope:
        scope.complete()
    bench.ledger.start(Leg.PREFILL, "p", 80_000)
    return bench


async def test_what_cannot_come_in_time_is_refused_before_any_work() -> None:
    bench = busy_bench()
    _, reply = await bench.tell(request_headers(x_priority="interactive"), request_body())
    assert error_of(reply) == (429, "deadline_missed")
    assert isinstance(reply, ImmediateReply)
    message = json.loads(reply.body)["error"]["message"]
    assert message.startswith("the first token is due in 0.5 s (class interactive)")
    assert int(dict(reply.headers)["retry-after"]) >= 1
    assert not bench.prefill.posts
    bench.exchange.close()
    record = bench.notes.finished[-1]
    assert (record.code, record.status) == ("deadline_missed", 429)


@pytest.mark.parametrize("headers", [{"x_priority": "batch"}, {}])
async def test_what_has_time_is_served_beside_it(headers: dict[str, str]) -> None:
    bench = busy_bench()
    await bench.tell(request_headers(extra=name_headers(headers)), request_body())
    assert len(bench.prefill.posts) == 1
    bench.exchange.close()


async def test_it_can_be_served_late_instead() -> None:
    bench = busy_bench(refuse_late=False)
    await bench.tell(request_headers(x_priority="interactive"), request_body())
    assert len(bench.prefill.posts) == 1
    bench.exchange.close()
    decision = bench.notes.finished[-1].decision
    assert decision is not None
    assert decision.notes[-1].startswith("the first token is due in 0.5 s")
