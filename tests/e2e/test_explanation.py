"""What is told of each request: response headers, a log line, metrics, and the state of things."""

import asyncio
import json
import logging
import re
import shutil
import uuid
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from expectations import (
    PATIENCE_S,
    Metrics,
    chat,
    connect,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_settled,
    expect_whole,
    read_admin,
    read_metrics,
    run_checked_stack,
)

from pdrouter.telemetry.logs import JsonFormatter
from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
OURS = {
    "x-request-id",
    "x-pd-decision",
    "request-id",
    "routing-strategy",
    "target-pod",
    "target-pod-ip",
    "prefill-target-pod",
    "prefill-target-pod-ip",
}
"""Headers that the router adds to responses."""


def explanation(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name in OURS}


async def read_state(stack: LocalStack) -> dict[str, Any]:
    response = await read_admin(stack, "/debug/state")
    assert response.headers["content-type"].startswith("application/json")
    state: dict[str, Any] = response.json()
    return state


# --- Headers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_disaggregated_request_names_both_pods(
    client: httpx.AsyncClient, stack: LocalStack, stream: bool
) -> None:
    response = await client.post(CHAT, json=chat(stream=stream))
    prefill, decode = expect_disaggregated(stack, response)
    names = {pod["address"]: pod["name"] for pod in (await read_state(stack))["pods"]}
    request_id = prefill.request.headers["x-request-id"]
    assert explanation(response) == {
        "x-request-id": request_id,
        "request-id": request_id,
        "x-pd-decision": "disaggregated",
        "routing-strategy": "pd",
        "target-pod": names[decode.engine.address],
        "target-pod-ip": decode.engine.address,
        "prefill-target-pod": names[prefill.engine.address],
        # As aibrix has it: without the port.
        "prefill-target-pod-ip": prefill.engine.host,
    }


async def test_a_request_that_is_served_whole_names_its_pod_and_the_reason(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await client.post(CHAT, json=chat(n=2))
    whole = expect_whole(stack, response, "n")
    names = {pod["address"]: pod["name"] for pod in (await read_state(stack))["pods"]}
    request_id = whole.request.headers["x-request-id"]
    assert explanation(response) == {
        "x-request-id": request_id,
        "request-id": request_id,
        "x-pd-decision": "aggregated;reason=n",
        "routing-strategy": "pd",
        "target-pod": names[whole.engine.address],
        "target-pod-ip": whole.engine.address,
    }


async def test_an_error_of_a_prefill_engine_names_its_pod_and_no_other(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    response = await client.post(CHAT, json=chat(tools=[]))
    assert response.status_code == 400
    assert explanation(response).keys() == OURS - {"target-pod", "target-pod-ip"}
    assert response.headers["content-type"].startswith("application/json")


async def test_what_the_router_answers_itself_has_an_id_and_no_pods(
    client: httpx.AsyncClient,
) -> None:
    for response in (
        await client.get("/v1/models"),
        await client.get("/v1/models/demo"),
        await client.get("/v1/models/absent"),
        await client.get("/nothing"),
        await client.get(CHAT),
        await client.post(CHAT, json={}),
        await client.post(CHAT, json=chat(model="absent")),
    ):
        assert explanation(response).keys() == {"x-request-id"}


async def test_pods_can_be_kept_from_clients(stack_options: StackOptions) -> None:
    options = replace(
        stack_options,
        environment={"PDROUTER_EXPOSE_PODS": "false", "PDROUTER_ENDPOINTS_POLL": "0.02"},
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        responses = [
            await client.post(CHAT, json=chat()),
            await client.post(CHAT, json=chat(n=2)),
            await client.post(CHAT, json=chat(tools=[])),
        ]
        for engine in stack.prefill:
            engine.faults.set(Fault(drop=True))
        responses.append(await client.post(CHAT, json=chat()))
        expect_error(responses[-1], 502, "prefill_failed")
        for response in responses[:3]:
            assert explanation(response).keys() == {"x-request-id", "x-pd-decision"}
        for response in responses:
            assert "127.0.0" not in f"{response.headers}{response.text}"


async def test_the_id_of_a_request_is_its_own_whatever_the_client_says(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    headers = {"traceparent": trace, "x-request-id": "same", "request-id": "same"}
    responses = await asyncio.gather(
        *(client.post(CHAT, json=chat(max_tokens=20), headers=headers) for _ in range(24))
    )
    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == 24
    for request_id in ids:
        assert str(uuid.UUID(request_id)) == request_id
    for response in responses:
        for sent in expect_disaggregated(stack, response):
            assert sent.request.headers["traceparent"].split("-")[1] == "a" * 32


# --- The log ---------------------------------------------------------------------------------

FIELDS = {
    "request_id",
    "client_request_id",
    "method",
    "path",
    "model",
    "stream",
    "body_bytes",
    "outcome",
    "status",
    "strategy",
    "decision",
    "prefill_pod",
    "decode_pod",
    "prefill_attempts",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "routing_ms",
    "predicted_prefill_ms",
    "prefill_ms",
    "overhead_ms",
    "headers_ms",
    "first_token_ms",
    "total_ms",
}


async def find_line(caplog: pytest.LogCaptureFixture, request_id: str) -> dict[str, Any]:
    """Wait for the line of a request, and check that it is the only one."""

    def lines() -> list[dict[str, Any]]:
        written = [
            json.loads(line)
            for record in caplog.records
            if record.name == "pdrouter.request" and record.getMessage() == "request"
            for line in JsonFormatter().format_lines(record)
        ]
        return [line for line in written if line["request_id"] == request_id]

    async def written() -> None:
        assert len(lines()) == 1

    await eventually(written)
    return lines()[0]


async def test_a_request_leaves_one_line(
    client: httpx.AsyncClient, stack: LocalStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter")
    headers = {"x-request-id": "of-the-client"}
    response = await client.post(CHAT + "?x=1", json=chat(stream=True), headers=headers)
    expect_disaggregated(stack, response)
    line = await find_line(caplog, response.headers["x-request-id"])
    assert line.keys() == FIELDS | {"time", "level", "logger", "event"}
    expected = {
        "level": "info",
        "logger": "pdrouter.request",
        "event": "request",
        "client_request_id": "of-the-client",
        "method": "POST",
        "path": CHAT,
        "model": "demo",
        "stream": True,
        "body_bytes": len(response.request.content),
        "outcome": "ok",
        "status": 200,
        "strategy": "pd",
        "decision": "disaggregated",
        "prefill_pod": response.headers["prefill-target-pod"],
        "decode_pod": response.headers["target-pod"],
        "prefill_attempts": 1,
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 < line["prefill_ms"] <= line["headers_ms"] <= line["total_ms"]
    assert line["predicted_prefill_ms"] > 0
    # The prefill engine says so; nobody counts the rest here.
    assert line["prompt_tokens"] > 0
    assert line["output_tokens"] is None
    # Lines wait for Envoy to tell of it once it has told of others.
    first_token_ms = line["first_token_ms"]
    assert first_token_ms is None or 0 < first_token_ms <= line["total_ms"]
    assert 0 < line["routing_ms"] <= line["overhead_ms"]


async def test_the_decision_of_one_request_is_found_by_either_id(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    client_id = f"client {uuid.uuid4()}"
    response = await client.post(CHAT, json=chat(), headers={"x-client-request-id": client_id})
    await client.post(CHAT, json=chat())
    expected = {"id": response.headers["x-request-id"], "pod": response.headers["target-pod"]}
    for wanted in (response.headers["x-request-id"], client_id):
        (found,) = await find_decisions(stack, wanted)
        assert {"id": found["request_id"], "pod": found["decode"]["pod"]} == expected
        assert found["client_request_id"] == client_id
        prefill = found["prefill"]
        parts = prefill["parts"][prefill["pod"]]
        weighted = parts["wait_s"] + parts["compute_weight"] * parts["compute_s"]
        assert weighted == pytest.approx(prefill["scores"][prefill["pod"]], abs=1e-5)
        assert parts["cached_tokens"] + parts["computed_tokens"] > 0
        assert parts["tokens_per_s"] > 0
        assert found["result"]["predicted_prefill_ms"] > 0
        assert found["result"]["prefill_ms"] > 0
    assert await find_decisions(stack, "nobody's") == []


async def find_decisions(stack: LocalStack, wanted: str) -> list[dict[str, Any]]:
    page = await read_admin(stack, f"/debug/decisions?id={quote(wanted)}")
    decisions: list[dict[str, Any]] = page.json()["decisions"]
    return decisions


@pytest.mark.parametrize(
    ("method", "path", "request_body", "expected"),
    [
        ("POST", CHAT, chat(n=2), {"outcome": "ok", "decision": "aggregated;reason=n"}),
        ("POST", CHAT, chat(tools=[]), {"outcome": "engine-error", "decision": ""}),
        ("GET", "/v1/models", None, {"outcome": "answered", "decision": "", "model": ""}),
        ("GET", "/nothing", None, {"outcome": "rejected", "error_code": "unknown_path"}),
        ("POST", CHAT, {"n": 1}, {"outcome": "rejected", "error_code": "invalid_value"}),
        (
            "POST",
            CHAT,
            chat(model="absent"),
            {"outcome": "rejected", "error_code": "model_not_found", "model": ""},
        ),
    ],
)
async def test_the_line_tells_how_a_request_ended(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    request_body: dict[str, Any] | None,
    expected: dict[str, Any],
) -> None:
    caplog.set_level(logging.INFO, logger="pdrouter")
    response = await client.request(method, path, json=request_body)
    line = await find_line(caplog, response.headers["x-request-id"])
    assert {name: line[name] for name in expected} == expected
    assert (line["method"], line["path"]) == (method, path)
    assert line["status"] == response.status_code


async def test_prompts_and_keys_are_never_written_down(
    stack_options: StackOptions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, wrong, secret = "sk-right-7d1f", "sk-wrong-7d1f", "prompt-7d1f"
    options = replace(stack_options, environment={"AIBRIX_AUTH_BEARER_TOKEN": key})
    turns = [{"role": "user", "content": f"{secret} " * 8}]
    async with run_checked_stack(options) as stack:
        async with connect(stack, headers={"authorization": f"Bearer {key}"}) as client:
            for request in (
                chat(messages=turns),
                chat(messages=turns, stream=True),
                chat(messages=turns, n=2),
                chat(messages=turns, tools=[]),
                chat(messages=secret),
                chat(messages=turns, kv_transfer_params={"remote_host": secret}),
            ):
                await client.post(f"{CHAT}?key={secret}", json=request)
            await client.post(CHAT, content=b'{"model": "demo", "%s' % secret.encode())
            await client.post(CHAT, content=b'{"model": "demo", "%s": \xff}' % secret.encode())
            headers = {"authorization": f"Bearer {wrong}", "x-api-key": wrong}
            expect_error(
                await client.post(CHAT, json=chat(), headers=headers),
                401,
                "invalid_api_key",
                "api_key",
            )
        for engine in stack.prefill:
            engine.faults.set(Fault(drop=True))
        async with connect(stack, headers={"x-api-key": key}) as client:
            failed = await client.post(CHAT, json=chat(messages=turns))
            expect_error(failed, 502, "prefill_failed")
        await expect_settled(stack)
        pages = [(await read_admin(stack, page)).text for page in ("/debug/state", "/metrics")]
        pages.append(stack.envoy.log_file.read_text())
    assert '"AIBRIX_AUTH_BEARER_TOKEN":"(secret)"' in pages[0]
    # The client's own library logs what it sends.
    records = [each for each in caplog.records if not each.name.startswith("httpcore")]
    assert {"request", "routed"} <= {record.getMessage() for record in records}
    written = [f"{record.getMessage()} {vars(record)}" for record in records]
    written = [line for line in written if "HTTP Request:" not in line]
    for marker in (key, wrong, secret):
        assert not [line for line in (*pages, *written) if marker in line]


async def test_a_client_cannot_write_lines_of_its_own(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="pdrouter")
    model = 'x"\n{"event":"forged"}\u2028\x1b[31m'
    response = await client.post(CHAT, json=chat(model=model))
    line = await find_line(caplog, response.headers["x-request-id"])
    assert line["event"] == "request"
    for record in caplog.records:
        if record.name.startswith("pdrouter"):
            assert not [line for line in JsonFormatter().format_lines(record) if "\n" in line]
    long = await client.get("/" + "x" * 5_000)
    line = await find_line(caplog, long.headers["x-request-id"])
    assert len(json.dumps(line)) < 2_000


# --- Numbers ---------------------------------------------------------------------------------


async def test_the_metrics_count_what_was_done(stack_options: StackOptions) -> None:
    async with run_checked_stack(stack_options) as stack, connect(stack) as client:
        for _ in range(3):
            expect_disaggregated(stack, await client.post(CHAT, json=chat()))
        for _ in range(2):
            expect_whole(stack, await client.post(CHAT, json=chat(n=2)), "n")
        assert (await client.post(CHAT, json=chat(tools=[]))).status_code == 400
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/v1/models")).status_code == 200
        await expect_settled(stack)
        metrics = await read_metrics(stack)
    for labels, count in (
        ({"model": "demo", "outcome": "ok", "status": "200"}, 5),
        ({"model": "demo", "outcome": "engine-error", "status": "400"}, 1),
        ({"model": "", "outcome": "rejected", "status": "404"}, 1),
        ({"model": "", "outcome": "answered", "status": "200"}, 1),
        ({}, 8),
    ):
        assert metrics.total("pdrouter_requests_total", **labels) == count, labels
    for labels, count in (
        # The request that was refused went to no decode pod.
        ({"model": "demo", "decision": "disaggregated", "reason": ""}, 3),
        ({"model": "demo", "decision": "aggregated", "reason": "n"}, 2),
        ({}, 5),
    ):
        assert metrics.total("pdrouter_decisions_total", **labels) == count, labels
    assert metrics.total("pdrouter_prefill_attempts_total", model="demo") == 4
    assert metrics.total("pdrouter_prefill_refusals_total", model="demo", status="400") == 1
    assert metrics.total("pdrouter_prefill_failures_total") == 0
    assert metrics.total("pdrouter_pods_synced") == 1
    assert metrics.total("pdrouter_pod_ready", model="demo") == 4
    for name, count in (
        ("pdrouter_prefill_seconds", 4),
        ("pdrouter_routing_seconds", 6),
        ("pdrouter_response_headers_seconds", 8),
        ("pdrouter_request_seconds", 8),
        ("pdrouter_overhead_seconds", 8),
    ):
        expect_histogram(metrics, name, count)


def expect_histogram(metrics: Metrics, name: str, count: int) -> None:
    """Check that a histogram holds so many observations, in buckets that add up."""
    assert metrics.total(f"{name}_count") == count
    assert metrics.total(f"{name}_sum") > 0
    buckets: dict[float, float] = {}
    for (sample, labels), value in metrics.samples.items():
        if sample == f"{name}_bucket":
            bound = float(dict(labels)["le"])
            buckets[bound] = buckets.get(bound, 0) + value
    assert len(buckets) > 5
    in_order = [buckets[bound] for bound in sorted(buckets)]
    assert in_order == sorted(in_order)
    assert buckets[float("inf")] == count


async def test_clients_cannot_add_series(client: httpx.AsyncClient, stack: LocalStack) -> None:
    async def provoke(mark: str) -> None:
        for response in (
            await client.post(CHAT, json=chat(model=f"model-{mark}")),
            await client.get(f"/path-{mark}"),
            await client.post(CHAT, json=chat(), headers={"routing-strategy": f"strategy-{mark}"}),
            await client.request("PATCH", f"{CHAT}?{mark}"),
        ):
            assert response.status_code in {400, 404, 405}
        await expect_settled(stack)

    async def list_values() -> set[tuple[str, str]]:
        # Not the series: what Envoy and engines tell of requests before adds some, seconds later.
        series = (await read_metrics(stack)).samples.keys()
        return {
            label
            for name, labels in series
            if name != "pdrouter_access_log_entries_total"
            for label in labels
            if label[0] != "le"
        }

    await provoke("first")
    before = await list_values()
    for i in range(8):
        await provoke(str(i))
    assert await list_values() - before == set()


async def test_the_metrics_page_is_well_formed(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    expect_disaggregated(stack, await client.post(CHAT, json=chat()))
    response = await read_admin(stack, "/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    helps = re.findall(r"^# HELP (\S+) (.+)$", response.text, re.MULTILINE)
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", response.text, re.MULTILINE))
    assert {name for name, _ in helps} == types.keys()
    assert {name for name, kind in types.items() if kind == "histogram"} == {
        "pdrouter_prefill_seconds",
        "pdrouter_routing_seconds",
        "pdrouter_response_headers_seconds",
        "pdrouter_request_seconds",
        "pdrouter_overhead_seconds",
        "pdrouter_time_to_first_token_seconds",
        "pdrouter_inter_token_latency_seconds",
        "pdrouter_encode_seconds",
        "pdrouter_fair_queue_seconds",
        "pdrouter_event_loop_lag_seconds",
        "pdrouter_event_loop_stall_seconds",
    }
    assert all(name.startswith(("pdrouter_", "gateway_", "pd_selected_")) for name in types)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_finds_no_fault_with_the_metrics(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    expect_disaggregated(stack, await client.post(CHAT, json=chat()))
    page = (await read_admin(stack, "/metrics")).content
    process = await asyncio.create_subprocess_exec(
        *("promtool", "check", "metrics"), stdin=-1, stdout=-1, stderr=-1
    )
    output = await process.communicate(page)
    assert process.returncode == 0, output


# --- The state of things ---------------------------------------------------------------------


async def test_the_state_shows_pods_loads_and_open_requests(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    request = chat(max_tokens=30_000, stream=True)
    async with client.stream("POST", CHAT, json=request) as response:
        state = await read_state(stack)
        served = response.headers["target-pod-ip"]
        pods = {pod["address"]: pod for pod in state["pods"]}
        assert pods.keys() == {engine.address for engine in (*stack.prefill, *stack.decode)}
        assert {address for address, pod in pods.items() if pod["decode_requests"]} == {served}
        assert {pod["role"] for pod in pods.values()} == {"prefill", "decode"}
        assert all(pod["ready"] and pod["model"] == "demo" for pod in pods.values())
        (open_request,) = state["requests"]
        assert open_request["request_id"] == response.headers["x-request-id"]
        assert open_request["decode_pod"] == response.headers["target-pod"]
        assert open_request["status"] == 200
    await expect_settled(stack)
    state = await read_state(stack)
    assert (state["requests"], state["ledger"]) == ([], {})
    assert state["synced"] is True
    assert state["settings"]["ROUTING_ALGORITHM"] == "pd"


async def test_the_probes_say_that_the_router_is_well(stack: LocalStack) -> None:
    for probe in ("/healthz", "/readyz"):
        response = await read_admin(stack, probe)
        assert (response.status_code, response.text) == (200, "ok\n")


async def test_the_models_are_the_same_on_both_ports(
    client: httpx.AsyncClient, stack: LocalStack
) -> None:
    here, there = await client.get("/v1/models"), await read_admin(stack, "/v1/models")
    assert here.json() == there.json()
    assert here.json()["object"] == "list"
    assert [card["id"] for card in here.json()["data"]] == ["demo"]


async def test_the_http_port_answers_mistakes_in_the_envelope(stack: LocalStack) -> None:
    missing = await read_admin(stack, "/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_path")
    async with httpx.AsyncClient(
        base_url=stack.admin_url, timeout=PATIENCE_S, verify=False
    ) as client:
        wrong = await client.post("/metrics")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert "GET" in wrong.headers["allow"]
