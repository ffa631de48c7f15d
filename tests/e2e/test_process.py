"""`pdrouter serve` as a process: how it starts, what it weighs, how it ends."""

import asyncio
import resource
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from expectations import chat, eventually
from failures import CHAT
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import RouterProcess, run_installation, streaming

from pdrouter.extproc.server import HEALTH_SERVICES
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.received_requests import ReceivedRequest

MIB = 2**20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

ENDPOINTS = """
models:
  - name: demo
    rolesets:
      - name: default
        prefill: ["127.0.0.1:9"]
        decode: ["127.0.0.1:10"]
"""


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    file = tmp_path / "endpoints.yaml"
    file.write_text(ENDPOINTS)
    return file


def replace_file(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)


async def read_failure(environment: Mapping[str, str]) -> tuple[int, str]:
    """Start a router that cannot start; return its exit code and what it says."""
    async with RouterProcess.start(environment) as router:
        code = await router.wait()
        assert not router.events("serving")
        return code, router.errors


async def test_what_happens_without_a_strategy_is_said_at_the_start(endpoints: Path) -> None:
    environment = {"PDROUTER_ENDPOINTS": str(endpoints)}
    async with RouterProcess.serving(environment) as router:
        (warning,) = (line for line in router.lines if "ROUTING_ALGORITHM" in line["event"])
        assert warning["level"] == "warning"
        assert "no healthy upstream" in warning["event"]
    async with RouterProcess.serving({**environment, "ROUTING_ALGORITHM": "pd"}) as router:
        assert not [line for line in router.lines if "ROUTING_ALGORITHM" in line["event"]]


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("PDROUTER_PREFILL_RETRIES", "many", "a whole number from 0 to 100"),
        ("AIBRIX_PREFILL_REQUEST_TIMEOUT", "0", "above 0 to 86400"),
        ("ROUTING_ALGORITHM", "best", "one of pd, random, least-request, "),
        ("PDROUTER_GRPC_BIND", "50052x", "host:port"),
        ("PDROUTER_EXPOSE_PODS", "maybe", "true or false"),
        ("PDROUTER_WORKERS", "0", "a whole number from 1 to 64"),
    ],
)
async def test_a_bad_setting_stops_the_start_with_one_line(
    endpoints: Path, variable: str, value: str, allowed: str
) -> None:
    environment = {"PDROUTER_ENDPOINTS": str(endpoints), variable: value}
    code, errors = await read_failure(environment)
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"pdrouter: {variable}={value!r}")
    assert allowed in line


async def test_settings_that_contradict_each_other_stop_the_start(endpoints: Path) -> None:
    environment = {"PDROUTER_ENDPOINTS": str(endpoints), "PDROUTER_TLS_KEY": "key.pem"}
    code, errors = await read_failure(environment)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "PDROUTER_TLS_CERTIFICATE" in errors


async def test_without_a_source_of_pods_there_is_no_start() -> None:
    code, errors = await read_failure({})
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "--endpoints" in errors


@pytest.mark.parametrize(
    "content", [None, "models: [", "models: 3", "{}"], ids=["missing", "no-yaml", "no-list", "none"]
)
async def test_endpoints_that_cannot_be_read_stop_the_start(
    endpoints: Path, content: str | None
) -> None:
    replace_file(endpoints, content)
    code, errors = await read_failure({"PDROUTER_ENDPOINTS": str(endpoints)})
    assert (code, len(errors.splitlines())) == (1, 1)
    assert str(endpoints) in errors


async def test_a_tokenizer_that_cannot_be_read_stops_the_start(endpoints: Path) -> None:
    environment = {
        "PDROUTER_ENDPOINTS": str(endpoints),
        "PDROUTER_TOKENIZERS": f"m={endpoints}",
    }
    code, errors = await read_failure(environment)
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"{endpoints} is not a tokenizer.json" in errors


@pytest.mark.parametrize("variable", ["PDROUTER_GRPC_BIND", "PDROUTER_HTTP_BIND"])
async def test_a_port_in_use_stops_the_start(endpoints: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {"PDROUTER_ENDPOINTS": str(endpoints), variable: address}
        code, errors = await read_failure(environment)
    assert code == 1
    assert "Traceback" not in errors
    assert errors.startswith("pdrouter: ")
    assert errors.count("\n") == 1
    assert address.rpartition(":")[2] in errors


UNWANTED = ("envoy_data_plane", "betterproto2", "httpx", "openai", "pdrouter.tools.simulation")


async def test_it_weighs_little_and_loads_nothing_that_other_commands_need(
    endpoints: Path,
) -> None:
    environment = {"PDROUTER_ENDPOINTS": str(endpoints), "PDROUTER_LAME_DUCK": "0"}
    async with RouterProcess.serving(environment, ("-X", "importtime")) as router:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/debug/state"):
            assert (await router.get(path)).status_code == 200
        assert router.resident_bytes < 90 * MIB
        imported = {line.rpartition("|")[2].strip() for line in router.errors.splitlines()}
        assert "pdrouter.app" in imported
        assert not [name for name in imported if name.startswith(UNWANTED)]
        router.signal(signal.SIGINT)
        assert await router.wait() == 0


@pytest.fixture
def few_files() -> Iterator[int]:
    """Lower the limit that child processes inherit; gives how far it can be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_it_may_open_as_many_files_as_the_system_allows(
    endpoints: Path, few_files: int
) -> None:
    async with RouterProcess.serving({"PDROUTER_ENDPOINTS": str(endpoints)}) as router:
        soft, hard = resource.prlimit(router.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard == few_files


def expect_router_unavailable(response: httpx.Response) -> None:
    """Check for Envoy's own answer where there is no router."""
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "router_unavailable"


async def read_health(router: RouterProcess) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(str(router.grpc_address)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return {
            service: (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
            for service in HEALTH_SERVICES
        }


async def test_sigterm_lets_open_requests_finish_and_serves_new_ones_for_a_while() -> None:
    environment = {"PDROUTER_LAME_DUCK": "3"}
    async with (
        run_installation(environment, itl_ms=100) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        assert set((await read_health(router)).values()) == {SERVING}
        assert (await router.get("/readyz")).status_code == 200
        async with streaming(installation, client, streams=20, tokens=50) as streams:
            router.signal(signal.SIGTERM)
            await router.wait_for("draining")
            assert set((await read_health(router)).values()) == {NOT_SERVING}
            assert (await router.get("/readyz")).status_code == 503
            assert (await router.get("/healthz")).status_code == 200
            response = await client.post(CHAT, json=chat())
            assert response.status_code == 200
            assert response.headers["x-pd-decision"] == "disaggregated"
        assert [stream.result() for stream in streams] == ["complete"] * 20
        assert await router.wait() == 0
        assert len(router.events("request")) == 21
        assert {line["outcome"] for line in router.events("request")} == {"ok"}
        assert router.events("stopped")
        router.expect_no_accident()

        expect_router_unavailable(await client.post(CHAT, json=chat()))


def list_legs(engine: SimulatedEngine) -> list[ReceivedRequest]:
    """Return what an engine has received, without the router's own questions."""
    return [request for request in engine.requests if "x-request-id" in request.headers]


async def test_a_handle_that_waited_while_the_router_was_stopped_is_not_sent() -> None:
    async with (
        run_installation({"PDROUTER_KV_LEASE": "1"}) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        prefill = installation.prefill
        prefill.faults.set(Fault(slow_s=0.3, times=1))
        waiting = asyncio.create_task(client.post(CHAT, json=chat()))

        async def asked() -> None:
            assert list_legs(prefill)

        async def answered() -> None:
            assert list_legs(prefill)[-1].outcome != "running"

        await eventually(asked)
        router.signal(signal.SIGSTOP)
        await eventually(answered)
        await asyncio.sleep(1.5)
        router.signal(signal.SIGCONT)
        response = await waiting
        assert response.status_code == 200
        assert response.headers["x-pd-decision"] == "disaggregated"
        late, used = [leg.headers["x-request-id"] for leg in list_legs(prefill)]
        assert used == f"{late}-2"
        (decode,) = list_legs(installation.decode)
        assert decode.headers["x-request-id"] == used
        router.expect_no_accident()


async def test_what_is_open_at_the_end_of_the_drain_time_is_cancelled() -> None:
    environment = {"PDROUTER_LAME_DUCK": "0", "PDROUTER_DRAIN": "0.5"}
    async with (
        run_installation(environment, itl_ms=20) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        async with streaming(installation, client, streams=2, tokens=1_000) as streams:
            installation.prefill.faults.set(Fault(hang=True))
            waiting = asyncio.create_task(client.post(CHAT, json=chat()))

            async def check() -> None:
                assert installation.prefill.requests[-1].outcome == "running"

            await eventually(check)
            router.signal(signal.SIGTERM)
            assert await router.wait() == 0
            expect_router_unavailable(await waiting)
        assert [stream.result() for stream in streams] == ["cut"] * 2
        assert router.events("drain time is over, 3 requests are cancelled")
        assert len(router.events("request")) == 3
        router.expect_no_accident()

        async def aborted() -> None:
            assert installation.prefill.requests[-1].outcome == "aborted"
            assert installation.decode.count("vllm:num_requests_running") == 0

        await eventually(aborted)


async def test_a_second_signal_ends_it_at_once_with_exit_code_1() -> None:
    async with (
        run_installation({}, itl_ms=20) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        async with streaming(installation, client, streams=1, tokens=1_000) as streams:
            router.signal(signal.SIGTERM)
            await router.wait_for("draining")
            router.signal(signal.SIGTERM)
            assert await router.wait() == 1
        assert streams[0].result() == "cut"


async def test_a_router_that_dies_takes_its_open_requests_along() -> None:
    """Envoy cuts a stream whose filter is gone: tokens that come after it are lost."""
    async with (
        run_installation({}, itl_ms=20) as installation,
        installation.connect() as client,
    ):
        (router,) = installation.routers
        async with streaming(installation, client, streams=3, tokens=1_000) as streams:
            plain = asyncio.create_task(client.post(CHAT, json=chat(max_tokens=1_000)))

            async def check() -> None:
                assert installation.decode.count("vllm:num_requests_running") == 4

            await eventually(check)
            router.signal(signal.SIGKILL)
            expect_router_unavailable(await plain)
        assert [stream.result() for stream in streams] == ["cut"] * 3
        assert await router.wait() == -signal.SIGKILL
        expect_router_unavailable(await client.post(CHAT, json=chat()))

        async def idle() -> None:
            assert installation.decode.count("vllm:num_requests_running") == 0

        await eventually(idle)


async def test_one_of_two_routers_can_be_replaced_without_a_failed_request() -> None:
    async with (
        run_installation({}, routers=2, itl_ms=20) as installation,
        installation.connect() as client,
    ):
        leaving, staying = installation.routers
        async with streaming(installation, client, streams=10, tokens=50) as streams:
            leaving.signal(signal.SIGTERM)
            ended = asyncio.create_task(leaving.wait())
            while not ended.done():
                response = await client.post(CHAT, json=chat(max_tokens=1))
                assert response.status_code == 200
                await asyncio.sleep(0.01)
        assert [stream.result() for stream in streams] == ["complete"] * 10
        assert ended.result() == 0
        served = len(staying.events("request"))
        assert (await client.post(CHAT, json=chat())).status_code == 200
        await staying.wait_for("request", served + 1)
        for router in installation.routers:
            assert {line["outcome"] for line in router.events("request")} == {"ok"}
            router.expect_no_accident()
