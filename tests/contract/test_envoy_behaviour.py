"""What a client of the real Envoy sees, with a scripted router and engine behind it."""

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
from envoy_data_plane.envoy.type import v3 as http_type
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from pdrouter.openai.headers import CONTROL_HEADERS, DESTINATION_ENDPOINT, TARGET_POD
from pdrouter.tools.envoy_config import Address, EnvoyConfig, Routing, build_bootstrap, to_yaml
from pdrouter.tools.envoy_process import EnvoyProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
REFUSAL = b'{"error": "of the router"}'
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class ScriptedRouter:
    """Does what the client's `x-router` header says: route (default), refuse, fail or wait."""

    target: str
    health: health_aio.HealthServicer = field(default_factory=health_aio.HealthServicer)
    received: list[dict[str, str]] = field(default_factory=list)
    open: int = 0

    async def process(
        self,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> AsyncIterator[bytes]:
        self.open += 1
        try:
            async for data in requests:
                yield bytes(await self.answer(ext_proc.ProcessingRequest.parse(data), context))
        finally:
            self.open -= 1

    async def answer(
        self,
        request: ext_proc.ProcessingRequest,
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> ext_proc.ProcessingResponse:
        if request.request_body is not None:
            return ext_proc.ProcessingResponse(request_body=ext_proc.BodyResponse())
        if request.response_headers is not None:
            return ext_proc.ProcessingResponse(response_headers=ext_proc.HeadersResponse())
        assert request.request_headers is not None
        assert request.request_headers.headers is not None
        headers = {h.key: h.raw_value.decode() for h in request.request_headers.headers.headers}
        self.received.append(headers)
        script = headers.get("x-router", "route")
        if script == "wait":
            await asyncio.Event().wait()
        if script == "fail":
            await context.abort(grpc.StatusCode.INTERNAL, "failed as told")
        if script.startswith("refuse"):
            return ext_proc.ProcessingResponse(immediate_response=refuse(int(script[6:])))
        target = headers.get("x-target", self.target)
        mutation = set_headers({TARGET_POD: target, DESTINATION_ENDPOINT: target})
        return ext_proc.ProcessingResponse(
            request_headers=ext_proc.HeadersResponse(
                response=ext_proc.CommonResponse(header_mutation=mutation, clear_route_cache=True)
            )
        )


def refuse(status: int) -> ext_proc.ImmediateResponse:
    return ext_proc.ImmediateResponse(
        status=http_type.HttpStatus(code=http_type.StatusCode(status)),
        headers=set_headers({"content-type": "application/json"}),
        body=REFUSAL,
        details="refused as told",
    )


def set_headers(headers: dict[str, str]) -> ext_proc.HeaderMutation:
    return ext_proc.HeaderMutation(
        set_headers=[
            core.HeaderValueOption(header=core.HeaderValue(key=name, raw_value=value.encode()))
            for name, value in headers.items()
        ]
    )


@contextlib.asynccontextmanager
async def run_router(
    target: str, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[tuple[ScriptedRouter, Address]]:
    router = ScriptedRouter(target)
    await router.health.set("", SERVING)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MIB)])
    handler = grpc.stream_stream_rpc_method_handler(router.process)
    server.add_registered_method_handlers(
        "envoy.service.ext_proc.v3.ExternalProcessor", {"Process": handler}
    )
    health_pb2_grpc.add_HealthServicer_to_server(router.health, server)
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield router, Address("127.0.0.1", port)
    finally:
        await server.stop(grace=None)


@dataclass
class ScriptedEngine:
    """Echoes what it received; `x-engine` makes it fail, or stream until it is released."""

    requests: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        body = await request.read()
        script = request.headers.get("x-engine")
        if script == "fail":
            return web.Response(status=503, text="of the engine")
        if script == "stream":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"first,")
            await self.release.wait()
            await response.write(b"last")
            return response
        return web.json_response({"headers": dict(request.headers), "body": len(body)})


@contextlib.asynccontextmanager
async def run_engine() -> AsyncIterator[tuple[ScriptedEngine, Address]]:
    engine = ScriptedEngine()
    application = web.Application(client_max_size=2 * MIB)
    application.router.add_route("*", "/{path:.*}", engine.handle)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield engine, Address("127.0.0.1", runner.addresses[0][1])
    finally:
        await runner.cleanup()


def run_envoy(**options: Any) -> contextlib.AbstractAsyncContextManager[EnvoyProcess]:
    here = Address("127.0.0.1", 0)
    config = EnvoyConfig(**{"listen": here, "admin": here, "max_message_bytes": MIB, **options})
    return EnvoyProcess.run(to_yaml(build_bootstrap(config)))


@dataclass(frozen=True)
class Stack:
    envoy: EnvoyProcess
    config: EnvoyConfig
    router: ScriptedRouter
    engine: ScriptedEngine
    pod: Address


def connect(envoy: EnvoyProcess, *, http2: bool = False) -> httpx.AsyncClient:
    url = f"http://{envoy.listener}"
    return httpx.AsyncClient(base_url=url, http1=not http2, http2=http2, timeout=30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncIterator[Stack]:
    here = Address("127.0.0.1", 0)
    async with run_engine() as (engine, pod), run_router(str(pod)) as (router, address):
        config = EnvoyConfig(
            routers=(address,),
            listen=here,
            admin=here,
            max_message_bytes=MIB,
            prefill_timeout_s=0.001,
        )
        async with EnvoyProcess.run(to_yaml(build_bootstrap(config))) as envoy:
            yield Stack(envoy, config, router, engine, pod)


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


def read_error(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


protocols = pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])


@protocols
async def test_control_headers_of_a_client_do_not_reach_the_router(
    stack: Stack, http2: bool
) -> None:
    control = (*CONTROL_HEADERS, "x-data-parallel-anything")
    async with connect(stack.envoy, http2=http2) as client:
        response = await client.post(
            "/v1/completions",
            content=b"{}",
            headers={**dict.fromkeys(control, "127.0.0.9:9999"), "x-kept": "yes"},
        )
    assert response.status_code == 200
    received = stack.router.received[-1]
    assert not received.keys() & set(control)
    assert received["x-kept"] == "yes"
    assert response.json()["headers"][TARGET_POD] == str(stack.pod)


@protocols
async def test_a_body_of_exactly_the_limit_passes(stack: Stack, http2: bool) -> None:
    body = b"x" * stack.config.body_limit_bytes
    async with connect(stack.envoy, http2=http2) as client:
        response = await client.post("/", content=body)
    assert response.json()["body"] == len(body)


@protocols
async def test_a_larger_body_gets_a_413_that_names_the_limit(stack: Stack, http2: bool) -> None:
    requests = stack.engine.requests
    async with connect(stack.envoy, http2=http2) as client:
        response = await client.post("/", content=b"x" * (stack.config.body_limit_bytes + 1))
    assert response.status_code == 413
    error = read_error(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
    assert str(stack.config.body_limit_bytes) in error["message"]
    assert stack.engine.requests == requests


@pytest.mark.parametrize(
    ("headers", "status", "error_type", "code"),
    [
        ({"x-target": "127.0.0.1:1"}, 503, "overloaded_error", "upstream_unavailable"),
        ({"x-target": "nonsense"}, 503, "overloaded_error", "upstream_unavailable"),
        ({"x-router": "fail"}, 503, "overloaded_error", "router_unavailable"),
        ({"x-router": "wait"}, 504, "api_error", "gateway_timeout"),
    ],
    ids=["pod refuses", "no such pod", "router fails", "router waits"],
)
async def test_errors_of_envoy_have_the_shape_of_the_api(
    stack: Stack, headers: dict[str, str], status: int, error_type: str, code: str
) -> None:
    async with connect(stack.envoy) as client:
        response = await client.post("/", content=b"{}", headers=headers)
    assert response.status_code == status
    error = read_error(response)
    assert (error["type"], error["code"], error["param"]) == (error_type, code, None)


@pytest.mark.parametrize("path", ["/v1/messages?beta=true", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("headers", "size", "status", "error_type"),
    [
        ({"x-target": "127.0.0.1:1"}, 2, 503, "overloaded_error"),
        ({"x-router": "fail"}, 2, 503, "overloaded_error"),
        ({"x-router": "wait"}, 2, 504, "timeout_error"),
        ({}, MIB, 413, "request_too_large"),
        ({"connection": "upgrade", "upgrade": "websocket"}, 2, 403, "invalid_request_error"),
    ],
    ids=["pod refuses", "router fails", "router waits", "large", "upgrade"],
)
async def test_errors_of_envoy_on_anthropics_paths_have_anthropics_shape(
    stack: Stack, path: str, headers: dict[str, str], size: int, status: int, error_type: str
) -> None:
    headers = {**headers, "x-request-id": "an-id"}
    async with connect(stack.envoy) as client:
        response = await client.post(path, content=b"x" * size, headers=headers)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["error"].pop("message")
    assert body == {"type": "error", "error": {"type": error_type}, "request_id": "an-id"}


@pytest.mark.parametrize("status", [400, 413, 429, 503, 504])
async def test_answers_of_the_router_stay_as_they_are(stack: Stack, status: int) -> None:
    async with connect(stack.envoy) as client:
        response = await client.post("/", content=b"{}", headers={"x-router": f"refuse{status}"})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.content == REFUSAL


async def test_errors_of_an_engine_stay_as_they_are_and_are_not_retried(stack: Stack) -> None:
    requests = stack.engine.requests
    asking = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3", "x-forwarded-for": "10.0.0.1"}
    async with connect(stack.envoy) as client:
        response = await client.post("/", content=b"{}", headers={"x-engine": "fail", **asking})
    assert (response.status_code, response.text) == (503, "of the engine")
    assert stack.engine.requests == requests + 1


async def test_envoy_understands_every_field_that_was_printed(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=f"http://{stack.envoy.admin}", timeout=30) as client:
        dump = (await client.get("/config_dump")).json()
    (understood,) = [c["bootstrap"] for c in dump["configs"] if "bootstrap" in c]
    printed = yaml.safe_load(to_yaml(build_bootstrap(stack.config)))
    assert_contained(printed["static_resources"], understood["static_resources"])


def assert_contained(printed: Any, understood: Any, path: str = "") -> None:
    """Every printed value is in Envoy's dump, which writes 64-bit integers as strings."""
    if isinstance(printed, dict):
        assert printed.keys() == understood.keys(), path
        for key, value in printed.items():
            assert_contained(value, understood[key], f"{path}.{key}")
    elif isinstance(printed, list):
        assert len(printed) == len(understood), path
        for index, (value, other) in enumerate(zip(printed, understood, strict=True)):
            assert_contained(value, other, f"{path}[{index}]")
    else:
        assert printed == understood or str(printed) == understood, path


async def test_the_override_host_cluster_sends_to_the_chosen_pod() -> None:
    async with (
        run_engine() as (first, first_pod),
        run_engine() as (second, second_pod),
        run_router(str(first_pod)) as (_, router),
        run_envoy(
            routers=(router,), routing=Routing.OVERRIDE_HOST, decode=(first_pod, second_pod)
        ) as envoy,
        connect(envoy) as client,
    ):
        for pod in (first_pod, second_pod, second_pod, second_pod):
            response = await client.post("/", content=b"{}", headers={"x-target": str(pod)})
            assert response.status_code == 200
    assert (first.requests, second.requests) == (1, 3)


async def test_a_request_above_the_limit_of_concurrency_is_refused_at_once() -> None:
    async with (
        run_engine() as (_, pod),
        run_router(str(pod)) as (router, address),
        run_envoy(routers=(address,), max_concurrent_requests=1) as envoy,
        connect(envoy) as client,
    ):
        async with client.stream(
            "POST", "/", content=b"{}", headers={"x-engine": "stream"}
        ) as held:
            assert held.status_code == 200
            response = await client.post("/", content=b"{}")
            assert response.status_code == 503
            assert read_error(response)["code"] == "router_unavailable"
        await wait_until(lambda: is_idle(router))
        assert (await client.post("/", content=b"{}")).status_code == 200


async def is_idle(router: ScriptedRouter) -> bool:
    return router.open == 0


async def test_a_draining_router_gets_no_new_requests_and_keeps_its_open_ones() -> None:
    async with (
        run_engine() as (engine, pod),
        run_router(str(pod)) as (draining, first),
        run_router(str(pod)) as (other, second),
        run_envoy(routers=(first, second)) as envoy,
        connect(envoy) as client,
    ):

        async def count_requests(router: ScriptedRouter) -> int:
            before = len(router.received)
            for _ in range(10):
                assert (await client.post("/", content=b"{}")).status_code == 200
            return len(router.received) - before

        async def is_avoided() -> bool:
            return await count_requests(draining) == 0

        async with contextlib.AsyncExitStack() as streams:
            held = []
            while draining.open == 0:
                stream = client.stream("POST", "/", content=b"{}", headers={"x-engine": "stream"})
                held.append(await streams.enter_async_context(stream))
            await draining.health.set("", NOT_SERVING)
            await wait_until(is_avoided)
            assert draining.open > 0
            # With no healthy router at all, any is better than none.
            await other.health.set("", NOT_SERVING)
            await wait_until(lambda: is_in_panic(envoy))
            assert await count_requests(draining) + await count_requests(other) > 0
            engine.release.set()
            for response in held:
                assert await response.aread() == b"first,last"


async def is_in_panic(envoy: EnvoyProcess) -> bool:
    async with httpx.AsyncClient(base_url=f"http://{envoy.admin}", timeout=30) as client:
        stats = await client.get("/stats?filter=pdrouter.membership_healthy")
    return stats.text.strip().endswith(": 0")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
@pytest.mark.parametrize(
    ("names", "status"),
    [("IP:127.0.0.1", 200), ("DNS:elsewhere,IP:127.0.0.2", 503)],
    ids=["its name", "another name"],
)
async def test_tls_to_the_router_demands_its_name(names: str, status: int, tmp_path: Path) -> None:
    await asyncio.to_thread(make_certificate, names, tmp_path)
    certificate = (tmp_path / "certificate.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([((tmp_path / "key.pem").read_bytes(), certificate)])
    async with (
        run_engine() as (_, pod),
        run_router(str(pod), credentials) as (_, router),
        run_envoy(routers=(router,), router_ca_file=str(tmp_path / "certificate.pem")) as envoy,
        connect(envoy) as client,
    ):
        assert (await client.post("/", content=b"{}")).status_code == status


def make_certificate(names: str, directory: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=router"),
            *("-addext", f"subjectAltName={names}"),
            *("-keyout", "key.pem", "-out", "certificate.pem"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )


async def test_the_access_log_tells_who_answered(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with (
        run_engine() as (_, pod),
        run_router(str(pod)) as (_, router),
        run_envoy(routers=(router,), access_log=str(log)) as envoy,
        connect(envoy) as client,
    ):
        await client.post("/", content=b"{}")
        await client.post("/", content=b"{}", headers={"x-router": "refuse429"})
    routed, refused = [json.loads(line) for line in log.read_text().splitlines()]
    assert (routed["status"], routed["upstream"]) == (200, str(pod))
    assert (refused["status"], refused["details"]) == (429, "refused_as_told")
