"""Which pods get a request: strategies, rolesets, models, and an endpoints file that changes."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from expectations import (
    DECODE,
    PREFILL,
    chat,
    connect,
    count_received,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    find_sent,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from waiting import wait_until

from pdrouter.engines.split import Leg
from pdrouter.tools.envoy_config import Routing
from pdrouter.tools.local_stack import LocalStack, StackOptions, write_endpoints
from pdrouter.tools.simulation.config import EngineConfig, KvConnector
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
STRATEGIES = ("pd", "random", "least-request")


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    return StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        environment={"PDROUTER_ENDPOINTS_POLL": "0.02", "PDROUTER_AGGREGATE": "never"},
    )


async def ask(client: httpx.AsyncClient, strategy: str | None = None) -> httpx.Response:
    headers = {} if strategy is None else {"routing-strategy": strategy}
    return await client.post(CHAT, json=chat(), headers=headers)


async def hold(
    streams: AsyncExitStack, client: httpx.AsyncClient, headers: dict[str, str]
) -> httpx.Response:
    """Start a request whose answer does not end before the stack of streams is left."""
    request = chat(max_tokens=30_000, stream=True)
    return await streams.enter_async_context(
        client.stream("POST", CHAT, json=request, headers=headers)
    )


# --- Strategies ------------------------------------------------------------------------------


async def test_pd_chooses_the_decode_pod_with_the_fewest_requests(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    async with AsyncExitStack() as streams:
        held = [await hold(streams, client, {}) for _ in range(6)]
        pods = Counter(response.headers["target-pod-ip"] for response in held)
        assert pods == {engine.address: 3 for engine in stack.decode}


async def test_pd_chooses_the_prefill_pod_with_the_fewest_tokens(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    for engine in stack.prefill:
        engine.faults.set(Fault(hang=True))
    waiting = asyncio.create_task(ask(client))

    async def arrived() -> None:
        assert busy_engines(stack)

    try:
        await eventually(arrived)
        for engine in stack.prefill:
            engine.faults.clear()
        (busy,) = busy_engines(stack)
        # Until it is clearly overdue, it is worth no more than what a busy machine adds to others.
        await asyncio.sleep(1)
        for _ in range(6):
            prefill, _ = expect_disaggregated(stack, await ask(client))
            assert prefill.engine is not busy
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


def busy_engines(stack: LocalStack) -> list[SimulatedEngine]:
    return [
        engine
        for engine in stack.prefill
        if any(request.outcome == "running" for request in engine.requests)
    ]


@pytest.mark.parametrize("strategy", ["random", "least-request"])
async def test_a_single_pod_strategy_uses_all_decode_pods_and_no_prefill_pod(
    client: httpx.AsyncClient, stack: LocalStack, strategy: str
) -> None:
    before = [len(engine.requests) for engine in stack.decode]
    responses = [await ask(client, strategy) for _ in range(24)]
    for response in responses:
        whole = expect_whole(stack, response, f"strategy-{strategy}")
        assert whole.request.headers["routing-strategy"] == strategy
        assert response.headers["routing-strategy"] == strategy
    assert all(
        len(engine.requests) > count for engine, count in zip(stack.decode, before, strict=True)
    )


async def test_least_request_chooses_the_pod_with_the_fewest_requests(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    async with AsyncExitStack() as streams:
        headers = {"routing-strategy": "least-request"}
        held = [await hold(streams, client, headers) for _ in range(6)]
        pods = Counter(response.headers["target-pod-ip"] for response in held)
        assert pods == {engine.address: 3 for engine in stack.decode}


@pytest.mark.parametrize("strategy", ["p d", "round-robin", "a" * 1_000, "\xe9"])
async def test_an_unknown_strategy_is_refused_with_the_known_ones(
    client: httpx.AsyncClient, stack: LocalStack, strategy: str
) -> None:
    before = count_received(stack)
    response = await client.post(
        CHAT, json=chat(), headers=[(b"routing-strategy", strategy.encode())]
    )
    error = expect_error(response, 400, "invalid_routing_strategy", "routing-strategy")
    for known in STRATEGIES:
        assert known in error["message"]
    assert len(error["message"]) < 400
    assert count_received(stack) == before


async def test_an_empty_strategy_means_the_default(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    expect_disaggregated(stack, await ask(client, ""))


@pytest.mark.parametrize("default", STRATEGIES)
async def test_the_default_strategy_is_a_setting_that_the_header_overrides(default: str) -> None:
    options = StackOptions(
        prefill=PREFILL, decode=DECODE, environment={"ROUTING_ALGORITHM": default}
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        for strategy in (None, *STRATEGIES):
            response = await ask(client, strategy)
            used = strategy or default
            if used == "pd":
                expect_disaggregated(stack, response)
            else:
                expect_whole(stack, response, f"strategy-{used}")


async def test_without_a_strategy_a_request_passes_with_its_model_and_no_endpoint() -> None:
    options = StackOptions(
        prefill=PREFILL,
        decode=DECODE,
        routing=Routing.OVERRIDE_HOST,
        environment={"ROUTING_ALGORITHM": ""},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        response = await ask(client)
        assert response.status_code == 200
        hidden = ("x-pd-decision", "target-pod", "target-pod-ip", "routing-strategy")
        assert not set(hidden) & response.headers.keys()
        (sent,) = find_sent(stack, response)
        assert sent.request.headers["model"] == "demo"
        for name in ("target-pod", "x-gateway-destination-endpoint", "routing-strategy"):
            assert name not in sent.request.headers
        assert sent.request.body == response.request.content
        # What the router must know, it checks all the same.
        unknown = await client.post(CHAT, json=chat(model="absent"))
        expect_error(unknown, 404, "model_not_found", "model")
        expect_error(await client.post(CHAT, json={}), 400, "invalid_value", "model")
        expect_disaggregated(stack, await ask(client, "pd"))


# --- The endpoints file ----------------------------------------------------------------------


class EndpointsEditor:
    """Rewrites the endpoints file of a stack, and waits until the router has read it."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self.original = stack.endpoints_file.read_text()

    async def write(self, *models: dict[str, Any]) -> None:
        await self.write_text(yaml.safe_dump({"models": list(models)}))

    async def write_text(self, text: str, result: str = "ok") -> None:
        """Write any text. `result` is what the router is to make of it."""
        before = await self._count(result)
        new = self._stack.endpoints_file.with_suffix(".test")
        new.write_text(text)
        new.replace(self._stack.endpoints_file)
        await self.wait(result, before)

    async def remove(self) -> None:
        before = await self._count("broken")
        self._stack.endpoints_file.unlink()
        await self.wait("broken", before)

    async def wait(self, result: str, before: float) -> None:
        async def read_again() -> None:
            assert await self._count(result) == before + 1

        await eventually(read_again)

    async def _count(self, result: str) -> float:
        metrics = await read_metrics(self._stack)
        return metrics.total("pdrouter_endpoints_reloads_total", result=result)


@pytest_asyncio.fixture(loop_scope="module")
async def endpoints(stack: LocalStack) -> AsyncIterator[EndpointsEditor]:
    editor = EndpointsEditor(stack)
    yield editor
    await editor.write_text(editor.original + "\n")


def roleset(
    name: str, prefill: Sequence[SimulatedEngine], decode: Sequence[SimulatedEngine]
) -> dict[str, Any]:
    return {
        "name": name,
        "prefill": [engine.address for engine in prefill],
        "decode": [engine.address for engine in decode],
    }


async def test_a_pair_never_crosses_rolesets(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    pairs = list(zip(stack.prefill, stack.decode, strict=True))
    rolesets = [roleset(f"set-{i}", [p], [d]) for i, (p, d) in enumerate(pairs)]
    await endpoints.write({"name": "demo", "rolesets": rolesets})
    served: set[tuple[SimulatedEngine, SimulatedEngine]] = set()

    async def use_all() -> None:
        responses = await asyncio.gather(*(ask(client) for _ in range(60)))
        for response in responses:
            prefill, decode = expect_disaggregated(stack, response)
            served.add((prefill.engine, decode.engine))
        assert served >= set(pairs)

    await eventually(use_all)
    assert served == set(pairs)


async def test_a_roleset_without_a_decode_pod_gets_no_prefill(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    sets = [
        roleset("full", stack.prefill[:1], stack.decode),
        roleset("half", stack.prefill[1:], []),
    ]
    await endpoints.write({"name": "demo", "rolesets": sets})
    for response in await asyncio.gather(*(ask(client) for _ in range(24))):
        prefill, _ = expect_disaggregated(stack, response)
        assert prefill.engine is stack.prefill[0]


async def test_pods_come_and_go_with_the_file(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    async def used() -> set[SimulatedEngine]:
        responses = await asyncio.gather(*(ask(client) for _ in range(24)))
        pairs = [expect_disaggregated(stack, response) for response in responses]
        return {sent.engine for pair in pairs for sent in pair}

    only = roleset("default", stack.prefill[:1], stack.decode[1:])
    await endpoints.write({"name": "demo", "rolesets": [only]})
    assert await used() == {stack.prefill[0], stack.decode[1]}
    both = roleset("default", stack.prefill, stack.decode)
    await endpoints.write({"name": "demo", "rolesets": [both]})
    seen: set[SimulatedEngine] = set()

    async def use_all() -> None:
        # The prefill pod whose speed is known may be so fast that it gets a burst alone.
        seen.update(await used())
        assert seen == {*stack.prefill, *stack.decode}

    await eventually(use_all)


async def test_a_request_outlives_the_removal_of_its_pod(
    client: httpx.AsyncClient,
    stack: LocalStack,
    endpoints: EndpointsEditor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_go_on = asyncio.Event()
    for engine in stack.decode:
        monkeypatch.setattr(engine._compute, "step", may_go_on.wait)
    request = chat(max_tokens=20, stream=True)
    async with client.stream("POST", CHAT, json=request) as response:
        served = response.headers["target-pod-ip"]
        others = [engine for engine in stack.decode if engine.address != served]
        left = roleset("default", stack.prefill, others)
        await endpoints.write({"name": "demo", "rolesets": [left]})
        # Counted for as long as it lasts, though the pod is known no more.
        assert stack.router.ledger.snapshot()[served][Leg.DECODE].requests == 1
        may_go_on.set()
        assert "[DONE]" in (await response.aread()).decode()
    _, decode = expect_disaggregated(stack, response)
    assert decode.engine.address == served


BROKEN_FILES = {
    "no YAML": "models: [",
    "empty": "",
    "no models": "pods: []",
    "unknown member": "models: [{name: demo, endpoints: ['127.0.0.1:1'], colour: red}]",
    "no name": "models: [{endpoints: ['127.0.0.1:1']}]",
    "no host name": "models: [{name: demo, endpoints: ['a_b..c:1']}]",
    "no port": "models: [{name: demo, endpoints: ['127.0.0.1']}]",
    "twice the model": "models: [{name: a, endpoints: ['127.0.0.1:1']}, "
    "{name: a, endpoints: ['127.0.0.1:2']}]",
    "twice the address": "models: [{name: demo, endpoints: ['127.0.0.1:1', '127.0.0.1:1']}]",
    "no pods": "models: [{name: demo}]",
}


@pytest.mark.parametrize("text", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
async def test_a_broken_file_leaves_the_last_good_one_in_use(
    client: httpx.AsyncClient,
    stack: LocalStack,
    endpoints: EndpointsEditor,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    with caplog.at_level(logging.ERROR, logger="pdrouter"):
        await endpoints.write_text(text, "broken")
    assert "the last good one stays in use" in caplog.text
    expect_disaggregated(stack, await ask(client))
    assert (await read_admin(stack, "/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"engine": "abacus"}, "engine 'abacus' is not supported"),
        ({"kv_connector": "rope"}, "KV connector 'rope' is not supported"),
    ],
)
async def test_a_model_that_cannot_be_served_is_left_out_while_others_are_served(
    client: httpx.AsyncClient,
    stack: LocalStack,
    endpoints: EndpointsEditor,
    members: dict[str, str],
    reason: str,
) -> None:
    pods = [roleset("default", stack.prefill, stack.decode)]
    odd = {"name": "odd", "rolesets": pods, **members}
    await endpoints.write(odd, {"name": "demo", "rolesets": pods})
    expect_disaggregated(stack, await ask(client))
    received = count_received(stack)
    refused = await client.post(CHAT, json=chat("odd"))
    assert reason in expect_error(refused, 503, "model_unsupported")["message"]
    assert count_received(stack) == received
    assert [model["id"] for model in await list_models(client)] == ["demo"]
    assert reason in (await read_admin(stack, "/debug/state")).json()["left_out"]["odd"]
    unsupported = (await read_metrics(stack)).total("pdrouter_pods", state="unsupported")
    assert unsupported == len(stack.prefill) + len(stack.decode)


async def test_a_missing_file_leaves_the_last_good_one_in_use(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    await endpoints.remove()
    expect_disaggregated(stack, await ask(client))


async def test_a_model_that_is_gone_does_not_exist(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    pods = [roleset("default", stack.prefill, stack.decode)]
    await endpoints.write({"name": "renamed", "rolesets": pods})
    expect_error(await ask(client), 404, "model_not_found", "model")
    expect_error(await client.get("/v1/models/demo"), 404, "model_not_found", "model")
    assert [model["id"] for model in await list_models(client)] == ["renamed"]


async def list_models(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = (await client.get("/v1/models")).json()["data"]
    return models


@pytest.mark.parametrize(("prefill", "decode"), [(2, 0), (0, 2)])
async def test_half_a_model_is_not_ready(
    client: httpx.AsyncClient,
    stack: LocalStack,
    endpoints: EndpointsEditor,
    prefill: int,
    decode: int,
) -> None:
    half = roleset("default", stack.prefill[:prefill], stack.decode[:decode])
    await endpoints.write({"name": "demo", "rolesets": [half]})
    before = count_received(stack)
    response = await ask(client)
    error = expect_error(response, 503, "no_ready_pod")
    assert error["type"] == "overloaded_error"
    assert int(response.headers["retry-after"]) > 0
    assert ("prefill" if decode else "decode") in error["message"]
    assert count_received(stack) == before
    if decode:
        # What needs no prefill pod is served.
        expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")


async def test_a_decode_pod_serves_alone_if_the_operator_says_so() -> None:
    options = StackOptions(
        prefill=(), decode=DECODE, environment={"PDROUTER_AGGREGATE": "fallback"}
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        expect_whole(stack, await ask(client), "no-ready-pair")


# --- Models ----------------------------------------------------------------------------------


async def test_a_model_without_roles_is_served_whole(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    addresses = [engine.address for engine in stack.decode]
    await endpoints.write({"name": "demo", "endpoints": addresses})
    responses = await asyncio.gather(*(ask(client) for _ in range(24)))
    served = {expect_whole(stack, each, "not-disaggregated").engine for each in responses}
    assert served == set(stack.decode)
    expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")
    expect_whole(stack, await ask(client, "random"), "strategy-random")


async def test_each_model_is_served_by_its_own_pods(
    client: httpx.AsyncClient, stack: LocalStack, endpoints: EndpointsEditor
) -> None:
    config = EngineConfig(role="both", models=("org/base-7b", "adapter"), itl_ms=1)
    async with SimulatedEngine(config) as engine:
        await endpoints.write(
            {"name": "demo", "rolesets": [roleset("default", stack.prefill, stack.decode)]},
            {"name": "org/base-7b", "endpoints": [engine.address]},
            # An adapter on the same engine: its load is that engine's.
            {"name": "adapter", "endpoints": [engine.address]},
        )
        ids = [model["id"] for model in await list_models(client)]
        assert ids == ["adapter", "demo", "org/base-7b"]
        for name in ("org/base-7b", "org%2Fbase-7b"):
            model = (await client.get(f"/v1/models/{name}")).json()
            assert model["id"] == "org/base-7b"
        expect_disaggregated(stack, await ask(client))
        for number, model in enumerate(("org/base-7b", "adapter"), 1):
            response = await client.post(CHAT, json=chat(model=model))
            assert response.json()["model"] == model
            assert response.headers["x-pd-decision"] == "aggregated;reason=not-disaggregated"
            assert response.headers["target-pod-ip"] == engine.address
            assert len(engine.requests) == number
        await expect_settled(stack)
        metrics = await read_metrics(stack)
        assert metrics.total("pdrouter_decisions_total", model="adapter") == 1


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
@pytest.mark.parametrize("wire", ["nixl", "bootstrap"])
async def test_pods_may_have_ipv6_addresses(wire: KvConnector) -> None:
    for routing in Routing if wire == "nixl" else [Routing.ORIGINAL_DST]:
        options = StackOptions(
            prefill=[replace(PREFILL[0], host="::1", kv_connector=wire)],
            decode=[replace(DECODE[0], host="::1", kv_connector=wire)],
            routing=routing,
        )
        async with run_checked_stack(options) as stack, connect(stack) as client:
            response = await ask(client)
            _, decode = expect_disaggregated(stack, response)
            assert response.headers["target-pod-ip"] == f"[::1]:{decode.engine.port}"
            assert response.headers["prefill-target-pod-ip"] == "::1"


async def test_a_pod_that_envoy_does_not_know_is_noticed() -> None:
    options = StackOptions(prefill=PREFILL, decode=DECODE, routing=Routing.OVERRIDE_HOST)
    unknown = SimulatedEngine(EngineConfig(role="decode", models=("demo",)))
    async with run_checked_stack(options) as stack, connect(stack) as client, unknown:
        write_endpoints(stack.endpoints_file, stack.model, stack.prefill, [unknown])
        await wait_until(
            lambda: unknown.address in {pod.address for pod in stack.router.cache.view.pods}
        )
        response = await client.post("/v1/chat/completions", json=chat())
        # Envoy has fallen back to a pod that it knows; that one has the KV blocks as well.
        assert response.status_code == 200
        assert response.headers["target-pod-ip"] == unknown.address
        assert unknown.requests == ()
        await expect_settled(stack)
        assert (await read_metrics(stack)).total("pdrouter_misrouted_total") == 1
