"""What headers, a model's configuration and a changing cluster make of the choice of pods."""

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
from exchanges import (
    CHAT,
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
    response_headers,
)

from pdrouter.cluster.pod_config import parse_config
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.extproc.messages import ImmediateReply, PhaseReply, ReplaceBody, Reply
from pdrouter.settings.choices import Aggregation, FailurePolicy

OTHER = Pod.create(uid="d2", name="decode-1", ip="10.0.0.3", port=8000, model="m", role=Role.DECODE)
NOT_READY = replace(DECODE, ready=False)
STRANGER = Pod.create(
    uid="d2",
    name="decode-1",
    ip="10.0.0.3",
    port=8000,
    model="m",
    role=Role.DECODE,
    roleset="another",
)


_FORM = (
    b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n"
    b"--b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\n%b\r\n--b--"
) % (b"x" * 100_000)


def answer_after(bench: Bench, *pods: Pod) -> Callable[[], EngineAnswer]:
    """Return a prefill answer during which these become the pods."""

    def answer() -> EngineAnswer:
        bench.cache.replace(pods)
        return EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")

    return answer


def sent_to(reply: Reply | None) -> str:
    assert isinstance(reply, PhaseReply)
    return dict(reply.set_headers)["target-pod"]


@pytest.mark.parametrize("pods", [(PREFILL, OTHER), (PREFILL, NOT_READY, OTHER), (OTHER,)])
async def test_a_decode_pod_that_goes_during_prefill_is_replaced(pods: tuple[Pod, ...]) -> None:
    bench = Bench()
    bench.prefill.answer = answer_after(bench, *pods)
    _, body, response = await bench.tell(request_headers(), request_body(), response_headers())
    assert sent_to(body) == "10.0.0.3:8000"
    assert isinstance(body, PhaseReply)
    assert isinstance(body.body, ReplaceBody)
    assert json.loads(bytes(body.body.body))["kv_transfer_params"] == json.loads(PARAMS)
    assert bench.ledger.load(Leg.DECODE, "d").requests == 0
    assert bench.ledger.load(Leg.DECODE, "d2").requests == 1
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["target-pod"] == "decode-1"
    decision = bench.close().decision
    assert decision is not None
    assert "decode pod decode-0 has gone during the prefill leg" in decision.notes


@pytest.mark.parametrize("pods", [(), (PREFILL,), (PREFILL, NOT_READY), (PREFILL, STRANGER)])
async def test_without_another_decode_pod_for_the_handle_there_is_an_error(
    pods: tuple[Pod, ...],
) -> None:
    bench = Bench()
    bench.prefill.answer = answer_after(bench, *pods)
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "no_ready_pod")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["retry-after"] == "5"
    bench.close()


async def test_a_decode_pod_of_another_roleset_serves_the_request_whole() -> None:
    bench = Bench(aggregation=Aggregation.FALLBACK)
    bench.prefill.answer = answer_after(bench, PREFILL, STRANGER)
    _, body = await bench.tell(request_headers(), request_body())
    assert sent_to(body) == "10.0.0.3:8000"
    assert isinstance(body, PhaseReply)
    assert body.body is None
    assert bench.close().aggregated == "no-ready-pair"


async def test_a_decode_pod_that_goes_while_prefill_fails_is_replaced() -> None:
    bench = Bench(on_prefill_failure=FailurePolicy.AGGREGATE)

    def fail() -> FailureKind:
        bench.cache.replace((PREFILL, OTHER))
        return FailureKind.CONNECT

    bench.prefill.answer = fail
    _, body = await bench.tell(request_headers(), request_body())
    assert sent_to(body) == "10.0.0.3:8000"
    assert bench.close().aggregated == "prefill-failed"


def configure(**config: object) -> tuple[Pod, Pod]:
    """Return the pair with this configuration on its prefill pod."""
    return replace(PREFILL, config=parse_config(json.dumps(config))), DECODE


async def test_the_models_strategy_counts_where_the_client_names_none() -> None:
    pods = configure(profiles={"default": {"routingStrategy": "random"}})
    bench = Bench(pods)
    await bench.tell(request_headers(), request_body())
    assert bench.close().strategy == "random"
    bench.exchange = bench.open()
    await bench.tell(request_headers(routing_strategy="pd"), request_body())
    assert bench.close().strategy == "pd"


async def test_a_locked_strategy_cannot_be_changed() -> None:
    bench = Bench(configure(profiles={"default": {}}, lockedRoutingStrategy="least-request"))
    await bench.tell(request_headers(routing_strategy="pd"), request_body())
    assert bench.close().strategy == "least-request"


@pytest.mark.parametrize(
    "config",
    [
        {"profiles": {"default": {"routingStrategy": "fastest"}}},
        {"profiles": {"default": {}}, "lockedRoutingStrategy": "fastest"},
    ],
)
async def test_an_unknown_strategy_of_the_model_is_not_the_clients_fault(
    config: dict[str, object],
) -> None:
    bench = Bench(configure(**config))
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "invalid_routing_strategy")
    assert isinstance(reply, ImmediateReply)
    assert b"model.aibrix.ai/config" in reply.body
    bench.close()


async def test_a_profile_that_the_router_chooses_is_named() -> None:
    profiles = {
        "default": {},
        "short": {"routingConfig": {"promptTokensLt": 1000, "prefillScorePolicy": "conductor"}},
    }
    bench = Bench(configure(profiles=profiles))
    *_, response = await bench.tell(
        request_headers(config_profile="auto"), request_body(), response_headers()
    )
    assert isinstance(response, PhaseReply)
    assert dict(response.set_headers)["x-aibrix-config-profile"] == "short"
    decision = bench.close().decision
    assert decision is not None
    assert decision.prefill is not None
    assert decision.prefill.policy == "conductor"
    bench.exchange = bench.open()
    *_, response = await bench.tell(
        request_headers(config_profile="short"), request_body(), response_headers()
    )
    assert isinstance(response, PhaseReply)
    assert "x-aibrix-config-profile" not in dict(response.set_headers)
    bench.close()


async def test_a_clients_filter_chooses_among_the_pods() -> None:
    canary = replace(OTHER, labels={"track": "canary"})
    bench = Bench((PREFILL, DECODE, canary))
    for _ in range(5):
        _, body = await bench.tell(
            request_headers(external_filter="track=canary", routing_strategy="random"),
            request_body(),
        )
        assert sent_to(body) == "10.0.0.3:8000"
        bench.close()
        bench.exchange = bench.open()


@pytest.mark.parametrize(
    ("selector", "status", "code"),
    [("track=gone", 503, "no_ready_pod"), ("a in (", 400, "invalid_external_filter")],
)
async def test_a_filter_that_leaves_nothing_is_an_error(
    selector: str, status: int, code: str
) -> None:
    bench = Bench()
    _, reply = await bench.tell(request_headers(external_filter=selector), request_body())
    assert error_of(reply) == (status, code)
    bench.close()


async def test_a_models_rate_is_limited() -> None:
    bench = Bench(configure(profiles={"default": {"requestsPerSecond": 1}}))
    _, body = await bench.tell(request_headers(), request_body())
    assert sent_to(body) == "10.0.0.2:8000"
    bench.close()
    bench.exchange = bench.open()
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (429, "rate_limit_exceeded")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["retry-after"] == "1"
    bench.close()


async def test_a_request_that_found_no_pod_does_not_count_against_the_rate() -> None:
    prefill, decode = configure(profiles={"default": {"requestsPerSecond": 1}})
    bench = Bench((prefill, replace(decode, ready=False)))
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "no_ready_pod")
    bench.close()
    await asyncio.sleep(0)  # What was taken is given back right after the request.
    bench.cache.replace((prefill, decode))
    bench.exchange = bench.open()
    _, body = await bench.tell(request_headers(), request_body(CHAT))
    assert sent_to(body) == "10.0.0.2:8000"
    bench.close()


async def test_the_role_of_a_missing_pod_is_named() -> None:
    bench = Bench((replace(PREFILL, role=Role.DECODE, ready=False),))
    _, reply = await bench.tell(request_headers(), request_body())
    assert error_of(reply) == (503, "no_ready_pod")
    assert isinstance(reply, ImmediateReply)
    assert b"decode" in reply.body
    bench.close()


async def test_a_filter_holds_for_the_decode_pod_that_comes_in() -> None:
    labels = {"track": "canary"}
    first, second, stranger = (replace(pod, labels=labels) for pod in (DECODE, OTHER, STRANGER))
    prefill = replace(PREFILL, labels=labels)
    for pods, status in (((prefill, second), 200), ((prefill, stranger), 503)):
        bench = Bench((prefill, first))
        bench.prefill.answer = answer_after(bench, *pods)
        _, body = await bench.tell(request_headers(external_filter="track=canary"), request_body())
        if status == 200:
            assert sent_to(body) == "10.0.0.3:8000"
        else:
            assert error_of(body) == (503, "no_ready_pod")
        bench.close()


async def test_a_decode_pod_with_another_address_is_another_pod() -> None:
    moved = Pod.create(
        uid="d", name="decode-0", ip="10.0.0.9", port=8000, model="m", role=Role.DECODE
    )
    bench = Bench()
    bench.prefill.answer = answer_after(bench, PREFILL, moved)
    _, body = await bench.tell(request_headers(), request_body())
    assert sent_to(body) == "10.0.0.9:8000"
    bench.close()


async def test_a_prefill_that_was_done_is_not_done_again_to_be_faster() -> None:
    able = replace(DECODE, computes_prompts=True)
    bench = Bench((PREFILL, able), aggregation=Aggregation.WHEN_FASTER, handover_s=0.0)
    for _ in range(40):  # Prefill pods are fast, so that two legs are chosen at first.
        bench.state.ledger.rates.observe("p", (1000, 1000**2), 0.1)
        bench.state.ledger.rates.observe("d", (1000, 1000**2), 2.0)
    prefilled = answer_after(bench, PREFILL, OTHER)
    scopes = ExitStack()

    def answer() -> EngineAnswer:
        scopes.enter_context(bench.ledger.start(Leg.PREFILL, "p", 10_000_000))
        return prefilled()

    bench.prefill.answer = answer
    _, body = await bench.tell(request_headers(), request_body())
    assert isinstance(body, PhaseReply)
    assert isinstance(body.body, ReplaceBody)
    scopes.close()
    assert bench.close().aggregated == ""


_ODD = Pod.create(
    uid="o",
    name="odd",
    ip="10.0.0.9",
    port=80,
    model="m",
    role=Role.PREFILL,
    unsupported="engine 'tgi' is not supported: it is none of vllm",
)


@pytest.mark.parametrize(
    ("pods", "code", "reason"),
    [
        ((_ODD,), "model_unsupported", f"model 'm' cannot be served: {_ODD.unsupported}"),
        ((_ODD, NOT_READY), "no_ready_pod", f"; {_ODD.unsupported}"),
    ],
)
async def test_a_request_for_what_cannot_be_served_is_told_why(
    pods: tuple[Pod, ...], code: str, reason: str
) -> None:
    bench = Bench(pods)
    _, body = await bench.tell(request_headers(), request_body())
    assert error_of(body) == (503, code)
    assert isinstance(body, ImmediateReply)
    assert reason in json.loads(body.body)["error"]["message"]
    assert bench.close().decision is None


async def test_an_ambiguous_model_is_served_under_its_full_name() -> None:
    bench = Bench()
    pods = bench.cache.view.models["m"]
    names = {"default/m": pods, "other/m": pods}
    view = ClusterView(names, pods.pods, tuple(names), {"m": tuple(names)})
    bench.cache.publish(view, synced=True)
    _, body = await bench.tell(request_headers(), request_body(CHAT | {"model": "default/m"}))
    assert sent_to(body) == "10.0.0.2:8000"
    assert bench.prefill.posts
    bench.close()
    # The engine knows the model without its namespace, and the form says so.
    bench.exchange = bench.open()
    form = _FORM.replace(b"\r\nm\r\n", b"\r\nother/m\r\n")
    content_type = "multipart/form-data; boundary=b"
    _, body = await bench.tell(
        request_headers("/v1/audio/transcriptions", content_type=content_type), request_body(form)
    )
    assert isinstance(body, PhaseReply)
    assert isinstance(body.body, ReplaceBody)
    assert bytes(body.body.body) == _FORM
    assert dict(body.set_headers)["content-length"] == str(len(_FORM))
    bench.close()


async def test_rates_are_limited_by_namespace_and_profile() -> None:
    config = parse_config(
        json.dumps(
            {
                "profiles": {
                    "default": {"requestsPerSecond": 1},
                    "fast": {"requestsPerSecond": 1000},
                }
            }
        )
    )
    bench = Bench((replace(PREFILL, config=config), DECODE))
    for profile in ("fast", "fast", "default"):
        _, body = await bench.tell(request_headers(config_profile=profile), request_body())
        assert sent_to(body) == "10.0.0.2:8000"
        bench.close()
        bench.exchange = bench.open()
    elsewhere = [
        replace(pod, namespace="other", config=pod.config) for pod in bench.cache.view.pods
    ]
    bench.cache.replace(elsewhere)
    _, body = await bench.tell(request_headers(config_profile="default"), request_body())
    assert sent_to(body) == "10.0.0.2:8000"
    bench.close()


async def test_a_pod_with_a_short_queue_takes_what_would_wait_too_long() -> None:
    idler = replace(PREFILL, uid="p2", name="prefill-1")
    bench = Bench((PREFILL, idler, DECODE), max_wait_s=1.5)
    for _ in range(300):
        bench.ledger.start(Leg.PREFILL, "elsewhere", 16_000).release()
    # 2 s of others' work, of which a part counts in the choice, and 1 s of ours.
    bench.ledger.note_others("p", 1)
    with bench.ledger.start(Leg.PREFILL, "p2", 8_000):
        await bench.tell(request_headers(), request_body())
    record = bench.close()
    assert [attempt.pod for attempt in record.attempts] == [idler]
    assert record.decision is not None
    assert record.decision.prefill is not None
    assert record.decision.prefill.pod == idler
    assert "the queue of prefill-0 is 2.0 s long" in record.decision.notes[-1]


@pytest.mark.parametrize("strategy", ["pd", "least-request"])
@pytest.mark.parametrize(
    ("path", "content", "tokens"),
    [
        # What is expected of answers on the bench is 100 tokens, and 4 bytes are a token.
        ("/v1/chat/completions", {"messages": [{"content": "x" * 382}], "n": 2}, 100 + 100),
        ("/v1/completions", {"prompt": "x" * 398, "echo": True, "max_tokens": 0}, 100),
        ("/v1/completions", {"prompt": "x" * 398, "echo": True, "max_tokens": 9}, 100 + 9),
        ("/v1/chat/completions/batch", {"messages": "x" * 363}, 100 + 100),
        ("/v1/embeddings", {"input": "x" * 398}, 100),
        ("/v1/embeddings", {"input": "x" * 398, "max_tokens": 50}, 100),
        ("/v1/messages/count_tokens", {"messages": "x" * 363}, 100),
        *((path, {"input": "x" * 366}, 100) for path in ("/rerank", "/score", "/classify")),
        *((path, {"input": "x" * 366}, 100) for path in ("/pooling", "/tokenize", "/v2/embed")),
        ("/v1/images/generations", {"prompt": "x" * 365}, 100),
        # The recording is no text; its transcript is expected to be as long as any answer.
        ("/v1/audio/transcriptions", _FORM, 1 + 100),
        ("/v1/images/edits", _FORM, 1),
    ],
)
async def test_memory_for_an_answer_is_kept_where_there_is_one(
    strategy: str, path: str, content: dict[str, object] | bytes, tokens: int
) -> None:
    bench = Bench()
    body = content if isinstance(content, bytes) else {"model": "m", **content}
    content_type = "multipart/form-data; boundary=b" if isinstance(content, bytes) else ""
    headers = request_headers(path, routing_strategy=strategy, content_type=content_type)
    await bench.tell(headers, request_body(body))
    (load,) = bench.ledger.snapshot().values()
    assert load[Leg.DECODE].requests == 1
    assert load[Leg.DECODE].tokens == pytest.approx(tokens, abs=2)
    bench.close()
